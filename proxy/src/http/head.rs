//! Request and response heads: found, parsed and judged.
//!
//! A head is parsed only once it is complete, from its first byte, so that it makes no difference in how many
//! pieces it came; [`end`] finds out when that is, and stops early at bytes that can never become a head.

use std::mem::MaybeUninit;

use httparse::Header;

use super::fields::{Field, names_token, tokens};
use super::framing::{self, Framing};
use super::reject::Reject;

/// The protocol version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunked coding, one exchange a connection unless asked.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How large a request head may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole head, the empty line included.
    pub head_bytes: usize,
    /// Bytes of the request target.
    pub target_bytes: usize,
    /// Number of field lines.
    pub fields: usize,
}

/// The bounds of a response head. An upstream is trusted more than a client, but not with all our memory.
pub const RESPONSE_LIMITS: Limits = Limits { head_bytes: 64 * 1024, target_bytes: 0, fields: 200 };

/// The limits on fields up to which nothing is allocated for them.
const USUAL_FIELDS: usize = 200;

/// A request head that has one meaning only.
#[derive(Debug)]
pub struct RequestHead<'b> {
    /// The method, a token.
    pub method: &'b str,
    /// The target in origin form: it begins with `/` and is printable ASCII without `#` and `\`.
    pub target: &'b str,
    /// The version.
    pub version: Version,
    /// The one `Host`; an HTTP/1.0 client may leave it out.
    pub host: Option<&'b str>,
    /// The value of the one `Authorization`.
    pub authorization: Option<&'b [u8]>,
    /// The length of the body.
    pub framing: Framing,
    /// Whether the client wants to send another request on this connection.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether `Connection` names `Upgrade`.
    pub upgrade: bool,
    /// All field lines in their order.
    pub fields: Vec<Field<'b>>,
}

/// A response head.
#[derive(Debug)]
pub struct ResponseHead<'b> {
    /// The status code, 100 to 599.
    pub status: u16,
    /// The reason phrase, perhaps empty.
    pub reason: &'b str,
    /// The version.
    pub version: Version,
    /// The length of the body, with the request's method taken into account.
    pub framing: Framing,
    /// Whether the sender keeps the connection open after this message.
    pub keep_alive: bool,
    /// All field lines in their order.
    pub fields: Vec<Field<'b>>,
}

impl<'b> RequestHead<'b> {
    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        first(&self.fields, name)
    }
}

impl<'b> ResponseHead<'b> {
    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        first(&self.fields, name)
    }
}

fn first<'b>(fields: &[Field<'b>], name: &str) -> Option<&'b [u8]> {
    fields.iter().find(|field| field.is(name)).map(|field| field.value)
}

/// Looks for the end of a request head in `buffer`, of which the first `seen` bytes were looked at before.
///
/// Gives the length of the head with its empty line, or `None` when more bytes are needed.
///
/// # Errors
/// As soon as the bytes can no longer become an acceptable head: waiting for more would only keep a broken
/// client and a socket waiting for the deadline.
pub fn end(buffer: &[u8], seen: usize, limits: &Limits) -> Result<Option<usize>, Reject> {
    match buffer.first() {
        Some(0x16) => return Err(Reject::TlsOnPlain),
        Some(first) if !first.is_ascii_alphanumeric() => {
            return Err(Reject::Malformed("a request begins with its method"));
        }
        _ => {}
    }
    // Step back over what may be the first part of an empty line cut in two.
    let from = seen.saturating_sub(3);
    for lf in memchr::memchr_iter(b'\n', &buffer[from..]).map(|at| from + at) {
        if lf == 0 || buffer[lf - 1] != b'\r' {
            return Err(Reject::Malformed("a line ends with LF alone"));
        }
        if lf >= 3 && buffer[lf - 2] == b'\n' {
            let len = lf + 1;
            return if len > limits.head_bytes { Err(too_long(buffer, limits)) } else { Ok(Some(len)) };
        }
    }
    if buffer.len() >= limits.head_bytes { Err(too_long(buffer, limits)) } else { Ok(None) }
}

