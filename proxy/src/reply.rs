//! The gate's own answers: the one place where a failure becomes a response.
//!
//! Under `/v2/` of a registry they are OCI JSON, because docker shows "invalid character '<'" for anything else;
//! elsewhere a line of text.

use std::borrow::Cow;
use std::io::Write as _;

use crate::auth::challenge;
use crate::forward::connection_field;
use crate::http::{Reject, Version};
use crate::registry::endpoint::Unknown;
use crate::registry::error::{self, Code};
use crate::verdict::Refusal;

/// Why a request is answered by the gate and not by the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The head was not understood.
    Reject(Reject),
    /// The target is none of a registry's.
    Unknown(Unknown),
    /// An upload route with a form's content type, which the registry would read parameters from.
    FormUpload,
    /// A manifest above this many bytes.
    LargeManifest(usize),
    /// The verdict.
    Refused(Refusal),
    /// Credentials, or the wish for them, on a connection that anybody on the way can read.
    Plaintext,
    /// What is wanted is served under this URL only.
    Moved(String),
    /// The head did not arrive in time.
    HeadTimeout,
    /// No site is configured for this host.
    NoSite,
    /// The upstream cannot be reached or does not speak HTTP.
    BadGateway(&'static str),
    /// The upstream did not answer in time.
    GatewayTimeout,
}

/// What shapes an answer beside the failure itself.
#[derive(Debug, Clone, Copy)]
pub struct Style<'r> {
    /// Answer in OCI JSON.
    pub oci: bool,
    /// The realm of a synthesised challenge.
    pub realm: &'r str,
    /// The client's version.
    pub version: Version,
    /// Leave the body out, keep its length (HEAD).
    pub head_only: bool,
    /// Whether the connection is kept.
    pub keep_alive: bool,
}

impl Failure {
    /// The status code.
    pub fn status(&self) -> u16 {
        match self {
            Failure::Reject(reject) => reject.status(),
            Failure::Unknown(unknown) => unknown.status(),
            Failure::FormUpload => 415,
            Failure::LargeManifest(_) => 413,
            Failure::Refused(Refusal::Unauthenticated { .. }) => 401,
            Failure::Refused(Refusal::Forbidden { .. }) | Failure::Plaintext => 403,
            Failure::Refused(Refusal::Throttled { .. }) => 429,
            Failure::Refused(Refusal::Unavailable { .. }) => 503,
            Failure::Moved(_) => 308,
            Failure::HeadTimeout => 408,
            Failure::NoSite => 421,
            Failure::BadGateway(_) => 502,
            Failure::GatewayTimeout => 504,
        }
    }

    fn code(&self) -> Code {
        match self {
            Failure::Unknown(unknown) => unknown.code(),
            Failure::LargeManifest(_) => Code::ManifestInvalid,
            Failure::Refused(Refusal::Unauthenticated { .. }) => Code::Unauthorized,
            Failure::Refused(Refusal::Forbidden { .. }) | Failure::Plaintext => Code::Denied,
            Failure::Refused(Refusal::Throttled { .. }) => Code::TooManyRequests,
            Failure::Refused(Refusal::Unavailable { .. }) | Failure::BadGateway(_) | Failure::GatewayTimeout => {
                Code::Unavailable
            }
            Failure::Moved(_) | Failure::Reject(_) | Failure::FormUpload | Failure::HeadTimeout | Failure::NoSite => {
                Code::Unsupported
            }
        }
    }

