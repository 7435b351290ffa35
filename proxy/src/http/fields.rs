//! Field names: comparison, folding, and the sets of names that must not cross the gate.

/// One field line of a head, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'b> {
    /// The name in the sender's spelling; a token (RFC 9110 §5.1).
    pub name: &'b str,
    /// The value without the white space around it.
    pub value: &'b [u8],
}

impl Field<'_> {
    /// Whether the field has this name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// Fields that speak to the next hop only (RFC 9110 §7.6.1), and the ones that would reframe a message.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields by which the gate tells the upstream who asks and from where. From a client they are lies.
const ASSERTED_BY_GATE: &[&str] = &[
    "forwarded",
    "x-real-ip",
    "x-original-uri",
    "x-original-url",
    "x-original-method",
    "x-rewrite-url",
    "x-auth-user",
    "x-remote-user",
    "remote-user",
    "proxy",
];

/// Whole families of them.
const ASSERTED_PREFIXES: &[&str] = &["x-forwarded-", "x-portcullis-"];

/// Whether `name` is `known` once case and the `_` that CGI-like upstreams read as `-` are folded.
///
/// `known` is in lower case with dashes.
pub fn folds_to(name: &str, known: &str) -> bool {
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(|(a, b)| fold(a) == b)
}

fn fold(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }
}

fn folds_to_prefix(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| folds_to(start, prefix))
}

/// Whether a field is for one hop only and never forwarded, either way.
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.iter().any(|known| folds_to(name, known))
}

/// Whether a client's field would be believed by the upstream as the gate's word, under any fold of its name.
pub fn is_asserted_by_gate(name: &str) -> bool {
    ASSERTED_BY_GATE.iter().any(|known| folds_to(name, known))
        || ASSERTED_PREFIXES.iter().any(|prefix| folds_to_prefix(name, prefix))
}

/// Whether the gate writes this request field itself, so that the client's line is consumed, not copied.
pub fn is_rewritten_by_gate(name: &str) -> bool {
    ["host", "content-length", "expect", "authorization"].iter().any(|known| folds_to(name, known))
}

/// Whether a comma-separated value names `token`, in any case.
pub fn names_token(value: &[u8], token: &str) -> bool {
    tokens(value).any(|t| t.eq_ignore_ascii_case(token.as_bytes()))
}

/// The elements of a comma-separated value, trimmed, empty ones left out (RFC 9110 §5.6.1).
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_fields_are_caught_under_every_fold() {
        for name in [
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-FORWARDED_proto",
            "X-Real-IP",
            "X_Real_IP",
            "X-Portcullis-User",
            "x_portcullis-user",
            "Forwarded",
            "Proxy",
            "X-Auth_User",
        ] {
            assert!(is_asserted_by_gate(name), "{name}");
        }
        for name in ["X-Forward", "Accept", "X-Request-Id", "X-Docker-Token", "é"] {
            assert!(!is_asserted_by_gate(name), "{name}");
        }
    }

    #[test]
    fn framing_fields_are_caught_with_underscores() {
        assert!(is_hop_by_hop("Transfer_Encoding"));
        assert!(is_rewritten_by_gate("Content_Length"));
        assert!(is_rewritten_by_gate("AUTHORIZATION"));
        assert!(!is_hop_by_hop("Content-Type"));
    }

    #[test]
    fn tokens_are_split_trimmed_and_compared_without_case() {
        assert!(names_token(b" close , TE", "te"));
        assert!(!names_token(b"closed", "close"));
        assert_eq!(tokens(b", ,").count(), 0);
    }
}
