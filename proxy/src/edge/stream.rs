//! A connection, to a client or to an upstream: a watched socket, with or without TLS.

use std::cell::Cell;
use std::io;

use super::tls::{Session, Trust};
use super::watch::Watched;

/// A connection. All methods take `&self`: reading and writing go on at once.
#[derive(Debug)]
pub struct Stream {
    socket: Watched,
    tls: Option<Session>,
    /// Bytes behind the next head are for splice(2).
    leaves_bodies: Cell<bool>,
}

/// Reads what is there, waiting for the first byte: 0 at the end of the stream.
///
/// # Errors
/// As recv(2).
pub async fn recv_some(socket: &Watched, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    loop {
        match socket.try_recv(buffer, most) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
            Err(error) => return Err(error),
            Ok(n) => {
                socket.moved(n as u64);
                return Ok(n);
            }
        }
    }
}

/// Sends all of `bytes`.
///
/// # Errors
/// As send(2).
pub async fn send_all(socket: &Watched, bytes: &[u8]) -> io::Result<()> {
    send_pieces(socket, bytes, false).await
}

async fn send_pieces(socket: &Watched, mut bytes: &[u8], more: bool) -> io::Result<()> {
    while !bytes.is_empty() {
        match if more { socket.try_send_with_more(bytes) } else { socket.try_send(bytes) } {
            Ok(n) => {
                socket.moved(n as u64);
                bytes = &bytes[n..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Stream {
    /// A connection without TLS.
    pub fn plain(socket: Watched) -> Self {
        Self { socket, tls: None, leaves_bodies: Cell::default() }
    }

    /// A connection whose handshake is done.
    pub fn secure(socket: Watched, session: Session) -> Self {
        Self { socket, tls: Some(session), leaves_bodies: Cell::default() }
    }

    /// Performs the client's part of the TLS handshake with an upstream.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn trusting(socket: Watched, to: &Trust, early: &mut Vec<u8>) -> io::Result<Self> {
        let session = Session::connect(to, &socket, early).await?;
        Ok(Self { socket, tls: Some(session), leaves_bodies: Cell::default() })
    }

    /// Waits for the next bytes without a buffer for them. A TLS session has none left over: it decrypts all it reads.
    ///
    /// # Errors
    /// When the runtime cannot wait for the socket.
    pub async fn wait(&self) -> io::Result<()> {
        if self.tls.as_ref().is_some_and(Session::has_closed) {
            // Its end was read along with its last bytes.
            return Ok(());
        }
        self.socket.readable().await
    }

    /// Appends what is there to `buffer`: 0 at the end of the stream. At most `most` bytes on a plain connection; a
    /// TLS connection gives all that one read decrypts to.
    ///
    /// # Errors
    /// As recv(2), and `InvalidData` for a broken record.
    pub async fn read(&self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        match &self.tls {
            None => recv_some(&self.socket, buffer, most).await,
            Some(session) => session.read(&self.socket, buffer).await,
        }
    }

    /// Says whether a large body is expected behind the next head.
    pub fn expect_large_body(&self, large: bool) {
        self.leaves_bodies.set(large);
    }

    /// As [`Stream::read`], for a head: where a large body is expected behind it, and the kernel can move that, it is left
    /// in the socket. That takes one more system call, which a small body would not be worth.
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub async fn read_head(&self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        if self.tls.is_some() {
            return self.read(buffer, most).await;
        }
        loop {
            let done = match self.leaves_bodies.get() {
                true => self.socket.try_recv_through(buffer, most, b"\r\n\r\n"),
                false => self.socket.try_recv_head(buffer, most),
            };
            match done {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.readable().await?,
                done => return done,
            }
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// As send(2).
    pub async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.tls {
            None => send_all(&self.socket, bytes).await,
            Some(session) => session.write_all(&self.socket, bytes).await,
        }
    }

    /// Sends all of `bytes`, which others follow at once: they may wait for those to fill a packet.
    ///
    /// # Errors
    /// As send(2).
    pub async fn write_all_with_more(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.tls {
            None => send_pieces(&self.socket, bytes, true).await,
            Some(session) => session.write_all(&self.socket, bytes).await,
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        if let Some(session) = &self.tls {
            session.close(&self.socket);
        }
        self.socket.finish_sending();
    }

    /// The socket, where bytes on it are the bytes of the stream: what splice(2) needs.
    pub fn spliceable(&self) -> Option<&Watched> {
        self.tls.is_none().then_some(&self.socket)
    }

    /// The socket, for deadlines and readiness.
    pub fn socket(&self) -> &Watched {
        &self.socket
    }

    /// Whether the end of the stream, once read, is one that the other side meant.
    pub fn ended_cleanly(&self) -> bool {
        !self.socket.expired() && self.tls.as_ref().is_none_or(Session::has_closed)
    }

    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The TLS version, for the log.
    pub fn tls_version(&self) -> Option<&'static str> {
        self.tls.as_ref().map(Session::version)
    }
}
