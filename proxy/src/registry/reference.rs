//! Tags and digests: what stands behind `manifests/` and `blobs/`.

use std::fmt;
use std::sync::Arc;

/// The longest tag, in bytes.
pub const MAX_TAG_BYTES: usize = 128;

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (OCI distribution specification, "Pull"). Two dots inside a tag are
/// legal; a tag of dots only is not, because the first character cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    /// `None` when `text` is not in the grammar.
    pub fn parse(text: &str) -> Option<Tag> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let (&first, rest) = text.as_bytes().split_first()?;
        let fits = word(first) && rest.len() < MAX_TAG_BYTES && rest.iter().all(|&b| word(b) || b == b'.' || b == b'-');
        fits.then(|| Tag(text.into()))
    }

    /// The tag as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A digest: `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits (OCI image specification, "Registered
/// algorithms"), nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    /// `None` when `text` is not in the grammar.
    pub fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once(':')?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return None,
        };
        let fits = hex.len() == digits && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Digest(text.into()))
    }

    /// `algorithm:hex`, as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within its repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By tag: what it points to may change.
    Tag(Tag),
    /// By content.
    Digest(Digest),
}

impl Reference {
    /// `None` when `text` is neither. No text is both: a tag holds no colon.
    pub fn parse(text: &str) -> Option<Reference> {
        Tag::parse(text).map(Reference::Tag).or_else(|| Digest::parse(text).map(Reference::Digest))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for good in ["latest", "1", "_", "v1.0.0-rc.1", "A_b", "1..2", "tags", "list", "uploads", &"t".repeat(128)] {
            assert_eq!(Reference::parse(good).map(|r| r.to_string()).as_deref(), Some(good));
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a:b", "a b", "a%", "ä", "a\n", "a+b", "a@b", &"t".repeat(129)] {
            assert_eq!(Reference::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn digests() {
        let (a, b) = (format!("sha256:{}", "0f".repeat(32)), format!("sha512:{}", "a9".repeat(64)));
        for good in [a.as_str(), b.as_str()] {
            assert!(matches!(Reference::parse(good), Some(Reference::Digest(digest)) if digest.as_str() == good));
        }
        let (cut, long, upper) = (&a[..a.len() - 1], format!("{a}0"), a.to_uppercase());
        let hex_upper = a.replace('f', "F");
        let (swapped, sha1) = (a.replace("256", "512"), format!("sha1:{}", "0f".repeat(20)));
        for bad in
            ["", ":", "sha256:", "sha256", cut, &long, &upper, &hex_upper, &swapped, &sha1, "sha384:00", "md5:00"]
        {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }
}
