//! cargo-deny over the dependencies, where it is installed and as far as it gets without a network.

use super::Outcome;
use crate::lab::cmd::which;
use crate::workspace;

/// Licences, bans and sources; the advisories too where their database can be had.
pub(super) fn check() -> anyhow::Result<Outcome> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let beside_cargo = cargo_home.is_some_and(|home| home.join("bin/cargo-deny").is_file());
    if !beside_cargo && which("cargo-deny").is_none() {
        return Ok(Outcome::Skipped("cargo-deny is not installed: cargo install cargo-deny --locked".into()));
    }
    let deny = |what: &[&str]| {
        let cmd = workspace::cargo().args(["deny", "--config", ".deny.toml", "check"]).args(what);
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
