//! The query of a registry request: known keys only, once each, values decoded strictly for judgement.
//!
//! What goes on upstream is the text that the client sent, so the text must have one meaning only. Hence no `;` (once a
//! separator), no bare `+` (a space to some, a plus to others), no encoded keys, no empty pairs, no key without `=`.

use super::reference::Digest;
use super::{Code, RepositoryName, Unknown};

/// The longest value after decoding, in bytes.
const MAX_VALUE_BYTES: usize = 4096;

/// The keys that some endpoint understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Page size.
    N,
    /// Where the page before ended.
    Last,
    /// The digest to mount instead of uploading.
    Mount,
    /// The repository to mount from.
    From,
    /// The digest of what is uploaded.
    Digest,
    /// The algorithm that the upload will be checked with.
    DigestAlgorithm,
    /// distribution's signed upload state.
    State,
    /// The filter of the referrers list.
    ArtifactType,
    /// The registry that a mirror stands for: containerd adds it to every request to a mirror.
    Ns,
}

impl Key {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Key::N => "n",
            Key::Last => "last",
            Key::Mount => "mount",
            Key::From => "from",
            Key::Digest => "digest",
            Key::DigestAlgorithm => "digest-algorithm",
            Key::State => "_state",
            Key::ArtifactType => "artifactType",
            Key::Ns => "ns",
        }
    }

    fn check(self, value: &str) -> Result<(), (Code, &'static str)> {
        let (fits, code, wants) = match self {
            Key::N => (is_count(value), Code::Unsupported, "a number of at most six digits"),
            Key::Last => (value.is_empty() || is_opaque(value), Code::Unsupported, "a tag or a repository name"),
            Key::Mount | Key::Digest => {
                (Digest::parse(value).is_some(), Code::DigestInvalid, "a sha256 or sha512 digest in lower case")
            }
            Key::From => (RepositoryName::parse(value).is_some(), Code::NameInvalid, "a repository name"),
            Key::DigestAlgorithm => (matches!(value, "sha256" | "sha512"), Code::Unsupported, "sha256 or sha512"),
            Key::State => (is_opaque(value), Code::BlobUploadInvalid, "the text that the registry gave"),
            Key::ArtifactType => (value.is_empty() || is_media_type(value), Code::Unsupported, "a media type"),
            Key::Ns => (is_host(value), Code::Unsupported, "a host name, with or without a port"),
        };
        if fits { Ok(()) } else { Err((code, wants)) }
    }
}

/// One pair: what it means, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Which.
    pub key: Key,
    /// Decoded and in the grammar of the key.
    pub value: String,
    /// `key=value` as the client sent it.
    pub raw: &'a str,
}

/// Reads the part behind `?`. An empty query is no pairs.
///
/// # Errors
/// [`Unknown::Malformed`]: a key outside `allowed`, twice, or not written plainly; a value out of its grammar.
pub fn parse<'a>(query: &'a str, allowed: &[Key]) -> Result<Vec<Pair<'a>>, Unknown> {
    if query.is_empty() {
        return Ok(Vec::new());
    }
    let mut pairs: Vec<Pair<'a>> = Vec::new();
    for raw in query.split('&') {
        let (word, encoded) =
            raw.split_once('=').ok_or_else(|| malformed("the query is not made of key=value pairs"))?;
        let key = *allowed
            .iter()
            .find(|key| key.as_str() == word)
            .ok_or_else(|| malformed("the query holds a parameter that this endpoint does not take"))?;
        if pairs.iter().any(|pair| pair.key == key) {
            return Err(malformed(&format!("the query holds {word} twice")));
        }
        let value = decode(encoded).ok_or_else(|| {
            malformed(&format!("the value of {word} is not percent-encoded correctly (a plus is %2B)"))
        })?;
        key.check(&value).map_err(|(code, wants)| Unknown::Malformed {
            code,
            message: format!("the value of {word} is not {wants}"),
        })?;
        pairs.push(Pair { key, value, raw });
    }
    Ok(pairs)
}

fn malformed(message: &str) -> Unknown {
    Unknown::Malformed { code: Code::Unsupported, message: message.to_owned() }
}

