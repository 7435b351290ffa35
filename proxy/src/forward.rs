//! What crosses the gate: heads written anew, from what was understood, never copied as they came.
//!
//! Writing a request head takes a [`Permit`]; there is no other way to an upstream.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;

use crate::auth::ClientCertificate;
use crate::auth::principal::Principal;
use crate::http::fields::{Field, folds_to, is_asserted_by_gate, is_hop_by_hop, is_rewritten_by_gate, tokens};
use crate::http::{Framing, RequestHead, ResponseHead, Version};
use crate::verdict::Permit;

/// What the gate knows of the connection that a request came on, and tells the upstream.
#[derive(Debug, Clone, Copy)]
pub struct Downstream<'r> {
    /// The client's address.
    pub peer: IpAddr,
    /// Whether its connection is encrypted.
    pub secure: bool,
    /// The certificate that the client proved to hold.
    pub certificate: Option<&'r ClientCertificate>,
    /// The host it asked for; an HTTP/1.0 client without `Host` gets the upstream's authority.
    pub host: &'r str,
    /// Names of fields that only the authenticator may set; a client's own are removed under every fold.
    pub told: &'r [String],
}

impl Downstream<'_> {
    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Appends the request head for the upstream to `out`.
///
/// `target` is the one string that the policy, the cache key and the authenticator saw. The body is framed by
/// `framing` alone, whatever the client's head said.
pub fn request_head(permit: &Permit, head: &RequestHead<'_>, target: &str, from: &Downstream<'_>, out: &mut Vec<u8>) {
    for part in [head.method, " ", target, " HTTP/1.1\r\nHost: ", from.host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for field in &head.fields {
        if is_hop_by_hop(field.name) || is_rewritten_by_gate(field.name) || is_asserted_by_gate(field.name) {
            continue;
        }
        if from.told.iter().any(|name| folds_to(field.name, name)) {
            continue;
        }
        line(out, field.name, field.value);
    }
    assertions(from, out);
    if let Principal::User(name) = permit.principal() {
        line(out, "X-Portcullis-User", name.as_bytes());
    }
    for (name, value) in permit.fields() {
        line(out, name, value);
    }
    framing(head.framing, out);
    if let Some(protocol) = head.switches_to() {
        upgrade(protocol.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends what the gate asserts of the connection: `X-Forwarded-*` and `X-Real-IP`.
pub fn assertions(from: &Downstream<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    let at = out.len();
    // Writing into a Vec does not fail.
    let _ = write!(out, "{}", from.peer);
    let address = at..out.len();
    out.extend_from_slice(b"\r\nX-Real-IP: ");
    out.extend_from_within(address);
    out.extend_from_slice(b"\r\n");
    line(out, "X-Forwarded-Proto", from.scheme().as_bytes());
    line(out, "X-Forwarded-Host", from.host.as_bytes());
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => {
            let _ = write!(out, "Content-Length: {length}\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

fn upgrade(protocol: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"Connection: Upgrade\r\n");
    line(out, "Upgrade", protocol);
}

/// How a response goes on to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponsePlan {
    /// The body's framing towards the client.
    pub framing: Framing,
    /// Whether the connection is kept for another request.
    pub keep_alive: bool,
}

/// Plans a response to a client of `version` that may (`keep_alive`) send another request.
pub fn plan_response(head: &ResponseHead<'_>, version: Version, keep_alive: bool) -> ResponsePlan {
    let framing = match head.framing {
        // An HTTP/1.0 client knows no chunks: the end of the connection is the end of the body.
        Framing::Chunked if version == Version::Http10 => Framing::UntilClose,
        // To others a body that was cut must not look whole, as it does where the end of the connection is its end.
        Framing::UntilClose if version == Version::Http11 => Framing::Chunked,
        framing => framing,
    };
    ResponsePlan { framing, keep_alive: keep_alive && framing != Framing::UntilClose }
}

/// Which locations are the upstream's own, and where the client finds them.
#[derive(Debug, Clone, Copy)]
pub struct OwnOrigin<'r> {
    /// Authorities that mean the upstream: the one it listens on and the one it was told that it has.
    pub authorities: [&'r str; 2],
    /// The site's public URL without a slash at its end; none makes the location relative to the client's own.
    pub public_url: Option<&'r str>,
}

/// Appends the response head for the client to `out`.
pub fn response_head(
    head: &ResponseHead<'_>,
    plan: &ResponsePlan,
    version: Version,
    own: &OwnOrigin<'_>,
    out: &mut Vec<u8>,
) {
    status_line(head, out);
    for field in crossing(head) {
        if field.is("location") {
            line(out, field.name, &location(field.value, own));
        } else {
            // Content-Length among them: it is the body's true length, or what a HEAD would have.
            line(out, field.name, field.value);
        }
    }
    if plan.framing == Framing::Chunked {
        framing(Framing::Chunked, out);
    }
    connection_field(plan.keep_alive, version, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a response that changes the protocol; what follows it has no framing.
pub fn switched_head(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    status_line(head, out);
    for field in crossing(head).filter(|field| !is_rewritten_by_gate(field.name)) {
        line(out, field.name, field.value);
    }
    upgrade(head.field("upgrade").unwrap_or_default(), out);
    out.extend_from_slice(b"\r\n");
}

fn status_line(head: &ResponseHead<'_>, out: &mut Vec<u8>) {
    let digits = [head.status / 100, head.status / 10 % 10, head.status % 10];
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend(digits.map(|digit| b'0' + digit as u8));
    for part in [" ", head.reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The fields of a response that are not for one hop only.
fn crossing<'h>(head: &'h ResponseHead<'_>) -> impl Iterator<Item = &'h Field<'h>> {
    let names = || head.fields.iter().filter(|field| field.is("connection")).flat_map(|field| tokens(field.value));
    // Usually nothing is named but this one, which is for one hop anyway.
    let plain = names().all(|token| token.eq_ignore_ascii_case(b"keep-alive"));
    let named = move |name: &str| !plain && names().any(|token| token.eq_ignore_ascii_case(name.as_bytes()));
    head.fields.iter().filter(move |field| !is_hop_by_hop(field.name) && !named(field.name))
}

/// Appends a `Connection` field where the version's default says otherwise.
pub fn connection_field(keep_alive: bool, version: Version, out: &mut Vec<u8>) {
    match (keep_alive, version) {
        (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (true, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, Version::Http11) => {}
    }
}

/// A location on the upstream's own origin as the client can reach it; any other (an object store's) untouched.
fn location<'v>(value: &'v [u8], own: &OwnOrigin<'_>) -> Cow<'v, [u8]> {
    let Ok(text) = std::str::from_utf8(value) else { return Cow::Borrowed(value) };
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            if !own.authorities.iter().any(|own| own.eq_ignore_ascii_case(authority)) {
                return Cow::Borrowed(value);
            }
            path
        }
        _ if text.starts_with('/') && !text.starts_with("//") => text,
        _ => return Cow::Borrowed(value),
    };
    let slash = if rest.starts_with('/') { "" } else { "/" };
    Cow::Owned([own.public_url.unwrap_or(""), slash, rest].concat().into_bytes())
}

#[cfg(test)]
mod tests;
