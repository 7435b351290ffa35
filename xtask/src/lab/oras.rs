//! python-oras: a client that is a library, from PyPI into a virtual environment of the project's own.

use std::path::PathBuf;

use anyhow::Context;

use super::cmd::Cmd;
use super::packages::{self, apt_line};
use super::process::is_root;
use crate::workspace;

/// What its users read is kept word for word, so the version is fixed.
const VERSION: &str = "oras==0.2.43";

fn home() -> PathBuf {
    workspace::root().join("target/python-oras")
}

/// The Python that has it, if it is installed.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let python = home().join("bin/python3");
    let has_it = Cmd::new(&python).args(["-c", "import oras.client"]).run().is_ok();
    has_it.then_some(python)
}

/// Installs it, where Python can make virtual environments and PyPI answers.
///
/// # Errors
/// When one of them does not.
pub fn ensure() -> anyhow::Result<()> {
    if python().is_some() {
        return Ok(());
    }
    if Cmd::new("python3").args(["-c", "import ensurepip, venv"]).run().is_err() {
        if !is_root() {
            anyhow::bail!("Python makes no virtual environments: {}", apt_line("python3-venv"));
        }
        packages::apt(&["install", "-y", "--no-install-recommends", "python3-venv"])
            .step("apt-get install python3-venv")?;
    }
    Cmd::new("python3").args(["-m", "venv"]).arg(home()).run().context("cannot make a virtual environment")?;
    let pip = Cmd::new(home().join("bin/python3")).args(["-m", "pip", "install", "--quiet", VERSION]);
    pip.log(workspace::log("python-oras")?).step(&format!("pip install {VERSION}"))?;
    Ok(())
}
