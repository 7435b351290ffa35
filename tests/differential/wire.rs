//! A connection that keeps an answer as it came.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Far more than any answer takes: who runs into it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer, its body without framing.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) reason: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The body had its declared length or its last chunk.
    pub(super) whole: bool,
}

impl Answer {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

pub(super) struct Line(BufReader<TcpStream>);

impl Line {
    pub(super) fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a request; its answer, and whether another request may follow.
    pub(super) fn exchange(&mut self, request: &[u8], method: &str) -> (Answer, bool) {
        // Who answers early may not read the rest.
        let _ = self.0.get_mut().write_all(request);
        let line = self.line();
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        let reason = words.next().unwrap_or_default().to_owned();
        let mut answer = Answer { status, reason, fields: Vec::new(), body: Vec::new(), whole: true };
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            answer.fields.push((name.to_owned(), value.to_owned()));
        }
        let chunked = answer.field("transfer-encoding").is_some();
        let length = answer.field("content-length").map(|length| length.parse::<u64>().unwrap());
        let closes = answer.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if method == "HEAD" || status == 204 || status == 304 {
            return (answer, !closes && version == "HTTP/1.1");
        }
        if chunked {
            answer.whole = self.chunks(&mut answer.body);
        } else {
            let _ = (&mut self.0).take(length.unwrap_or(u64::MAX)).read_to_end(&mut answer.body);
            answer.whole = length.is_none_or(|length| length == answer.body.len() as u64);
        }
        let ended = chunked || length.is_some();
        let reusable = !closes && ended && answer.whole && version == "HTTP/1.1";
        (answer, reusable)
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Ok(size) = u64::from_str_radix(&self.line(), 16) else { return false };
            if (&mut self.0).take(size).read_to_end(body).is_err() || !self.line().is_empty() {
                return false;
            }
            if size == 0 {
                return true;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        line.trim_end().to_owned()
    }
}

/// Replaces `mark` and all that follows it and `belongs` to it.
pub(super) fn replace(text: &str, mark: &str, belongs: impl Fn(char) -> bool, by: &str) -> String {
    let mut parts = text.split(mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(by);
        out.push_str(part.trim_start_matches(&belongs));
    }
    out
}

/// Replaces everything that has the form of a UUID.
pub(super) fn replace_uuids(text: &str) -> String {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let is_uuid = |text: &str| {
        text.as_bytes()[8] == b'-'
            && text.split('-').map(str::len).eq(GROUPS)
            && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
    };
    let (mut out, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let length = if rest.get(..36).is_some_and(is_uuid) { 36 } else { c.len_utf8() };
        out.push_str(if length == 36 { "<uuid>" } else { &rest[..length] });
        rest = &rest[length..];
    }
    out
}
