//! Repository names.

use std::fmt;
use std::sync::Arc;

/// The longest repository name, in bytes (distribution's limit for the whole name).
pub const MAX_NAME_BYTES: usize = 255;

/// A repository name that is in the grammar of the OCI distribution specification ("Pull"):
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`, at most [`MAX_NAME_BYTES`].
///
/// distribution itself also takes a host with capitals and a port in front; no client sends one, and a registry that
/// folds case would read two names as one, so it is refused here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// `None` when `text` is not in the grammar.
    pub fn parse(text: &str) -> Option<RepositoryName> {
        let fits = text.len() <= MAX_NAME_BYTES && text.split('/').all(|component| is_component(component.as_bytes()));
        fits.then(|| RepositoryName(text.into()))
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_component(bytes: &[u8]) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    // What stands between the letters and digits: one dot, one or two underscores, or any number of hyphens.
    bytes.split(|b| alphanumeric(b)).all(|separator| match separator {
        [] | [b'.'] | [b'_'] | [b'_', b'_'] => true,
        hyphens => hyphens.iter().all(|&b| b == b'-'),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts() {
        for name in [
            "a",
            "0",
            "library/nginx",
            "team-a/app",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a--b",
            "a---b",
            "a/b/c/d/e",
            "a.b-c_d__e",
            "registry.example.com/x",
            "manifests",
            "blobs/uploads",
            &"a".repeat(255),
        ] {
            assert_eq!(RepositoryName::parse(name).map(|n| n.to_string()).as_deref(), Some(name));
        }
    }

    #[test]
    fn refuses() {
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "aB",
            "a..b",
            "a___b",
            "a._b",
            "a-.b",
            "a_-b",
            "-a",
            "a-",
            "_a",
            "a_",
            ".a",
            "a.",
            "a/.",
            "a/..",
            "..",
            ".",
            "a b",
            "a%2fb",
            "a:5000/b",
            "a@b",
            "ä",
            "a\0",
            "a\n",
            "a\\b",
            "_catalog",
            &"a".repeat(256),
            &"a/".repeat(128),
        ] {
            assert_eq!(RepositoryName::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn the_grammar_is_the_specifications(name in r"[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}){0,3}") {
            prop_assert!(RepositoryName::parse(&name).is_some());
        }

        #[test]
        fn nothing_else_passes(name in r"[a-c0/._-]{1,8}") {
            let bytes = name.as_bytes();
            let separated = |w: &[u8]| w.iter().all(|b| b"/._-".contains(b)) && w[0] != w[1] && w != b"__" ;
            if bytes.windows(2).any(separated) {
                prop_assert!(RepositoryName::parse(&name).is_none());
            }
        }
    }
}