/// Whether it is the target or the fields that made the head too long.
fn too_long(buffer: &[u8], limits: &Limits) -> Reject {
    match memchr::memchr(b'\n', buffer) {
        Some(line) if line <= limits.target_bytes + 64 => Reject::HeadTooLarge,
        _ => Reject::TargetTooLong,
    }
}

/// Parses one complete request head: the bytes up to and with the empty line, as [`end`] found them.
///
/// # Errors
/// [`Reject`] for everything that two parsers could read in two ways.
pub fn request<'b>(head: &'b [u8], limits: &Limits) -> Result<RequestHead<'b>, Reject> {
    let (mut few, mut many) = ([const { MaybeUninit::uninit() }; USUAL_FIELDS], Vec::new());
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, slots(&mut few, &mut many, limits)) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(Reject::Malformed("the head ends before its empty line")),
        Err(error) => return Err(from_httparse(error)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Reject::Malformed("the request line is incomplete"));
    };
    strict_lines(head)?;
    strict_target(method, target, limits)?;
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let fields = own_fields(parsed.headers);
    let declared = framing::declared(&fields, version)?;
    Ok(RequestHead {
        method,
        target,
        version,
        host: host(&fields, version)?,
        authorization: at_most_one(&fields, "authorization", "more than one Authorization")?,
        framing: match (declared.chunked, declared.length) {
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::None,
        },
        keep_alive: request_keep_alive(&fields, version)?,
        expects_continue: expects_continue(&fields, version)?,
        upgrade: fields.iter().any(|f| f.is("connection") && names_token(f.value, "upgrade")),
        fields,
    })
}

/// Places for as many fields as the limits allow: on the stack, and not even cleared, unless somebody allows more than
/// there are usually.
fn slots<'s, 'b>(
    few: &'s mut [MaybeUninit<Header<'b>>; USUAL_FIELDS],
    many: &'s mut Vec<MaybeUninit<Header<'b>>>,
    limits: &Limits,
) -> &'s mut [MaybeUninit<Header<'b>>] {
    if limits.fields <= USUAL_FIELDS {
        return &mut few[..limits.fields];
    }
    many.resize_with(limits.fields, MaybeUninit::uninit);
    many
}

/// Finds the end of a response head; see [`end`].
///
/// # Errors
/// On a bare LF and past the size limit.
pub fn response_end(buffer: &[u8], seen: usize) -> Result<Option<usize>, Reject> {
    if buffer.iter().zip(b"HTTP/1.").any(|(got, want)| got != want) {
        return Err(Reject::Malformed("a response begins with HTTP/1."));
    }
    end(buffer, seen, &RESPONSE_LIMITS)
}

/// Parses one complete response head to a request with `method`.
///
/// # Errors
/// [`Reject`] when the response's framing is ambiguous or the head malformed; it must not be relayed.
pub fn response<'b>(head: &'b [u8], method: &str) -> Result<ResponseHead<'b>, Reject> {
    let (mut few, mut many) = ([const { MaybeUninit::uninit() }; USUAL_FIELDS], Vec::new());
    let mut parsed = httparse::Response::new(&mut []);
    let slots = slots(&mut few, &mut many, &RESPONSE_LIMITS);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, slots) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(Reject::Malformed("the head ends before its empty line")),
        Err(error) => return Err(from_httparse(error)),
    }
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(Reject::Malformed("the status line is incomplete"));
    };
    if !(100..600).contains(&status) {
        return Err(Reject::Malformed("the status code is not one of HTTP's"));
    }
    strict_lines(head)?;
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let reason = parsed.reason.unwrap_or("");
    let fields = own_fields(parsed.headers);
    let declared = framing::declared(&fields, version)?;
    // RFC 9112 §6.3, in its order.
    let framing = if method == "HEAD" || status < 200 || status == 204 || status == 304 {
        Framing::None
    } else if declared.chunked {
        Framing::Chunked
    } else {
        declared.length.map_or(Framing::UntilClose, Framing::Length)
    };
    let named = |token| fields.iter().any(|f| f.is("connection") && names_token(f.value, token));
    let keep_alive = framing != Framing::UntilClose
        && match version {
            Version::Http11 => !named("close"),
            Version::Http10 => named("keep-alive") && !named("close"),
        };
    Ok(ResponseHead { status, reason, version, framing, keep_alive, fields })
}

