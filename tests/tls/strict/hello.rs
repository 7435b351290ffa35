//! ClientHellos by hand, and what comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// What a client may say first.
#[derive(Clone)]
pub(super) struct Hello {
    /// The newest version, where there is no list.
    pub(super) version: u16,
    /// The list of TLS 1.3; none if empty.
    pub(super) versions: Vec<u16>,
    pub(super) suites: Vec<u16>,
    pub(super) compressions: Vec<u8>,
    pub(super) name: &'static str,
    pub(super) groups: Vec<u16>,
    pub(super) signatures: Vec<u16>,
    /// Brings a key for x25519 along, where TLS 1.3 is spoken; without one the server says which it wants, and no more.
    pub(super) key: bool,
    /// Further extensions, encoded.
    pub(super) more: Vec<u8>,
}

/// What a server says first.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// A fatal alert, by its number.
    Alert(u8),
    Hello(Said),
    /// The end.
    Nothing,
}

#[derive(Debug, PartialEq)]
pub(super) struct Said {
    pub(super) suite: u16,
    pub(super) compression: u8,
    pub(super) random: [u8; 32],
    pub(super) extensions: Vec<u16>,
    /// It wants another hello, with a key of the group that it names.
    pub(super) is_retry: bool,
}

/// The random of a HelloRetryRequest: SHA-256 of that word.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

impl Hello {
    pub(super) fn tls12() -> Self {
        Self {
            version: 0x0303,
            versions: vec![],
            suites: vec![0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8],
            compressions: vec![0],
            name: "localhost",
            groups: vec![0x001d, 0x0017],
            signatures: vec![0x0403, 0x0804, 0x0401],
            key: false,
            more: vec![],
        }
    }

    pub(super) fn tls13() -> Self {
        Self { versions: vec![0x0304], suites: vec![0x1301, 0x1302, 0x1303], ..Self::tls12() }
    }

    /// The record.
    pub(super) fn record(&self) -> Vec<u8> {
        let name = [&[0][..], &sized2(self.name.as_bytes())].concat();
        let mut extensions = extension(0, &sized2(&name));
        extensions.extend(extension(10, &sized2(&numbers(&self.groups))));
        extensions.extend(extension(11, &[1, 0]));
        extensions.extend(extension(13, &sized2(&numbers(&self.signatures))));
        extensions.extend(extension(23, &[]));
        extensions.extend(extension(0xff01, &[0]));
        if !self.versions.is_empty() {
            extensions.extend(extension(43, &sized1(&numbers(&self.versions))));
            // The point that the curve is counted from is nobody's secret, and a key.
            let share = [&[0, 0x1d][..], &sized2(&[&[9][..], &[0; 31]].concat())].concat();
            extensions.extend(extension(51, &sized2(if self.key { &share } else { &[] })));
            extensions.extend(extension(45, &sized1(&[1])));
        }
        extensions.extend(&self.more);
        let mut hello = self.version.to_be_bytes().to_vec();
        hello.extend([0x42; 32]);
        hello.extend(sized1(&[]));
        hello.extend(sized2(&numbers(&self.suites)));
        hello.extend(sized1(&self.compressions));
        hello.extend(sized2(&extensions));
        let mut message = vec![1];
        message.extend(&(hello.len() as u32).to_be_bytes()[1..]);
        message.extend(hello);
        [&[0x16, 3, 1][..], &sized2(&message)].concat()
    }

    /// Says it; what the server says.
    pub(super) fn ask(&self, addr: SocketAddr) -> Answer {
        tell(addr, &self.record())
    }

    /// Whether it is answered with this alert: under TLS 1.3 with one that nobody can read, and nothing else.
    pub(super) fn is_refused(&self, addr: SocketAddr, alert: &Answer) -> bool {
        if self.versions.is_empty() {
            return self.ask(addr) == *alert;
        }
        let records = records(&tell_raw(addr, &self.record()));
        let unread: Vec<usize> = records.iter().filter(|(kind, _)| *kind == 0x17).map(|(_, body)| body.len()).collect();
        // Two bytes, their kind, and the sum over them.
        unread == [2 + 1 + 16]
    }
}

pub(super) fn heartbeat() -> Vec<u8> {
    extension(15, &[1])
}

pub(super) fn alpn(protocols: &[&str]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|name| sized1(name.as_bytes())).collect();
    extension(16, &sized2(&list))
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized2(body)].concat()
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn sized1(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn sized2(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Sends bytes and no more; the first record that comes back.
pub(super) fn tell(addr: SocketAddr, bytes: &[u8]) -> Answer {
    let got = tell_raw(addr, bytes);
    match records(&got).first() {
        Some((0x15, body)) if body[0] == 2 => Answer::Alert(body[1]),
        Some((0x16, body)) if body[0] == 2 => Answer::Hello(said(body)),
        None => Answer::Nothing,
        Some(record) => panic!("what is that? {record:?}"),
    }
}

/// Sends bytes and no more; all that comes back.
pub(super) fn tell_raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may have hung up on the first of them.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        got.extend_from_slice(&piece[..read]);
    }
    got
}

/// The whole records among these bytes, with their kinds.
pub(super) fn records(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [kind, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(body) = rest.get(..length) else { break };
        found.push((*kind, body.to_vec()));
        bytes = &rest[length..];
    }
    found
}

/// Reads a ServerHello.
fn said(message: &[u8]) -> Said {
    let two = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let end = 4 + usize::from(message[3]) + (usize::from(message[2]) << 8);
    let session = 38 + 1 + usize::from(message[38]);
    let mut extensions = Vec::new();
    let mut at = session + 5;
    while at + 4 <= end {
        extensions.push(two(at));
        at += 4 + usize::from(two(at + 2));
    }
    let random: [u8; 32] = message[6..38].try_into().unwrap();
    let is_retry = random.starts_with(&RETRY);
    Said { suite: two(session), compression: message[session + 2], random, extensions, is_retry }
}
