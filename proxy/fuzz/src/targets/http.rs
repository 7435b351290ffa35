//! Heads and chunks: read the same however they are cut, and written anew without a second meaning.

use std::net::{IpAddr, Ipv4Addr};

use portcullis::forward::{self, Downstream, OwnOrigin, plan_response};
use portcullis::http::chunked::{self as coding, ChunkError, Decoder};
use portcullis::http::fields::{is_asserted_by_gate, is_hop_by_hop, is_rewritten_by_gate};
use portcullis::http::head::{self, Limits, RESPONSE_LIMITS};
use portcullis::http::{Framing, Reject, RequestHead, Version};

const LIMITS: Limits = Limits { head_bytes: 16 << 10, target_bytes: 8 << 10, fields: 100 };
/// What the gate writes may have a few fields more than what it read.
const WRITTEN: Limits = Limits { fields: 128, ..LIMITS };

/// Ways of cutting `data`: whole, byte by byte, and in two at a place that the data chooses.
fn cuts(data: &[u8]) -> [Vec<&[u8]>; 3] {
    let sum = data.iter().fold(7_usize, |sum, &b| sum.wrapping_mul(31).wrapping_add(usize::from(b)));
    let (left, right) = data.split_at(sum % (data.len() + 1));
    [vec![data], data.chunks(1).collect(), vec![left, right]]
}

/// Where the head ends. Which of several faults is named first may depend on the pieces; that there is one may not.
fn end_of(pieces: &[&[u8]], end: impl Fn(&[u8], usize) -> Result<Option<usize>, Reject>) -> Result<Option<usize>, ()> {
    let (mut buffer, mut seen) = (Vec::new(), 0);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if let Some(len) = end(&buffer, seen).map_err(drop)? {
            return Ok(Some(len));
        }
        seen = buffer.len();
    }
    Ok(None)
}

/// A request's head, and the head that the gate would write for it.
pub(super) fn request_head(data: &[u8]) {
    let end = |buffer: &[u8], seen: usize| head::end(buffer, seen, &LIMITS);
    let [whole, single, halves] = cuts(data).map(|pieces| end_of(&pieces, end));
    // No piece at all is no call; the gate waits for a first byte, too.
    if data.is_empty() {
        return;
    }
    assert_eq!(whole, single, "byte by byte");
    assert_eq!(whole, halves, "in two pieces");
    let Ok(Some(len)) = whole else { return };
    let Ok(head) = head::request(&data[..len], &LIMITS) else { return };
    has_one_meaning(&data[..len], &head);
    is_written_as_read(&head);
}

/// By another reading than the parser's: lines cut at CRLF, words at single spaces.
fn has_one_meaning(bytes: &[u8], head: &RequestHead<'_>) {
    let text: String = bytes.iter().copied().map(char::from).collect();
    let lines: Vec<&str> = text.strip_suffix("\r\n\r\n").expect("an empty line at the end").split("\r\n").collect();
    assert!(!lines.iter().any(|line| line.contains(['\r', '\n', '\0'])), "a control character in a line");
    let version = if head.version == Version::Http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    assert_eq!(lines[0], format!("{} {} {version}", head.method, head.target));
    assert!(head.target.starts_with('/') && head.target.bytes().all(|b| b.is_ascii_graphic()));
    assert_eq!(lines.len() - 1, head.fields.len(), "one field a line");
    let values = |name: &str| -> Vec<String> {
        let pairs = lines[1..].iter().filter_map(|line| line.split_once(':'));
        pairs.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).collect()
    };
    let (length, coding) = (values("content-length"), values("transfer-encoding"));
    let said_once = |said: &[String]| said.len() == 1;
    let right = match head.framing {
        Framing::Chunked => length.is_empty() && said_once(&coding) && coding[0].eq_ignore_ascii_case("chunked"),
        Framing::Length(n) => coding.is_empty() && said_once(&length) && length[0].parse() == Ok(n),
        Framing::None => coding.is_empty() && length.is_empty(),
        Framing::UntilClose => false,
    };
    assert!(right, "{:?} from {length:?} and {coding:?}", head.framing);
    let hosts = values("host").len();
    assert!(hosts == 1 || (hosts == 0 && head.version == Version::Http10), "{hosts} hosts");
    assert!(values("authorization").len() <= 1);
}