    /// What is wrong and who can do something about it; it is what the person at the client sees.
    pub fn message(&self) -> Cow<'_, str> {
        match self {
            Failure::Reject(reject) => Cow::Owned(reject.to_string()),
            Failure::Unknown(unknown) => Cow::Borrowed(unknown.message()),
            Failure::Refused(Refusal::Forbidden { message }) => Cow::Borrowed(message),
            Failure::FormUpload => Cow::Borrowed("an upload is not a form: send application/octet-stream"),
            Failure::LargeManifest(most) => {
                Cow::Owned(format!("a manifest may have {most} bytes here: ask the gate's administrator for more"))
            }
            Failure::Refused(Refusal::Unauthenticated { .. }) => {
                Cow::Borrowed("a user name and password that this gate knows are needed: log in first")
            }
            Failure::Refused(Refusal::Throttled { .. }) => Cow::Borrowed("too many attempts: try again later"),
            Failure::Refused(Refusal::Unavailable { .. }) => Cow::Borrowed(
                "logins cannot be checked at the moment: try again shortly, or tell the gate's administrator",
            ),
            Failure::Plaintext => Cow::Borrowed(
                "this address is not encrypted, so the gate takes no passwords here: use its https:// address",
            ),
            Failure::Moved(url) => Cow::Owned(format!("use {url}")),
            Failure::HeadTimeout => Cow::Borrowed("the request did not arrive in time"),
            Failure::NoSite => Cow::Borrowed("this gate serves no site of that name: check the host in the address"),
            Failure::BadGateway(what) => Cow::Borrowed(what),
            Failure::GatewayTimeout => Cow::Borrowed("the service behind this gate did not answer in time"),
        }
    }

    /// Appends the whole response to `out`.
    pub fn write(&self, style: &Style<'_>, out: &mut Vec<u8>) {
        let message = self.message();
        let (content_type, body) = if style.oci {
            (error::CONTENT_TYPE, error::body(self.code(), &message, None))
        } else {
            ("text/plain; charset=utf-8", format!("{message}\n"))
        };
        // Writing into a Vec does not fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status(), reason(self.status()));
        if style.oci {
            out.extend_from_slice(b"Docker-Distribution-Api-Version: registry/2.0\r\n");
        }
        match self {
            Failure::Refused(Refusal::Unauthenticated { challenge: Some(relayed) }) => {
                let _ = write!(out, "WWW-Authenticate: {relayed}\r\n");
            }
            Failure::Refused(Refusal::Unauthenticated { challenge: None }) => {
                let _ = write!(out, "WWW-Authenticate: {}\r\n", challenge::basic(style.realm));
            }
            Failure::Refused(Refusal::Throttled { retry_after }) => {
                let _ = write!(out, "Retry-After: {retry_after}\r\n");
            }
            Failure::Refused(Refusal::Unavailable { .. }) | Failure::BadGateway(_) => {
                let _ = write!(out, "Retry-After: 5\r\n");
            }
            Failure::Moved(url) => {
                let _ = write!(out, "Location: {url}\r\n");
            }
            Failure::Unknown(Unknown::MethodNotAllowed { allow }) => {
                let _ = write!(out, "Allow: {allow}\r\n");
            }
            _ => {}
        }
        let _ = write!(out, "Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
        // Whatever lies between must not hand one user's refusal to another.
        out.extend_from_slice(b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n");
        connection_field(style.keep_alive, style.version, out);
        out.extend_from_slice(b"\r\n");
        if !style.head_only {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

/// The reason phrases of the statuses that the gate itself sends (RFC 9110 §15, RFC 6585).
fn reason(status: u16) -> &'static str {
    match status {
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style<'_> =
        Style { oci: true, realm: "Registry", version: Version::Http11, head_only: false, keep_alive: true };

    fn written(failure: &Failure, style: &Style<'_>) -> String {
        let mut out = Vec::new();
        failure.write(style, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_login_is_asked_for_in_the_registrys_language() {
        let failure = Failure::Refused(Refusal::Unauthenticated { challenge: None });
        let got = written(&failure, &STYLE);
        assert!(got.starts_with("HTTP/1.1 401 Unauthorized\r\nDocker-Distribution-Api-Version: registry/2.0\r\n"));
        assert!(got.contains("\r\nWWW-Authenticate: Basic realm=\"Registry\"\r\n"), "{got}");
        let (_, body) = got.split_once("\r\n\r\n").expect("a body");
        assert!(body.starts_with("{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\""), "{body}");
        assert!(got.contains(&format!("Content-Length: {}\r\n", body.len())), "{got}");
    }

    #[test]
    fn an_authenticators_challenge_is_relayed() {
        let failure = Failure::Refused(Refusal::Unauthenticated { challenge: Some("Basic realm=\"LDAP\"".into()) });
        assert!(written(&failure, &STYLE).contains("\r\nWWW-Authenticate: Basic realm=\"LDAP\"\r\n"));
    }

    #[test]
    fn head_has_a_length_and_no_body() {
        let failure = Failure::Refused(Refusal::Unavailable { why: "x" });
        let got = written(&failure, &Style { head_only: true, oci: false, keep_alive: false, ..STYLE });
        assert!(got.ends_with("Connection: close\r\n\r\n"), "{got}");
        assert!(got.contains("Retry-After: 5\r\n") && !got.contains("Content-Length: 0"), "{got}");
        assert!(!got.contains("Docker-Distribution"), "{got}");
    }

    #[test]
    fn every_failure_has_a_phrase_and_a_message() {
        for failure in [
            Failure::Reject(Reject::TargetTooLong),
            Failure::FormUpload,
            Failure::LargeManifest(4 << 20),
            Failure::Plaintext,
            Failure::HeadTimeout,
            Failure::NoSite,
            Failure::BadGateway("down"),
            Failure::GatewayTimeout,
            Failure::Refused(Refusal::Throttled { retry_after: 7 }),
            Failure::Refused(Refusal::Forbidden { message: "no".to_owned() }),
            Failure::Refused(Refusal::Unavailable { why: "x" }),
            Failure::Moved("https://r.example/".to_owned()),
            Failure::Unknown(Unknown::MethodNotAllowed { allow: "GET, HEAD" }),
        ] {
            assert_ne!(reason(failure.status()), "", "{failure:?}");
            assert!(!failure.message().is_empty());
            for oci in [true, false] {
                let got = written(&failure, &Style { oci, ..STYLE });
                let (head, body) = got.split_once("\r\n\r\n").expect("a body");
                assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{got}");
                assert!(head.contains("\r\nCache-Control: no-store\r\n"), "{got}");
                assert_eq!(body.starts_with("{\"errors\":"), oci, "{got}");
            }
        }
    }

    #[test]
    fn what_helps_the_client_on_stands_in_the_head() {
        for (failure, line) in [
            (Failure::Refused(Refusal::Throttled { retry_after: 7 }), "Retry-After: 7"),
            (Failure::BadGateway("down"), "Retry-After: 5"),
            (Failure::Moved("https://r.example/".to_owned()), "Location: https://r.example/"),
            (Failure::Unknown(Unknown::MethodNotAllowed { allow: "GET, HEAD" }), "Allow: GET, HEAD"),
        ] {
            let got = written(&failure, &STYLE);
            assert!(got.contains(&format!("\r\n{line}\r\n")), "{got}");
        }
    }
}
