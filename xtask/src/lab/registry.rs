//! The real docker-registry on a loopback port of its own, with its own storage.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::cmd::Cmd;
use super::den::Den;
use super::pki::Identity;
use super::process::{Service, free_address, random, scratch};

/// A registry that runs until this is dropped.
#[derive(Debug)]
pub struct Registry {
    service: Service,
    addr: SocketAddr,
    prefix: Vec<String>,
    store: PathBuf,
    secret: u64,
    dir: TempDir,
}

impl Registry {
    /// Starts a registry and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_by(Vec::new())
    }

    /// Starts a registry inside a den; the calling thread has to be inside its network, too.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_within(den: &Den) -> anyhow::Result<Self> {
        Self::start_by(den.prefix())
    }

    fn start_by(prefix: Vec<String>) -> anyhow::Result<Self> {
        let dir = scratch("registry")?;
        let store = dir.path().join("data");
        Self::over(prefix, store, random(), dir, "")
    }

    /// Starts another one over the same storage, as behind a load balancer. It must not outlive this one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn sibling(&self) -> anyhow::Result<Self> {
        self.beside("")
    }

    /// Another one over the same storage that speaks TLS itself.
    ///
    /// # Errors
    /// When it does not start.
    pub fn secure_sibling(&self, identity: &Identity) -> anyhow::Result<Self> {
        let (cert, key) = (identity.cert.display(), identity.key.display());
        self.beside(&format!(", tls: {{certificate: {cert}, key: {key}}}"))
    }

    fn beside(&self, tls: &str) -> anyhow::Result<Self> {
        Self::over(self.prefix.clone(), self.store.clone(), self.secret, scratch("registry")?, tls)
    }

    fn over(prefix: Vec<String>, store: PathBuf, secret: u64, dir: TempDir, tls: &str) -> anyhow::Result<Self> {
        let addr = free_address()?;
        let config = dir.path().join("config.yml");
        // The file that Debian ships names an htpasswd path that is a directory; it does not start with it.
        let text = format!(
            "version: 0.1\n\
             log: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{addr}\", secret: \"{secret:x}\"{tls}}}\n",
            root = store.display(),
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let service = serve(dir.path(), &prefix, addr)?;
        Ok(Self { service, addr, prefix, store, secret, dir })
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.service.kill();
    }

    /// Starts it again at the same address with the same storage; what still runs is killed first.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if self.service.exited().is_none() {
            self.kill();
        }
        self.service = serve(self.dir.path(), &self.prefix, self.addr)?;
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
        self.storage().join("blobs/sha256").join(shard).join(hex).join("data")
    }

    /// Whether a repository has a blob: by upload or by mount.
    #[must_use]
    pub fn has(&self, repository: &str, digest: &str) -> bool {
        let hex = digest.trim_start_matches("sha256:");
        self.storage().join("repositories").join(repository).join("_layers/sha256").join(hex).join("link").is_file()
    }

    fn storage(&self) -> PathBuf {
        self.store.join("docker/registry/v2")
    }
}

fn serve(dir: &Path, prefix: &[String], addr: SocketAddr) -> anyhow::Result<Service> {
    let mut cmd = Cmd::new("docker-registry").arg("serve").arg(dir.join("config.yml"));
    if !prefix.is_empty() {
        cmd = cmd.by(prefix);
    }
    let mut service = Service::start("docker-registry", cmd, dir)?;
    service.wait_listening(addr)?;
    Ok(service)
}
