//! The real docker-registry on a loopback port of its own, with its own storage.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::cmd::Cmd;
use super::process::{Service, free_address, random, scratch};

/// A registry that runs until this is dropped.
#[derive(Debug)]
pub struct Registry {
    service: Service,
    addr: SocketAddr,
    dir: TempDir,
}

impl Registry {
    /// Starts a registry and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> anyhow::Result<Self> {
        let dir = scratch("registry")?;
        let addr = free_address()?;
        let config = dir.path().join("config.yml");
        // The file that Debian ships names an htpasswd path that is a directory; it does not start with it.
        let text = format!(
            "version: 0.1\n\
             log: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{addr}\", secret: \"{secret:x}\"}}\n",
            root = dir.path().join("data").display(),
            secret = random(),
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let service = serve(dir.path(), addr)?;
        Ok(Self { service, addr, dir })
    }

    /// Ends it, if it has not, and starts another on the same address and the same storage.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        while self.service.exited().is_none() {
            Cmd::new("kill").args(["-KILL", &self.service.pid().to_string()]).output()?;
        }
        self.service = serve(self.dir.path(), self.addr)?;
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL, as the gate's `--backend` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The process.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Where it keeps a blob, by the blob's `sha256:…` digest.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let shard = hex.get(..2).unwrap_or("00");
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(shard).join(hex).join("data")
    }
}

fn serve(dir: &Path, addr: SocketAddr) -> anyhow::Result<Service> {
    let cmd = Cmd::new("docker-registry").arg("serve").arg(dir.join("config.yml"));
    let mut service = Service::start("docker-registry", cmd, dir)?;
    service.wait_listening(addr)?;
    Ok(service)
}
