//! Small HTTP services for tests and benches: one thread for each connection, a closure for each answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context;

use super::http::{read_chunked, read_fields, read_line};

const PIECE: usize = 1 << 18;

/// A request as the service saw it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target, untouched.
    pub target: String,
    /// The fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a field, by its name in any case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    fields: Vec<(String, String)>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Bytes(Vec<u8>),
    Zeros(u64),
}

impl Reply {
    /// A short text.
    #[must_use]
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        let fields = vec![("Content-Type".into(), "text/plain".into())];
        Self { status, fields, body: Body::Bytes(text.into().into_bytes()) }
    }

    /// A body of `size` zero bytes, sent in large pieces.
    #[must_use]
    pub fn zeros(size: u64) -> Self {
        let fields = vec![("Content-Type".into(), "application/octet-stream".into())];
        Self { status: 200, fields, body: Body::Zeros(size) }
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A service that runs until this is dropped.
#[derive(Debug)]
pub struct Stub {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Stub {
    /// Starts a service on a loopback port that the kernel chooses.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
        let addr = listener.local_addr().context("a listener without an address")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (answer, log, end) = (Arc::new(answer), Arc::clone(&seen), Arc::clone(&ended));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                if let Ok(stream) = stream {
                    // A client that leaves early is its own affair.
                    thread::spawn(move || drop(converse(stream, answer.as_ref(), &log)));
                }
            }
        });
        Ok(Self { addr, seen, ended })
    }

    /// The service of the 2014 walkthrough.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn hello() -> anyhow::Result<Self> {
        Self::start(|_| Reply::text(200, "Hello world"))
    }

    /// A blob of `size` bytes at any target.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn blob(size: u64) -> anyhow::Result<Self> {
        Self::start(move |_| Reply::zeros(size))
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The listener's thread sits in accept(); one last connection lets it see the flag.
        let _ = TcpStream::connect(self.addr);
    }
}

fn converse(
    stream: TcpStream,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        let request = receive(&mut reader, &mut writer)?;
        let closes = request.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let to_head = request.method == "HEAD";
        let reply = answer(&request);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        send(&mut writer, &reply, to_head, closes)?;
        if closes {
            return Ok(());
        }
    }
}

fn receive(reader: &mut impl BufRead, writer: &mut impl Write) -> anyhow::Result<Request> {
    let line = read_line(reader)?;
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or("").to_owned();
    let (method, target) = (word(), word());
    let mut request = Request { method, target, fields: read_fields(reader)?, body: Vec::new() };
    if request.field("expect").is_some() {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if request.field("transfer-encoding").is_some() {
        request.body = read_chunked(reader)?;
    } else if let Some(length) = request.field("content-length") {
        request.body = vec![0; length.parse().context("Content-Length is no number")?];
        reader.read_exact(&mut request.body)?;
    }
    Ok(request)
}

fn send(writer: &mut impl Write, reply: &Reply, to_head: bool, closes: bool) -> anyhow::Result<()> {
    let length = match &reply.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Zeros(size) => *size,
    };
    let mut head = format!("HTTP/1.1 {} Answer\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(if closes { "Connection: close\r\n\r\n" } else { "\r\n" });
    if to_head {
        return Ok(writer.write_all(head.as_bytes())?);
    }
    match &reply.body {
        Body::Bytes(bytes) => writer.write_all(&[head.as_bytes(), bytes].concat())?,
        Body::Zeros(size) => {
            writer.write_all(head.as_bytes())?;
            let piece = vec![0; PIECE];
            let mut left = *size;
            while left > 0 {
                let now = usize::try_from(left.min(PIECE as u64))?;
                writer.write_all(&piece[..now])?;
                left -= now as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::http::{Connection, get};

    #[test]
    fn hello_and_one_connection_for_several_exchanges() {
        let stub = Stub::hello().unwrap();
        assert_eq!(get(stub.addr(), "/", None).unwrap().text(), "Hello world");
        let mut connection = Connection::open(stub.addr()).unwrap();
        let chunked = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(connection.exchange(chunked).unwrap().status, 200);
        let sized = "PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nde";
        assert_eq!(connection.exchange(sized).unwrap().status, 200);
        let head = connection.exchange("HEAD /c HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!((head.field("content-length"), head.body.len()), (Some("11"), 0));
        let seen: Vec<(String, Vec<u8>)> = stub.seen().into_iter().map(|r| (r.target, r.body)).collect();
        let expected: [(&str, &[u8]); 4] = [("/", b""), ("/a", b"abc"), ("/b", b"de"), ("/c", b"")];
        assert!(seen.iter().map(|(t, b)| (t.as_str(), b.as_slice())).eq(expected));
    }

    #[test]
    fn a_blob_has_its_size() {
        let stub = Stub::blob(1_000_003).unwrap();
        assert_eq!(get(stub.addr(), "/v2/x/blobs/sha256:0", None).unwrap().body.len(), 1_000_003);
    }
}
