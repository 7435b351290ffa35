//! Peers that can be broken and repaired while the gate runs.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::world::{ask, body};
use crate::support::raw::{Raw, read_all, read_head, reset, say};

/// What a peer does to a request instead of answering it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    Closes,
    Resets,
    /// Takes what comes and says nothing, as one that is stopped or has lost its disk.
    Silent,
    Garbage,
    InterimFlood,
    FieldFlood,
    EndlessField,
    HalfAHead,
    /// One byte of the body a second.
    Drips,
    HalfABody,
    HalfABodyThenResets,
    HalfAChunk,
    BadChunk,
    /// A whole answer and something behind it.
    TooMuch,
    /// Before the request is there, and closes.
    AnswersEarly,
}

/// A request as it came, without its body.
type Heads = Arc<Mutex<Vec<String>>>;

/// A service that says 200, or does what its fault says.
pub(super) struct Peer {
    raw: Raw,
    fault: Arc<Mutex<Option<Fault>>>,
    heads: Heads,
}

impl Peer {
    /// `answers` makes status and body for a head with its target.
    pub(super) fn start(answers: fn(&str, &str) -> (u16, Vec<u8>)) -> Self {
        let (fault, heads) = (Arc::new(Mutex::new(None)), Heads::default());
        let (now, log) = (Arc::clone(&fault), Arc::clone(&heads));
        let raw = Raw::start(move |_, mut stream| {
            loop {
                let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
                let Some(target) = head.split(' ').nth(1).map(str::to_owned) else { return };
                let (mut status, body) = answers(&head, &target);
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
                log.lock().unwrap().push(head);
                let fault: Option<Fault> = *now.lock().unwrap();
                // Who answers early has not read it, all others have.
                let mut sent = vec![0; length.filter(|_| fault != Some(Fault::AnswersEarly)).unwrap_or(0)];
                if stream.read_exact(&mut sent).is_err() {
                    return;
                }
                if !sent.is_empty() && sent != body {
                    status = 400;
                }
                match fault {
                    Some(fault) => return suffer(fault, stream, &body),
                    None => {
                        let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n\r\n", body.len());
                        if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { raw, fault, heads }
    }

    pub(super) fn url(&self) -> String {
        self.raw.url()
    }

    pub(super) fn begin(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    pub(super) fn end(&self) {
        *self.fault.lock().unwrap() = None;
    }

    pub(super) fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// More than the gate will ever read of such a thing.
const FLOOD: usize = 1 << 20;

fn suffer(fault: Fault, mut stream: TcpStream, body: &[u8]) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let half = &body[..body.len() / 2];
    let chunk = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    let whole = |start: &str, body: &[u8]| [start.as_bytes(), body].concat();
    let told = match fault {
        Fault::Closes => vec![],
        Fault::Resets => return reset(stream),
        Fault::Silent => return drop(read_all(&mut stream)),
        Fault::Garbage => b"\x16\x03\x01\x02\0SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(),
        Fault::InterimFlood => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(FLOOD / 40).into(),
        Fault::FieldFlood => whole("HTTP/1.1 200 OK\r\n", "X-Flood: 1\r\n".repeat(FLOOD / 12).as_bytes()),
        Fault::EndlessField => whole("HTTP/1.1 200 OK\r\nX-Endless: ", &vec![b'x'; FLOOD]),
        Fault::HalfAHead => b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        Fault::Drips => return drip(stream, &head, body),
        Fault::HalfABody => whole(&head, half),
        Fault::HalfABodyThenResets => {
            let _ = stream.write_all(&whole(&head, half));
            return reset(stream);
        }
        Fault::HalfAChunk => whole(&chunk, half),
        Fault::BadChunk => whole(&chunk.replace("chunked\r\n\r\n", "chunked\r\n\r\n0x"), body),
        Fault::TooMuch => [head.as_bytes(), body, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"].concat(),
        Fault::AnswersEarly => b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
    };
    let _ = stream.write_all(&told);
    // The gate has hung up on a flood; on anything else it sees this end.
    let _ = stream.shutdown(Shutdown::Write);
    read_all(&mut stream);
}

fn drip(mut stream: TcpStream, head: &str, body: &[u8]) {
    say(&mut stream, head);
    for byte in body {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// A client that leaves in some way.
type Client = fn(SocketAddr, usize);

pub(super) const CLIENTS: [(&str, Client); 5] = [
    ("resets in the middle of an answer", |addr, n| reset(begun(addr, &ask("GET", &format!("/{n}"), "")))),
    ("closes in the middle of an answer", |addr, n| drop(begun(addr, &ask("GET", &format!("/{n}"), "")))),
    ("resets in the middle of its body", |addr, n| {
        let head = ask("PUT", &format!("/{n}"), "Content-Length: 1000000\r\n");
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(&[head.as_bytes(), &[b'x'; 5000]].concat()).unwrap();
        reset(stream);
    }),
    ("closes in the middle of its head", |addr, _| {
        TcpStream::connect(addr).unwrap().write_all(b"GET / HTTP/1.1\r\nHost: a\r\nAuthor").unwrap();
    }),
    ("closes its sending half behind its request", |addr, n| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let target = format!("/{n}");
        stream.write_all(ask("GET", &target, "").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (got, _) = read_all(&mut stream);
        assert!(got.ends_with(&body(&target)), "{}", String::from_utf8_lossy(&got[..got.len().min(300)]));
    }),
];

/// A connection on which the answer has begun.
fn begun(addr: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    read_head(&mut stream);
    stream
}