fn from_httparse(error: httparse::Error) -> Reject {
    match error {
        httparse::Error::TooManyHeaders => Reject::HeadTooLarge,
        httparse::Error::Version => Reject::Version,
        httparse::Error::HeaderName => Reject::Malformed("malformed field name"),
        httparse::Error::HeaderValue => Reject::Malformed("malformed field value"),
        httparse::Error::Token | httparse::Error::NewLine => Reject::Malformed("malformed request line or line end"),
        httparse::Error::Status => Reject::Malformed("malformed status line"),
    }
}

/// What `httparse` lets pass between the lines: bare LF, bare CR, folded fields, NUL.
fn strict_lines(head: &[u8]) -> Result<(), Reject> {
    for lf in memchr::memchr_iter(b'\n', head) {
        if lf == 0 || head[lf - 1] != b'\r' {
            return Err(Reject::Malformed("a line ends with LF alone"));
        }
        if matches!(head.get(lf + 1), Some(b' ' | b'\t')) {
            return Err(Reject::Malformed("a field is folded over several lines"));
        }
    }
    if memchr::memchr_iter(b'\r', head).any(|cr| head.get(cr + 1) != Some(&b'\n')) {
        return Err(Reject::Malformed("CR without LF"));
    }
    if memchr::memchr(0, head).is_some() {
        return Err(Reject::Malformed("NUL in the head"));
    }
    Ok(())
}

fn strict_target(method: &str, target: &str, limits: &Limits) -> Result<(), Reject> {
    if target.len() > limits.target_bytes {
        return Err(Reject::TargetTooLong);
    }
    if method == "CONNECT" {
        return Err(Reject::Malformed("CONNECT is not for this server"));
    }
    if !target.starts_with('/') {
        return Err(Reject::Malformed("the request target does not begin with /"));
    }
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\') {
        return Err(Reject::Malformed("the request target has a byte that no URI has"));
    }
    Ok(())
}

fn own_fields<'b>(headers: &[Header<'b>]) -> Vec<Field<'b>> {
    headers.iter().map(|h| Field { name: h.name, value: h.value.trim_ascii() }).collect()
}

fn at_most_one<'b>(fields: &[Field<'b>], name: &str, error: &'static str) -> Result<Option<&'b [u8]>, Reject> {
    let mut found = fields.iter().filter(|field| field.is(name)).map(|field| field.value);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(Reject::Malformed(error)),
        (value, None) => Ok(value),
    }
}

/// The one `Host` (RFC 9112 §3.2), of the bytes that an authority can have.
fn host<'b>(fields: &[Field<'b>], version: Version) -> Result<Option<&'b str>, Reject> {
    let Some(value) = at_most_one(fields, "host", "more than one Host")? else {
        return match version {
            Version::Http10 => Ok(None),
            Version::Http11 => Err(Reject::Malformed("no Host")),
        };
    };
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
    match std::str::from_utf8(value) {
        Ok(host) if !host.is_empty() && value.iter().all(plain) => Ok(Some(host)),
        _ => Err(Reject::Malformed("Host is not a host name with an optional port")),
    }
}

/// Persistence (RFC 9112 §9.3). Any other field that `Connection` names would be one that the client asks us to
/// strip on the way, `Authorization` and the gate's own among them.
fn request_keep_alive(fields: &[Field<'_>], version: Version) -> Result<bool, Reject> {
    let (mut close, mut keep) = (false, false);
    for token in fields.iter().filter(|f| f.is("connection")).flat_map(|f| tokens(f.value)) {
        if token.eq_ignore_ascii_case(b"close") {
            close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            keep = true;
        } else if !token.eq_ignore_ascii_case(b"te") && !token.eq_ignore_ascii_case(b"upgrade") {
            return Err(Reject::Malformed("Connection names a field other than close, keep-alive, TE or Upgrade"));
        }
    }
    Ok(!close && (keep || version == Version::Http11))
}

fn expects_continue(fields: &[Field<'_>], version: Version) -> Result<bool, Reject> {
    match at_most_one(fields, "expect", "more than one Expect")? {
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(version == Version::Http11),
        Some(_) => Err(Reject::UnknownExpectation),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests;
