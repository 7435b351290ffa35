//! The cache key: an HMAC over everything that may change the authenticator's answer.
//!
//! The credential itself is never kept, and a dump of the cache is of no use without the boot key. Every part goes
//! in with its length, so that no two different questions write the same bytes ("ab"+"c" and "a"+"bc").

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

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
    /// What the authenticator is told of the request: empty when it judges the credential alone.
    pub scope: &'r [&'r str],
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
        for text in question.scope {
            part(&mut mac, text.as_bytes());
        }
        truncated(mac)
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
    use std::collections::HashSet;

    #[test]
    fn every_part_changes_the_key() {
        let boot = BootKey::new(&[7; 32]);
        let base = Question {
            epoch: 1,
            site: 0,
            secure: true,
            authorization: Some(b"Basic abc"),
            certificate: None,
            scope: &["a", "pull"],
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
            Question { scope: &["a", "push"], ..base },
            Question { scope: &["ap", "ull"], ..base },
            Question { scope: &["a"], ..base },
            Question { scope: &[], ..base },
        ];
        let keys: HashSet<Key> = others.iter().map(|q| boot.key(q)).collect();
        assert_eq!(keys.len(), others.len());
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
