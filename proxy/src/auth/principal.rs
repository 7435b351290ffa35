//! The principal: whom a request turned out to come from.

use std::fmt;
use std::sync::Arc;

/// The longest user name that is accepted anywhere, in bytes (Apache's `htpasswd` has the same limit).
pub const MAX_NAME_BYTES: usize = 255;

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
    fn names() {
        for good in ["a", "alice", "builder-1", "zoë", "a b", "x@y.example", &"n".repeat(255)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a:b", "a\nb", "a\u{7f}", "a\u{85}b", "#a", " a", "a ", "\u{a0}a", &"n".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
