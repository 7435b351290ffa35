//! The principal: whom a request turned out to come from.

use std::fmt;
use std::sync::Arc;

/// The longest user name that is accepted anywhere, in bytes (Apache's `htpasswd` has the same limit).
pub const MAX_NAME_BYTES: usize = 255;

/// What the name of a client certificate's principal begins with. No login can have such a name: a colon ends the name
/// in Basic credentials and in an htpasswd file. So `alice` with a password and `cert:alice` are two principals.
pub const CERTIFICATE: &str = "cert:";

/// Whom the authenticator recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// Nobody: no credentials were given.
    Anonymous,
    /// A user whose credentials were verified. The name is compared byte for byte, case included.
    User(Arc<str>),
}

impl Principal {
    /// A verified user.
    pub fn user(name: impl Into<Arc<str>>) -> Principal {
        Principal::User(name.into())
    }

    /// The holder of a verified client certificate with this name; none where it cannot be a name.
    pub fn certificate(name: &str) -> Option<Principal> {
        check_certificate_name(name).ok()?;
        Some(Principal::User([CERTIFICATE, name].concat().into()))
    }

    /// The user's name; `None` for anonymous.
    pub fn name(&self) -> Option<&str> {
        match self {
            Principal::Anonymous => None,
            Principal::User(name) => Some(name),
        }
    }
}

/// Prints the name, or `anonymous`: for logs and messages, not for comparing.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("anonymous"))
    }
}

/// Whether `name` can be a user's name in Basic credentials and in an htpasswd file (RFC 7617 §2: no colon, no
/// control characters; a leading `#` would be a comment and a space at either end would be lost in the file).
///
/// # Errors
/// A short text that completes "the user name …".
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("is longer than 255 bytes");
    }
    if name.contains(':') {
        return Err("contains a colon");
    }
    if name.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if name.starts_with('#') {
        return Err("begins with '#', which marks a comment in an htpasswd file");
    }
    if name.trim() != name {
        return Err("begins or ends with a space");
    }
    Ok(())
}

/// Whether `name` can be a principal's: a user's, or `cert:` and a certificate's.
///
/// # Errors
/// A short text that completes "the user name …".
pub fn check_principal(name: &str) -> Result<(), &'static str> {
    name.strip_prefix(CERTIFICATE).map_or_else(|| check_name(name), check_certificate_name)
}

/// As for users, but a URI in a certificate holds a colon, and no file is written where `#` would be a comment.
fn check_certificate_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("has no name behind cert:");
    }
    if name.len() > MAX_NAME_BYTES {
        return Err("is longer than 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("contains a control character");
    }
    if name.trim() != name {
        return Err("begins or ends with a space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_the_name_or_anonymous() {
        assert_eq!(Principal::Anonymous.to_string(), "anonymous");
        assert_eq!(Principal::user("alice").to_string(), "alice");
        assert_eq!(Principal::Anonymous.name(), None);
        assert_ne!(Principal::user("anonymous"), Principal::Anonymous);
    }

    #[test]
    fn a_certificate_is_nobody_who_can_log_in() {
        let alice = Principal::certificate("alice").unwrap();
        assert_eq!(alice.name(), Some("cert:alice"));
        assert_ne!(alice, Principal::user("alice"));
        assert!(check_name("cert:alice").is_err() && check_principal("cert:alice").is_ok());
        assert!(check_principal("alice").is_ok() && check_principal("x:alice").is_err());
        for bad in ["", " a", "a\0", "a\n", &"n".repeat(256)] {
            assert!(Principal::certificate(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "alice", "builder-1", "zoë", "a b", "x@y.example", &"n".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a:b", "a\nb", "a\u{7f}", "a\u{85}b", "#a", " a", "a ", "\u{a0}a", &"n".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
