//! A dockerd in a den, and its client, both with nothing of this machine's docker in them.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use tempfile::TempDir;

use super::cmd::{Cmd, which};
use super::containerd::Containerd;
use super::den::Den;
use super::process::{Service, scratch};

/// The package's own client first: one of another version may refuse to talk to the package's daemon.
const PACKAGED_CLIENT: &str = "/usr/bin/docker";

/// A daemon that runs until this is dropped.
#[derive(Debug)]
pub struct Docker {
    service: Service,
    containerd: Containerd,
    dir: TempDir,
}

impl Docker {
    /// Starts dockerd and waits until it answers: on overlay2, or on vfs where overlays are refused.
    ///
    /// # Errors
    /// When it starts on neither.
    pub fn start(den: &Den) -> anyhow::Result<Self> {
        Self::start_on(den, "overlay2").or_else(|_| Self::start_on(den, "vfs"))
    }

    fn start_on(den: &Den, driver: &str) -> anyhow::Result<Self> {
        let dir = scratch("docker")?;
        // Its own child would outlive it when it is killed.
        let containerd = Containerd::start(den)?;
        let path = |name: &str| dir.path().join(name);
        let config = json!({
            "data-root": path("data"), "exec-root": path("exec"), "pidfile": path("pid"),
            "hosts": [host(dir.path())], "containerd": containerd.socket(), "storage-driver": driver,
            "bridge": "none", "iptables": false, "ip6tables": false,
        });
        let file = path("daemon.json");
        fs::write(&file, config.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
        let dockerd = which("dockerd").context("dockerd is not installed")?;
        let cmd = Cmd::new(dockerd).arg("--config-file").arg(&file);
        let mut service = Service::start("dockerd", den.wrap(cmd), dir.path())?;
        service.wait_until("ready", || client(dir.path()).args(["version"]).run().is_ok())?;
        Ok(Self { service, containerd, dir })
    }

    /// The client, talking to this daemon and remembering logins in a place of its own.
    #[must_use]
    pub fn client(&self) -> Cmd {
        client(self.dir.path())
    }

    /// Its socket, as `--host` takes it.
    #[must_use]
    pub fn host(&self) -> String {
        host(self.dir.path())
    }

    /// The processes of it and of the containerd beneath it.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        vec![self.service.pid(), self.containerd.pid()]
    }

    /// The containerd beneath it.
    #[must_use]
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }
}

fn host(dir: &Path) -> String {
    format!("unix://{}", dir.join("socket").display())
}

fn client(dir: &Path) -> Cmd {
    let program = if Path::new(PACKAGED_CLIENT).is_file() { PACKAGED_CLIENT } else { "docker" };
    let own = ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CONTENT_TRUST", "DOCKER_TLS_VERIFY"];
    let cmd = own.into_iter().fold(Cmd::new(program), Cmd::env_remove);
    cmd.arg("--host").arg(host(dir)).arg("--config").arg(dir.join("config"))
}
