//! The cache key: an HMAC over everything that may change the authenticator's answer.
//!
//! The credential itself is never kept, and a dump of the cache is of no use without the boot key. Every part goes
//! in with its length, so that no two different questions write the same bytes ("ab"+"c" and "a"+"bc").

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::registry::access::Access;

/// A secret drawn at start-up; keys of one run mean nothing in another.
#[derive(Clone)]
pub struct BootKey(Hmac<Sha256>);

impl std::fmt::Debug for BootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BootKey(…)")
    }
}

/// The name of one question to the authenticator: 128 bits of an HMAC-SHA256.
pub type Key = [u8; 16];

/// What the authenticator can see of a request that may change its answer.
#[derive(Debug, Clone, Copy)]
pub struct Question<'r> {
    /// Increases with every reload, htpasswd change and revocation: older answers are never found again.
    pub epoch: u64,
    /// Which site's authenticator is asked.
    pub site: usize,
    /// Whether the client's connection is encrypted.
    pub secure: bool,
    /// The whole `Authorization` value, scheme included; none when there is none.
    pub authorization: Option<&'r [u8]>,
    /// The SHA-256 of the client's certificate, where it showed one.
    pub certificate: Option<&'r [u8; 32]>,
    /// What it is asked about.
    pub scope: Scope<'r>,
}

/// What the authenticator is told of a request and may judge by.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'r> {
    /// Nothing: it judges the credential alone.
    Credential,
    /// What is to be done in a registry.
    Accesses(&'r [Access]),
    /// All of the request: its method, target and host.
    Request([&'r str; 3]),
    /// Nobody is asked this: it names the note that the credential was refused.
    Refused,
}

impl BootKey {
    /// Takes 32 random bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        // The mutable prefix is computed once; a key of block size or less needs no hashing and cannot be refused.
        let mut block = [0; 64];
        block[..32].copy_from_slice(secret);
        Self(Hmac::new(&block.into()))
    }

    /// The keyed name of anything else that must not be kept itself. Never the key of a question: no epoch comes as far
    /// as what it begins with.
    pub fn name(&self, purpose: &str, parts: &[&[u8]]) -> Key {
        let mut mac = self.0.clone();
        mac.update(&u64::MAX.to_le_bytes());
        part(&mut mac, purpose.as_bytes());
        for bytes in parts {
            part(&mut mac, bytes);
        }
        truncated(mac)
    }

    /// The key of a question.
    pub fn key(&self, question: &Question<'_>) -> Key {
        let mut mac = self.0.clone();
        mac.update(&question.epoch.to_le_bytes());
        mac.update(&(question.site as u64).to_le_bytes());
        mac.update(&[u8::from(question.secure), u8::from(question.authorization.is_some())]);
        part(&mut mac, question.certificate.map_or(&[], |fingerprint| &fingerprint[..]));
        part(&mut mac, question.authorization.unwrap_or_default());
        question.scope.update(&mut mac);
        truncated(mac)
    }
}

impl Scope<'_> {
    /// Each kind begins with a byte of its own, and says how many parts follow.
    fn update(&self, mac: &mut Hmac<Sha256>) {
        match self {
            Scope::Credential => mac.update(&[0]),
            Scope::Accesses(accesses) => {
                mac.update(&[1]);
                mac.update(&(accesses.len() as u64).to_le_bytes());
                for Access { repository, action } in *accesses {
                    mac.update(&[u8::from(repository.is_some())]);
                    part(mac, repository.as_ref().map_or(&[], |name| name.as_str().as_bytes()));
                    part(mac, action.as_str().as_bytes());
                }
            }
            Scope::Request(parts) => {
                mac.update(&[2]);
                parts.iter().for_each(|text| part(mac, text.as_bytes()));
            }
            Scope::Refused => mac.update(&[3]),
        }
    }
}

fn truncated(mac: Hmac<Sha256>) -> Key {
    let digest = mac.finalize().into_bytes();
    let mut key = Key::default();
    key.copy_from_slice(&digest[..16]);
    key
}

fn part(mac: &mut Hmac<Sha256>, bytes: &[u8]) {
    mac.update(&(bytes.len() as u64).to_le_bytes());
    mac.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::access::Action;
    use crate::registry::name::RepositoryName;
    use std::collections::HashSet;

    #[test]
    fn every_part_changes_the_key() {
        let boot = BootKey::new(&[7; 32]);
        let on = |name, action| Access::on(&RepositoryName::parse(name).unwrap(), action);
        let (pull, push, other) = (on("a", Action::Pull), on("a", Action::Push), on("apull", Action::Pull));
        let scopes = [&[pull.clone(), push.clone()][..], &[push.clone(), pull.clone()], &[push], &[other], &[]];
        let catalog = [Access::catalog()];
        let base = Question {
            epoch: 1,
            site: 0,
            secure: true,
            authorization: Some(b"Basic abc"),
            certificate: None,
            scope: Scope::Accesses(std::slice::from_ref(&pull)),
        };
        let others = [
            base,
            Question { epoch: 2, ..base },
            Question { site: 1, ..base },
            Question { secure: false, ..base },
            Question { authorization: None, ..base },
            Question { authorization: Some(b""), ..base },
            Question { authorization: Some(b"Basic abd"), ..base },
            Question { authorization: Some(b"basic abc"), ..base },
            Question { certificate: Some(&[1; 32]), ..base },
            Question { certificate: Some(&[2; 32]), ..base },
            Question { scope: Scope::Credential, ..base },
            Question { scope: Scope::Refused, ..base },
            Question { scope: Scope::Accesses(&catalog), ..base },
            Question { scope: Scope::Request(["GET", "/", "a"]), ..base },
            Question { scope: Scope::Request(["GET", "/a", ""]), ..base },
            Question { scope: Scope::Request(["GET/", "a", ""]), ..base },
        ];
        let others = others.into_iter().chain(scopes.map(|scope| Question { scope: Scope::Accesses(scope), ..base }));
        let keys: Vec<Key> = others.map(|q| boot.key(&q)).collect();
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(boot.key(&base), boot.key(&base));
        assert_ne!(boot.key(&base), BootKey::new(&[8; 32]).key(&base));
    }

    #[test]
    fn names_differ_by_purpose_and_parts() {
        let boot = BootKey::new(&[7; 32]);
        let names = [
            boot.name("a", &[b"x", b"y"]),
            boot.name("b", &[b"x", b"y"]),
            boot.name("a", &[b"xy", b""]),
            boot.name("a", &[b"xy"]),
            BootKey::new(&[8; 32]).name("a", &[b"xy"]),
        ];
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn the_secret_does_not_show() {
        assert_eq!(format!("{:?}", BootKey::new(&[7; 32])), "BootKey(…)");
    }
}