/// RFC 3986 §2.1 and §3.4 without `;`, `+` and, of course, `&`; the result is printable ASCII or nothing.
fn decode(encoded: &str) -> Option<String> {
    let mut value = String::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(b) = bytes.next() {
        let b = match b {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            _ if b.is_ascii_alphanumeric() || b"-._~!$'()*,:@/?=".contains(&b) => b,
            _ => return None,
        };
        if !(b'!'..=b'~').contains(&b) {
            return None;
        }
        value.push(char::from(b));
    }
    (value.len() <= MAX_VALUE_BYTES).then_some(value)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Registries have been seen to set aside memory for as many names as were asked for.
fn is_count(value: &str) -> bool {
    (1..=6).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit())
}

fn is_opaque(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:/=+@".contains(&b))
}

fn is_media_type(value: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    value.len() <= 255 && value.split_once('/').is_some_and(|(kind, subtype)| is_part(kind) && is_part(subtype))
}

fn is_host(value: &str) -> bool {
    (1..=261).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Key; 9] = [
        Key::N,
        Key::Last,
        Key::Mount,
        Key::From,
        Key::Digest,
        Key::DigestAlgorithm,
        Key::State,
        Key::ArtifactType,
        Key::Ns,
    ];

    #[test]
    fn values() {
        for (query, value) in [
            ("n=100", "100"),
            ("last=", ""),
            ("last=t%2fsk", "t/sk"),
            ("last=v1.0", "v1.0"),
            ("from=t/sk", "t/sk"),
            ("from=t%2Fsk", "t/sk"),
            ("_state=aB-_%3D%3d", "aB-_=="),
            ("_state=aB-_==", "aB-_=="),
            ("artifactType=application%2Fvnd.x%2Bjson", "application/vnd.x+json"),
            ("artifactType=application/vnd.x", "application/vnd.x"),
            ("ns=docker.io", "docker.io"),
            ("ns=registry.example.com%3A5000", "registry.example.com:5000"),
            ("digest-algorithm=sha512", "sha512"),
        ] {
            let pairs = parse(query, &ALL).unwrap();
            assert_eq!((pairs[0].value.as_str(), pairs[0].raw), (value, query));
        }
        assert_eq!(parse("", &ALL), Ok(Vec::new()));
    }

    #[test]
    fn refuses() {
        for query in [
            "n",
            "=",
            "=1",
            "&",
            "n=1&",
            "&n=1",
            "n=1&&last=a",
            "n=1&n=1",
            "n=1&n=2",
            "%6e=1",
            "N=1",
            "n =1",
            "n=1;last=a",
            "n=1%26last=a",
            "n=-1",
            "n=",
            "n=1000000",
            "n=0x1",
            "n=1#a",
            "last=a+b",
            "last=a%20b",
            "last=a%00",
            "last=a%0a",
            "last=%",
            "last=%4",
            "last=%zz",
            "last=%c3%bc",
            "last=a\\b",
            "last=\u{fc}",
            "last=a b",
            "last=<x>",
            "from=A",
            "from=t%252Fsk",
            "from=../x",
            "from=",
            "mount=",
            "mount=sha256%3Aabc",
            "digest=sha256:00",
            "digest=",
            "_state=",
            "_state=a%22b",
            "artifactType=x",
            "artifactType=a/b;c=d",
            "artifactType=application/vnd.x+json",
            "ns=",
            "ns=a/b",
            "digest-algorithm=md5",
            "unknown=1",
            "mount[]=x",
            "digest.x=1",
        ] {
            let error = parse(query, &ALL).unwrap_err();
            assert_eq!(error.status(), 400, "{query}");
            assert!(!error.message().is_empty());
        }
        let long = format!("_state={}", "a".repeat(MAX_VALUE_BYTES + 1));
        assert!(parse(&long, &ALL).is_err() && parse("n=1", &[]).is_err());
    }

    #[test]
    fn codes() {
        for (query, code) in [
            ("from=A", Code::NameInvalid),
            ("mount=x", Code::DigestInvalid),
            ("_state=", Code::BlobUploadInvalid),
            ("x=y", Code::Unsupported),
        ] {
            assert_eq!(parse(query, &ALL).unwrap_err().code(), code, "{query}");
        }
    }
}