/// What goes to the upstream reads as what came, less what must not cross.
fn is_written_as_read(head: &RequestHead<'_>) {
    let permit = portcullis::verdict::open("GET", "/_ping").expect("a ping passes");
    let told = [String::from("x-told")];
    let peer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    let from = Downstream { peer, secure: true, host: head.host.unwrap_or("upstream"), told: &told, certificate: None };
    let mut wire = Vec::new();
    forward::request_head(&permit, head, head.target, &from, &mut wire);
    assert_eq!(head::end(&wire, 0, &Limits { head_bytes: 32 << 10, ..LIMITS }), Ok(Some(wire.len())));
    let again = head::request(&wire, &WRITTEN).expect("what the gate writes, it reads");
    assert_eq!((again.method, again.target, again.framing), (head.method, head.target, head.framing));
    assert_eq!(again.host, Some(from.host));
    assert_eq!(again.authorization, None);
    let ours = |name: &str| is_hop_by_hop(name) || is_rewritten_by_gate(name) || is_asserted_by_gate(name);
    for field in again.fields.iter().filter(|field| ours(field.name)) {
        let value = String::from_utf8_lossy(field.value);
        match field.name {
            "Host" | "X-Forwarded-Host" => assert_eq!(value, from.host),
            "X-Forwarded-For" | "X-Real-IP" => assert_eq!(value, peer.to_string()),
            "X-Forwarded-Proto" => assert_eq!(value, "https"),
            "Content-Length" | "Transfer-Encoding" => {}
            name => panic!("{name} has crossed"),
        }
    }
    let passes = |name: &str| !ours(name) && !name.replace('_', "-").eq_ignore_ascii_case("x-told");
    let sent = head.fields.iter().filter(|field| passes(field.name));
    let read = again.fields.iter().filter(|field| !ours(field.name));
    assert!(sent.eq(read), "the other fields, in their order");
}

/// A response's head to a GET or HEAD, and the head that the gate would write for it.
pub(super) fn response_head(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    let [whole, single, halves] = cuts(data).map(|pieces| end_of(&pieces, head::response_end));
    if data.is_empty() {
        return;
    }
    assert_eq!(whole, single, "byte by byte");
    assert_eq!(whole, halves, "in two pieces");
    let Ok(Some(len)) = whole else { return };
    let method = if choice & 1 == 0 { "GET" } else { "HEAD" };
    let version = if choice & 2 == 0 { Version::Http11 } else { Version::Http10 };
    let Ok(head) = head::response(&data[..len], method) else { return };
    // The gate's own lines would be one too many for the reader below.
    if head.fields.len() + 3 > RESPONSE_LIMITS.fields {
        return;
    }
    let plan = plan_response(&head, version, choice & 4 == 0);
    let own = OwnOrigin { authorities: ["upstream:5000", "registry.example"], public_url: Some("https://r.example") };
    let mut wire = Vec::new();
    forward::response_head(&head, &plan, version, &own, &mut wire);
    let again = head::response(&wire, method).expect("what the gate writes, it reads");
    assert_eq!((again.status, again.reason), (head.status, head.reason));
    assert_eq!(again.framing, plan.framing, "the client frames the body as the gate does");
    assert_eq!(again.keep_alive, plan.keep_alive);
    let crossed =
        again.fields.iter().find(|f| is_hop_by_hop(f.name) && !f.is("connection") && !f.is("transfer-encoding"));
    assert!(crossed.is_none(), "{crossed:?}");
}

type Body = Result<(Vec<u8>, Vec<u8>, bool), ChunkError>;

/// The data of a chunked body, what follows it, and whether its end was there.
fn decode(pieces: &[&[u8]]) -> Body {
    let (mut decoder, mut data, mut rest) = (Decoder::new(), Vec::new(), Vec::new());
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() && !decoder.is_done() {
            let step = decoder.decode(piece)?;
            assert!(step.consumed > 0, "no byte was taken");
            data.extend_from_slice(step.data);
            piece = &piece[step.consumed..];
        }
        rest.extend_from_slice(piece);
    }
    Ok((data, rest, decoder.is_done()))
}

/// A chunked body.
pub(super) fn chunked(data: &[u8]) {
    let [whole, single, halves] = cuts(data).map(|pieces| decode(&pieces));
    assert_eq!(whole, single, "byte by byte");
    assert_eq!(whole, halves, "in two pieces");
    let Ok((body, rest, true)) = whole else { return };
    assert!(data.ends_with(&rest) && data[..data.len() - rest.len()].ends_with(b"\r\n\r\n"));
    let mut wire = Vec::new();
    body.chunks(5).for_each(|part| coding::encode(part, &mut wire));
    wire.extend_from_slice(coding::LAST_CHUNK);
    assert_eq!(decode(&[&wire]), Ok((body, Vec::new(), true)));
}
