//! skopeo, with nothing of this machine's user in it: own home, own temporary files, own cache.

use std::path::Path;

use tempfile::TempDir;

use super::cmd::{Cmd, Output};
use super::process::scratch;

/// How the client trusts the server.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// TLS with the certificates (`*.crt`) of a directory.
    CertDir(&'a Path),
    /// Plain HTTP.
    Plain,
}

/// A client with a home of its own.
#[derive(Debug)]
pub struct Skopeo {
    home: TempDir,
}

impl Skopeo {
    /// A fresh client, without memory of any registry.
    ///
    /// # Errors
    /// When its home cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { home: scratch("skopeo")? })
    }

    /// Pushes the image `latest` of a layout to `HOST:PORT/NAME:TAG`.
    ///
    /// # Errors
    /// When it cannot be started; a refusal is in the output.
    pub fn push(&self, layout: &Path, to: &str, creds: Option<&str>, trust: Trust<'_>) -> anyhow::Result<Output> {
        let cmd = self.copy("dest", creds, trust);
        cmd.arg(format!("oci:{}:latest", layout.display())).arg(format!("docker://{to}")).output()
    }

    /// Pulls `HOST:PORT/NAME:TAG` into a layout, as `latest`.
    ///
    /// # Errors
    /// When it cannot be started; a refusal is in the output.
    pub fn pull(&self, from: &str, layout: &Path, creds: Option<&str>, trust: Trust<'_>) -> anyhow::Result<Output> {
        let cmd = self.copy("src", creds, trust);
        cmd.arg(format!("docker://{from}")).arg(format!("oci:{}:latest", layout.display())).output()
    }

    /// The command, with nothing of this machine's user in it.
    #[must_use]
    pub fn command(&self) -> Cmd {
        let home = self.home.path();
        Cmd::new("skopeo")
            .env("HOME", home)
            .env("XDG_RUNTIME_DIR", home)
            .env("XDG_DATA_HOME", home)
            // As root the blob cache is a fixed place for the whole machine; what it remembers of an old run's port
            // makes the next run try mounts that no test asked for. As anybody else it is in XDG_DATA_HOME.
            .env("_CONTAINERS_ROOTLESS_UID", "65534")
            .args(["--insecure-policy", "--tmpdir"])
            .arg(home)
    }

    fn copy(&self, side: &str, creds: Option<&str>, trust: Trust<'_>) -> Cmd {
        let mut cmd = self.command().args(["copy", "--quiet"]);
        if let Some(creds) = creds {
            cmd = cmd.arg(format!("--{side}-creds")).secret_arg(creds);
        }
        match trust {
            Trust::CertDir(dir) => cmd.arg(format!("--{side}-cert-dir")).arg(dir),
            Trust::Plain => cmd.arg(format!("--{side}-tls-verify=false")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::cmd::which;
    use crate::lab::image;
    use crate::lab::process::random;
    use crate::lab::registry::Registry;

    #[test]
    fn an_image_comes_back_from_the_real_registry_byte_for_byte() {
        if which("docker-registry").is_none() || which("skopeo").is_none() {
            return crate::lab::skips::skip("docker-registry or skopeo is not installed");
        }
        let registry = Registry::start().unwrap();
        let (there, back) = (scratch("image").unwrap(), scratch("image").unwrap());
        let written = image::write(there.path(), &[1, 70_000, 3_000_000], random()).unwrap();
        let skopeo = Skopeo::new().unwrap();
        let name = format!("{}/team/app:1", registry.addr());
        skopeo.push(there.path(), &name, None, Trust::Plain).unwrap().ok().unwrap();
        assert!(registry.blob_file(&written.layers[1]).is_file());
        skopeo.pull(&name, back.path(), None, Trust::Plain).unwrap().ok().unwrap();
        let comparison = image::compare(there.path(), back.path()).unwrap();
        assert_eq!((comparison.blobs, comparison.bytes), (5, written.bytes));
    }
}
