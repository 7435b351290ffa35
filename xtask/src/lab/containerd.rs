//! A containerd in a den, and its client `ctr`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use tempfile::TempDir;

use super::cmd::Cmd;
use super::den::Den;
use super::process::{Service, scratch};

/// A daemon that runs until this is dropped.
#[derive(Debug)]
pub struct Containerd {
    service: Service,
    dir: TempDir,
}

impl Containerd {
    /// Starts it, without the parts that Kubernetes needs, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(den: &Den) -> anyhow::Result<Self> {
        let dir = scratch("containerd")?;
        let path = |name: &str| dir.path().join(name);
        let config = path("config.toml");
        let text = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            root = path("root"),
            state = path("state"),
            socket = path("socket"),
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let cmd = Cmd::new("containerd").arg("--config").arg(&config);
        let mut service = Service::start("containerd", den.wrap(cmd), dir.path())?;
        let socket = path("socket");
        service.wait_until("ready", || ctr(&socket).arg("version").run().is_ok())?;
        Ok(Self { service, dir })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The client, in a namespace (containerd's word) that is the tests' own.
    #[must_use]
    pub fn ctr(&self, den: &Den) -> Cmd {
        den.wrap(ctr(&self.socket()))
    }

    /// Where it keeps a blob, by the blob's `sha256:…` digest.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir.path().join("root/io.containerd.content.v1.content/blobs/sha256").join(hex)
    }
}

fn ctr(socket: &std::path::Path) -> Cmd {
    Cmd::new("ctr").arg("--address").arg(socket).args(["--namespace", "portcullis"])
}
