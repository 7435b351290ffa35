//! A certificate authority and the certificates that it signs, by the `openssl` command.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cmd::Cmd;

/// A private CA in a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    /// The CA's certificate.
    pub cert: PathBuf,
    key: PathBuf,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The key, PEM (PKCS #8).
    pub key: PathBuf,
}

/// A kind of key.
#[derive(Debug, Clone, Copy)]
pub enum Key {
    /// ECDSA on P-256.
    P256,
    /// RSA, 2048 bits.
    Rsa2048,
}

impl Authority {
    /// Makes a CA; its files are `ca.crt` and `ca.key` in `dir`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn create(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        openssl(dir)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
            .args(["-subj", &format!("/CN={name}"), "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .run()?;
        Ok(Self { dir: dir.to_owned(), cert, key })
    }

    /// Signs a certificate for names and addresses; its files are `NAME.crt` and `NAME.key`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> anyhow::Result<Identity> {
        self.issue_as(name, hosts, Key::P256, 30)
    }

    /// The same with a key of this kind, for so many days from now; a negative number makes one that has expired.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn issue_as(&self, name: &str, hosts: &[&str], kind: Key, days: i32) -> anyhow::Result<Identity> {
        let file = |end: &str| self.dir.join(format!("{name}.{end}"));
        let (cert, key, request, extensions) = (file("crt"), file("key"), file("csr"), file("ext"));
        let names: Vec<String> = hosts
            .iter()
            .map(|host| format!("{}:{host}", if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" }))
            .collect();
        let text = format!(
            "subjectAltName={}\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n",
            names.join(",")
        );
        fs::write(&extensions, text).with_context(|| format!("cannot write {}", extensions.display()))?;
        let kind: &[&str] = match kind {
            Key::P256 => &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Key::Rsa2048 => &["rsa:2048"],
        };
        openssl(&self.dir)
            .args(["req", "-nodes", "-newkey"])
            .args(kind)
            .args(["-subj", &format!("/CN={name}"), "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&request)
            .run()?;
        openssl(&self.dir)
            .args(["x509", "-req", "-days", &days.to_string(), "-CAcreateserial", "-in"])
            .arg(&request)
            .arg("-CA")
            .arg(&self.cert)
            .arg("-CAkey")
            .arg(&self.key)
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(&cert)
            .run()?;
        Ok(Identity { cert, key })
    }
}

fn openssl(dir: &Path) -> Cmd {
    Cmd::new("openssl").dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::process::scratch;

    #[test]
    fn the_certificate_is_good_for_its_names_only() {
        let dir = scratch("pki").unwrap();
        let authority = Authority::create(dir.path(), "Test CA").unwrap();
        let identity = authority.issue("gate", &["localhost", "registry.test", "127.0.0.1", "::1"]).unwrap();
        let verify = |kind: &str, name: &str| {
            let cmd = openssl(dir.path()).args(["verify", kind, name, "-CAfile"]).arg(&authority.cert);
            cmd.arg(&identity.cert).run()
        };
        verify("-verify_hostname", "registry.test").unwrap();
        verify("-verify_ip", "127.0.0.1").unwrap();
        verify("-verify_hostname", "other.test").unwrap_err();
        assert!(fs::read_to_string(&identity.key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    }
}
