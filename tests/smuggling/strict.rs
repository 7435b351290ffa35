//! What bytes mean under RFC 9112, read by nothing that the gate uses: lines, words, lengths, one step after the other.
//! Every "MAY accept" is a no.

use std::iter;

/// A request, free of its framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) method: String,
    pub(super) target: String,
    /// Names and values as they came, one character for each byte.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Meaning {
    pub(super) fn values<'m>(&'m self, name: &'m str) -> impl Iterator<Item = &'m str> {
        self.fields.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn value<'m>(&'m self, name: &'m str) -> Option<&'m str> {
        self.values(name).next()
    }
}

/// What stands at the start of some bytes.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole request, and how many bytes it takes.
    Request(Meaning, usize),
    /// The beginning of one; more bytes may follow.
    Beginning,
    /// No request.
    Nonsense(&'static str),
}

enum Stop {
    Short,
    Bad(&'static str),
}

use Stop::{Bad, Short};

/// All requests at the start of `bytes`, in order, each with its own bytes.
pub(super) fn requests(bytes: &[u8]) -> Vec<(Meaning, &[u8])> {
    let mut rest = bytes;
    iter::from_fn(|| match read(rest) {
        Found::Request(meaning, len) => {
            let (own, after) = rest.split_at(len);
            rest = after;
            Some((meaning, own))
        }
        Found::Beginning | Found::Nonsense(_) => None,
    })
    .collect()
}

/// Reads one request.
pub(super) fn read(bytes: &[u8]) -> Found {
    let mut reader = Reader { bytes, at: 0 };
    match reader.request() {
        Ok(meaning) => Found::Request(meaning, reader.at),
        Err(Short) => Found::Beginning,
        Err(Bad(why)) => Found::Nonsense(why),
    }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn request(&mut self) -> Result<Meaning, Stop> {
        let line = self.line()?;
        let words: Vec<&str> = line.split(' ').collect();
        let [method, target, version] = words[..] else { return Err(Bad("not three words")) };
        if !is_token(method) || method == "CONNECT" {
            return Err(Bad("the method"));
        }
        if !target.starts_with('/') || !target.bytes().all(|b| matches!(b, 0x21..=0x7e) && b != b'#' && b != b'\\') {
            return Err(Bad("the target"));
        }
        let old = match version {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ => return Err(Bad("the version")),
        };
        let fields = self.fields()?;
        let mut meaning = Meaning { method: method.into(), target: target.into(), fields, body: Vec::new() };
        match meaning.values("host").collect::<Vec<_>>()[..] {
            [host] if is_authority(host) => {}
            [] if old => {}
            _ => return Err(Bad("the host")),
        }
        meaning.body = self.body(&meaning, old)?;
        Ok(meaning)
    }

    /// A line without its CRLF. A CR or LF anywhere else is none of any line's.
    fn line(&mut self) -> Result<String, Stop> {
        let rest = &self.bytes[self.at..];
        let Some(lf) = rest.iter().position(|&b| b == b'\n') else { return Err(Short) };
        let Some(line) = rest[..lf].strip_suffix(b"\r") else { return Err(Bad("a bare LF")) };
        if line.iter().any(|b| matches!(b, b'\r' | 0)) {
            return Err(Bad("a CR or NUL in a line"));
        }
        self.at += lf + 1;
        Ok(line.iter().copied().map(char::from).collect())
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>, Stop> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or(Bad("a field without a colon"))?;
            if !is_token(name) || value.chars().any(|c| c != '\t' && (c < ' ' || c == '\x7f')) {
                return Err(Bad("a field's name or value"));
            }
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    fn body(&mut self, head: &Meaning, old: bool) -> Result<Vec<u8>, Stop> {
        let lengths: Vec<&str> = head.values("content-length").collect();
        let codings: Vec<&str> = head.values("transfer-encoding").collect();
        match (&lengths[..], &codings[..]) {
            ([], []) => Ok(Vec::new()),
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && !old => self.chunks(),
            ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| Bad("a length beyond all lengths"))?;
                Ok(self.take(length)?.to_vec())
            }
            _ => Err(Bad("the body's length is not said once and plainly")),
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Stop> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let (size, extension) = line.split_once(';').unwrap_or((&line, ""));
            let plain = !size.is_empty() && size.len() < 16 && size.bytes().all(|b| b.is_ascii_hexdigit());
            if !plain || extension.chars().any(|c| c != '\t' && (c < ' ' || c == '\x7f')) {
                return Err(Bad("a chunk's size"));
            }
            let size = usize::from_str_radix(size, 16).map_err(|_| Bad("a chunk's size"))?;
            if size == 0 {
                self.fields()?;
                return Ok(body);
            }
            body.extend_from_slice(self.take(size)?);
            match self.take(2)? {
                b"\r\n" => {}
                _ => return Err(Bad("a chunk's end")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8], Stop> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or(Short)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
}

fn is_token(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

fn is_authority(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c))
}
