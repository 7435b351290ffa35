//! A connection, to a client or to an upstream: a watched socket, with or without TLS, in this process or in the kernel.

use std::cell::Cell;
use std::io;

use super::sys::pipe::Pipe;
use super::tls::{KernelSession, Session, Taken, Trust};
use super::watch::Watched;

/// A connection. All methods take `&self`: reading and writing go on at once.
#[derive(Debug)]
pub struct Stream {
    socket: Watched,
    tls: Layer,
    /// Bytes behind the next head are for splice(2).
    leaves_bodies: Cell<bool>,
}

/// Who encrypts.
#[derive(Debug)]
enum Layer {
    Nobody,
    Process(Session),
    Kernel(KernelSession),
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
    fn new(socket: Watched, tls: Layer) -> Self {
        Self { socket, tls, leaves_bodies: Cell::default() }
    }

    /// A connection without TLS.
    pub fn plain(socket: Watched) -> Self {
        Self::new(socket, Layer::Nobody)
    }

    /// A connection whose handshake is done.
    pub fn secure(socket: Watched, by: Taken) -> Self {
        let layer = match by {
            Taken::Process(session) => Layer::Process(session),
            Taken::Kernel(session) => Layer::Kernel(session),
        };
        Self::new(socket, layer)
    }

    /// Performs the client's part of the TLS handshake with an upstream.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn trusting(socket: Watched, to: &Trust, early: &mut Vec<u8>) -> io::Result<Self> {
        let session = Session::connect(to, &socket, early).await?;
        Ok(Self::new(socket, Layer::Process(session)))
    }

    /// Waits for the next bytes without a buffer for them. A TLS session has none left over: it decrypts all it reads.
    ///
    /// # Errors
    /// When the runtime cannot wait for the socket.
    pub async fn wait(&self) -> io::Result<()> {
        if self.has_closed() == Some(true) {
            // Its end was read along with its last bytes.
            return Ok(());
        }
        self.socket.readable().await
    }

    /// Appends what is there to `buffer`: 0 at the end of the stream. At most `most` bytes, but for a connection that this
    /// process decrypts, which gives all that one read decrypts to.
    ///
    /// # Errors
    /// As recv(2), and `InvalidData` for a broken record.
    pub async fn read(&self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        match &self.tls {
            Layer::Nobody => recv_some(&self.socket, buffer, most).await,
            Layer::Process(session) => session.read(&self.socket, buffer).await,
            Layer::Kernel(session) => session.read(&self.socket, buffer, most).await,
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
        if self.is_secure() {
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
        self.write_pieces(bytes, false).await
    }

    /// Sends all of `bytes`, which others follow at once: they may wait for those to fill a packet.
    ///
    /// # Errors
    /// As send(2).
    pub async fn write_all_with_more(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_pieces(bytes, true).await
    }

    async fn write_pieces(&self, bytes: &[u8], more: bool) -> io::Result<()> {
        match &self.tls {
            Layer::Nobody => send_pieces(&self.socket, bytes, more).await,
            Layer::Process(session) => session.write_all(&self.socket, bytes).await,
            // What follows may be long in coming, and the kernel would keep this until then to fill a record.
            Layer::Kernel(session) => {
                send_pieces(&self.socket, bytes, false).await?;
                session.sent(bytes.len())
            }
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        match &self.tls {
            Layer::Nobody => {}
            Layer::Process(session) => session.close(&self.socket),
            Layer::Kernel(session) => session.close(&self.socket),
        }
        self.socket.finish_sending();
    }

    /// Whether splice(2) can move the stream's bytes: those on the socket are the stream's, or the kernel makes them so.
    pub fn is_spliceable(&self) -> bool {
        !matches!(self.tls, Layer::Process(_))
    }

    /// As [`super::sys::socket::Socket::try_splice_in`].
    ///
    /// # Errors
    /// As there; what a TLS session says between its data is dealt with on the way.
    pub fn try_splice_in(&self, pipe: &Pipe, most: usize) -> io::Result<usize> {
        let Layer::Kernel(session) = &self.tls else { return self.socket.try_splice_in(pipe, most) };
        loop {
            if session.has_closed() {
                return Ok(0);
            }
            match self.socket.try_splice_in(pipe, most) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => session.pass_control(&self.socket)?,
                done => return done,
            }
        }
    }

    /// As [`super::sys::socket::Socket::try_splice_out`].
    ///
    /// # Errors
    /// As there; and when a TLS session's key is used up.
    pub fn try_splice_out(&self, pipe: &Pipe, most: usize, more: bool) -> io::Result<usize> {
        let Layer::Kernel(session) = &self.tls else { return self.socket.try_splice_out(pipe, most, more) };
        let n = self.socket.try_splice_out(pipe, most, false)?;
        session.sent(n).map(|()| n)
    }

    /// The socket, for deadlines and readiness.
    pub fn socket(&self) -> &Watched {
        &self.socket
    }

    /// Whether the end of the stream, once read, is one that the other side meant.
    pub fn ended_cleanly(&self) -> bool {
        !self.socket.expired() && self.has_closed() != Some(false)
    }

    /// On an encrypted connection, whether the other side has said that it sends nothing more.
    fn has_closed(&self) -> Option<bool> {
        match &self.tls {
            Layer::Nobody => None,
            Layer::Process(session) => Some(session.has_closed()),
            Layer::Kernel(session) => Some(session.has_closed()),
        }
    }

    /// Whether it is encrypted.
    pub fn is_secure(&self) -> bool {
        !matches!(self.tls, Layer::Nobody)
    }

    /// Whether the kernel encrypts it.
    pub fn is_kernel_tls(&self) -> bool {
        matches!(self.tls, Layer::Kernel(_))
    }

    /// Whether it should carry no further request: its key has encrypted most of what it may.
    pub fn is_worn(&self) -> bool {
        matches!(&self.tls, Layer::Kernel(session) if session.is_worn())
    }

    /// The TLS version, for the log.
    pub fn tls_version(&self) -> Option<&'static str> {
        match &self.tls {
            Layer::Nobody => None,
            Layer::Process(session) => Some(session.version()),
            Layer::Kernel(session) => Some(session.version()),
        }
    }
}
