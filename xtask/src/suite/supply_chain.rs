//! cargo-deny over the dependencies, where it is installed and as far as it gets without a network.

use std::path::PathBuf;

use super::Outcome;
use crate::lab::cmd::{Cmd, which};
use crate::workspace;

/// Under `target/`, so that it is gone with all else that was built here.
fn own() -> PathBuf {
    workspace::root().join("target/tools")
}

fn program() -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let places = [Some(own()), cargo_home].into_iter().flatten();
    let found = places.map(|place| place.join("bin/cargo-deny")).find(|path| path.is_file());
    found.or_else(|| which("cargo-deny"))
}

/// Builds cargo-deny, which takes minutes, where it is not installed.
pub(super) fn install() -> anyhow::Result<()> {
    if program().is_none() {
        let cmd = workspace::cargo().args(["install", "cargo-deny", "--locked", "--root"]).arg(own());
        cmd.log(workspace::log("cargo-deny")?).step("cargo install cargo-deny")?;
    }
    Ok(())
}

/// Licences, bans and sources; the advisories too where their database can be had.
pub(super) fn check() -> anyhow::Result<Outcome> {
    let Some(program) = program() else {
        return Ok(Outcome::Skipped("cargo-deny is not installed: cargo install cargo-deny --locked".into()));
    };
    let deny = |what: &[&str]| {
        let cmd = Cmd::new(&program).dir(workspace::root()).args(["--locked", "--config", ".deny.toml", "check"]);
        let cmd = cmd.args(what);
        cmd.log(workspace::log("deny")?).step(&format!("cargo deny check {}", what.join(" ")))
    };
    deny(&["licenses", "bans", "sources"])?;
    match deny(&["advisories"]) {
        Ok(_) => Ok(Outcome::Passed),
        Err(error) if format!("{error:#}").contains("failed to fetch advisory database") => {
            Ok(Outcome::Skipped("the advisory database cannot be fetched; licences, bans and sources are good".into()))
        }
        Err(error) => Err(error),
    }
}
