//! A small plain HTTP/1.1 client: every byte of the request is the caller's, and the whole response comes back.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const TIMEOUT: Duration = Duration::from_secs(30);

/// A response as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a field, by its name in any case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that may carry several exchanges.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; reads and writes then fail after 30 seconds.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn open(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, TIMEOUT).with_context(|| format!("cannot connect to {addr}"))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the peer is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(bytes.as_ref()).context("cannot send")
    }

    /// Reads one response; `to_head` says that the request was a HEAD, whose response has no body.
    ///
    /// # Errors
    /// When it is malformed, cut short or late.
    pub fn receive(&mut self, to_head: bool) -> anyhow::Result<Response> {
        let line = self.line()?;
        ensure!(!line.is_empty(), "the connection was closed instead of an answer");
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status: u16 = status.with_context(|| format!("no status line: {line:?}"))?;
        let fields = read_fields(&mut self.stream)?;
        let mut response = Response { status, fields, body: Vec::new() };
        if to_head || status == 204 || status == 304 || status < 200 {
            return Ok(response);
        }
        response.body = read_body(&mut self.stream, &response)?;
        Ok(response)
    }

    /// Reads a response's status and Content-Length, and how much of the body came along with them; the rest of it
    /// is to be read from the socket. For large bodies that nobody wants to keep.
    ///
    /// # Errors
    /// When there is no response or it has no Content-Length.
    pub fn receive_head(&mut self) -> anyhow::Result<(u16, u64, u64)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status line: {line:?}"))?;
        let response = Response { status, fields: read_fields(&mut self.stream)?, body: Vec::new() };
        let length = response.field("content-length").context("no Content-Length")?;
        let length = length.parse().context("Content-Length is no number")?;
        Ok((status, length, self.stream.buffer().len() as u64))
    }

    /// Sends a request and reads its response.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`].
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> anyhow::Result<Response> {
        let request = request.as_ref();
        self.send(request)?;
        self.receive(request.starts_with(b"HEAD "))
    }

    /// Whether the peer closes the connection without a further byte.
    #[must_use]
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok([]) | Err(_))
    }

    /// The socket, for shutdowns and options.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    fn line(&mut self) -> anyhow::Result<String> {
        read_line(&mut self.stream)
    }
}

/// One GET on a connection of its own; `user` is `NAME:PASSWORD`.
///
/// # Errors
/// When there is no whole response.
pub fn get(addr: SocketAddr, target: &str, user: Option<&str>) -> anyhow::Result<Response> {
    let authorization = user.map(|user| format!("Authorization: {}\r\n", basic(user))).unwrap_or_default();
    let request = format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\n{authorization}Connection: close\r\n\r\n");
    Connection::open(addr)?.exchange(request)
}

/// The value of an Authorization field for `NAME:PASSWORD`.
#[must_use]
pub fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(user))
}

pub(crate) fn read_line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = Vec::new();
    from.take(1 << 16).read_until(b'\n', &mut line).context("cannot read a line")?;
    while matches!(line.last(), Some(b'\r' | b'\n')) {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

pub(crate) fn read_fields(from: &mut impl BufRead) -> anyhow::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let Some((name, value)) = line.split_once(':') else { bail!("a field without a colon: {line:?}") };
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

pub(crate) fn read_chunked(from: &mut impl BufRead) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(from)?;
        let size = line.split(';').next().unwrap_or("");
        let size = u64::from_str_radix(size, 16).with_context(|| format!("no chunk size: {line:?}"))?;
        let read = from.take(size).read_to_end(&mut body).context("cannot read a chunk")?;
        ensure!(read as u64 == size, "a chunk was cut short");
        ensure!(size == 0 || read_line(from)?.is_empty(), "a chunk without its end");
        if size == 0 {
            read_fields(from)?;
            return Ok(body);
        }
    }
}

fn read_body(from: &mut impl BufRead, response: &Response) -> anyhow::Result<Vec<u8>> {
    if response.field("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return read_chunked(from);
    }
    let mut body = Vec::new();
    let Some(length) = response.field("content-length") else {
        from.read_to_end(&mut body).context("cannot read the body")?;
        return Ok(body);
    };
    let length: u64 = length.parse().context("Content-Length is no number")?;
    let read = from.take(length).read_to_end(&mut body).context("cannot read the body")?;
    ensure!(read as u64 == length, "the body was cut short: {read} of {length} bytes");
    Ok(body)
}
