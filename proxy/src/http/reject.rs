//! Why a request head was refused, and the status code that says so.

/// A request that is not understood, and so never forwarded. The connection closes after the answer: what
/// follows on it has no agreed meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The head breaks the grammar; the text names the rule.
    #[error("{0}")]
    Malformed(&'static str),
    /// A TLS ClientHello arrived on a listener that speaks plain HTTP.
    #[error("this port speaks plain HTTP, but the client began a TLS handshake; use http:// or the gate's TLS port")]
    TlsOnPlain,
    /// The request target is longer than the limit.
    #[error("the request target is longer than this gate allows")]
    TargetTooLong,
    /// The head is longer than the limit, in bytes or in fields.
    #[error("the request head is larger than this gate allows")]
    HeadTooLarge,
    /// A transfer coding other than `chunked`.
    #[error("only the transfer coding \"chunked\" is understood")]
    UnknownCoding,
    /// `Expect` with anything but `100-continue`.
    #[error("only \"Expect: 100-continue\" is understood")]
    UnknownExpectation,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are understood")]
    Version,
}

impl Reject {
    /// The status code of the answer (RFC 9110 §15.5 and §15.6, RFC 6585 §5 for 431).
    pub fn status(self) -> u16 {
        match self {
            Reject::Malformed(_) | Reject::TlsOnPlain => 400,
            Reject::TargetTooLong => 414,
            Reject::UnknownExpectation => 417,
            Reject::HeadTooLarge => 431,
            Reject::UnknownCoding => 501,
            Reject::Version => 505,
        }
    }
}
