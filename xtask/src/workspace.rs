//! Where the project lives, and how its own cargo commands are run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::lab::cmd::Cmd;

/// The top of the work tree.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo builds.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The log file of a step; compiler output goes there instead of to the screen.
///
/// # Errors
/// When its directory cannot be made.
pub fn log(name: &str) -> anyhow::Result<PathBuf> {
    let dir = target().join("xtask-logs");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir.join(format!("{name}.log")))
}

/// A cargo command in this workspace.
///
/// `cargo run` describes *this* package to its child in the environment; passed on, that would look like a change
/// to every build script that asks, so it is removed.
#[must_use]
pub fn cargo() -> Cmd {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut cmd = Cmd::new(program).dir(root()).env("CARGO_TERM_COLOR", "never");
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy();
        let describes_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|prefix| known.starts_with(prefix));
        if describes_us || known == "CARGO_PRIMARY_PACKAGE" {
            cmd = cmd.env_remove(&name);
        }
    }
    cmd
}
