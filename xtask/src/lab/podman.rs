//! podman and buildah in a den: no daemon, but a storage, a blob cache and a file of logins, all of them their own.

use std::fs;

use anyhow::Context;
use tempfile::TempDir;

use super::cmd::Cmd;
use super::den::Den;
use super::process::scratch;

/// One of the two, with a storage of its own.
#[derive(Debug)]
pub struct Daemonless {
    program: &'static str,
    driver: &'static str,
    dir: TempDir,
}

impl Daemonless {
    /// podman: on overlays, or on plain copies (vfs) where overlays are refused.
    ///
    /// # Errors
    /// When it works with neither.
    pub fn podman(den: &Den) -> anyhow::Result<Self> {
        Self::start("podman", den)
    }

    /// buildah, likewise.
    ///
    /// # Errors
    /// When it works with neither.
    pub fn buildah(den: &Den) -> anyhow::Result<Self> {
        Self::start("buildah", den)
    }

    fn start(program: &'static str, den: &Den) -> anyhow::Result<Self> {
        let on = |driver| {
            let dir = scratch(program)?;
            // podman fails on a file of logins that does not exist yet.
            fs::write(dir.path().join("auth.json"), "{}").context("cannot write auth.json")?;
            let client = Self { program, driver, dir };
            client.command(den).arg("images").run()?;
            anyhow::Ok(client)
        };
        on("overlay").or_else(|_| on("vfs"))
    }

    /// The client.
    #[must_use]
    pub fn command(&self, den: &Den) -> Cmd {
        let path = |name: &str| self.dir.path().join(name);
        let cmd = Cmd::new(self.program)
            .env("HOME", path("home"))
            .env("REGISTRY_AUTH_FILE", path("auth.json"))
            .arg("--root")
            .arg(path("root"))
            .arg("--runroot")
            .arg(path("run"))
            .args(["--storage-driver", self.driver]);
        den.wrap(cmd)
    }
}
