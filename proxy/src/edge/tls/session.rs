//! One connection's TLS: records in and out of a non-blocking socket.
//!
//! Records are decrypted from one large read and encrypted into one vectored write, so that a body costs a system
//! call for each quarter of a megabyte, not for each record.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read as _, Write};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{Connection, HandshakeKind, ServerConfig, ServerConnection};

use super::client::Trust;
use crate::edge::sys::socket::Socket;
use crate::edge::watch::Watched;

/// One read from the socket; a worker has one such buffer, since it is empty again before anybody waits.
const READ_BYTES: usize = 64 * 1024;

/// Plaintext that is encrypted before it is sent: sixteen full records in one vectored write.
const PIECE_BYTES: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// The TLS state of a connection.
pub struct Session {
    connection: RefCell<Box<Connection>>,
    /// The client has said that it sends nothing more.
    closed: Cell<bool>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

/// Lets rustls write to a non-blocking socket.
struct Out<'s>(&'s Socket);

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_send(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_send_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What one read from the socket gave.
enum Pulled {
    /// This many decrypted bytes; 0 when only handshake or control records came.
    Plaintext(usize),
    /// The client sends nothing more.
    End,
}

impl Session {
    /// Performs the server's part of the handshake. What the client sends right behind it is appended to `early`.
    ///
    /// # Errors
    /// On a failed handshake (the alert is sent), an end in the middle, or a socket error.
    pub async fn accept(config: &Arc<ServerConfig>, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        let connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Self::handshake(connection.into(), socket, early).await
    }

    /// Performs the client's part of the handshake with the server `name`, whose certificate must be valid for it.
    ///
    /// # Errors
    /// As [`Session::accept`]; `InvalidData` for a certificate that is not trusted.
    pub async fn connect(to: &Trust, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        let connection = to.connection().map_err(io::Error::other)?;
        Self::handshake(connection.into(), socket, early).await
    }

    async fn handshake(mut connection: Connection, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        // The writer flushes after each piece, so the limit would only cut pieces short.
        connection.set_buffer_limit(None);
        let session = Self { connection: RefCell::new(Box::new(connection)), closed: Cell::new(false) };
        loop {
            session.flush(socket).await?;
            if !session.connection.borrow().is_handshaking() {
                return Ok(session);
            }
            match session.pull(socket, early) {
                Ok(Pulled::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Pulled::Plaintext(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => {
                    // The alert tells the other side why, as far as its socket takes it.
                    let _ = session.connection.borrow_mut().write_tls(&mut Out(socket));
                    return Err(error);
                }
            }
        }
    }

    /// Appends decrypted bytes to `buffer`: 0 at the end of the stream.
    ///
    /// # Errors
    /// As recv(2), and `InvalidData` for a broken record.
    pub async fn read(&self, socket: &Watched, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            if self.closed.get() {
                return Ok(0);
            }
            match self.pull(socket, buffer) {
                Ok(Pulled::Plaintext(0)) => {}
                Ok(Pulled::Plaintext(n)) => {
                    socket.moved(n as u64);
                    return Ok(n);
                }
                Ok(Pulled::End) => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Answers of the protocol itself (a key update) must not wait for our next write.
                    self.flush(socket).await?;
                    socket.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once and decrypts all of it.
    fn pull(&self, socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<Pulled> {
        SCRATCH.with_borrow_mut(|scratch| {
            let n = socket.try_recv_into(scratch)?;
            if n == 0 {
                return Ok(Pulled::End);
            }
            let mut input = &scratch[..n];
            let mut connection = self.connection.borrow_mut();
            let before = buffer.len();
            while !input.is_empty() && !self.closed.get() {
                connection.read_tls(&mut input)?;
                let state = connection
                    .process_new_packets()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                self.closed.set(state.peer_has_closed());
                let start = buffer.len();
                buffer.resize(start + state.plaintext_bytes_to_read(), 0);
                connection.reader().read_exact(&mut buffer[start..])?;
            }
            match buffer.len() - before {
                0 if self.closed.get() => Ok(Pulled::End),
                n => Ok(Pulled::Plaintext(n)),
            }
        })
    }

    /// Encrypts and sends all of `bytes`.
    ///
    /// # Errors
    /// As send(2).
    pub async fn write_all(&self, socket: &Watched, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.connection.borrow_mut().writer().write_all(piece)?;
            self.flush(socket).await?;
        }
        Ok(())
    }

    async fn flush(&self, socket: &Watched) -> io::Result<()> {
        loop {
            let sent = {
                let mut connection = self.connection.borrow_mut();
                if !connection.wants_write() {
                    return Ok(());
                }
                connection.write_tls(&mut Out(socket))
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => socket.moved(n as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that nothing more will be sent, so that the client can tell an end from a cut.
    pub fn close(&self, socket: &Socket) {
        let mut connection = self.connection.borrow_mut();
        connection.send_close_notify();
        let _ = connection.write_tls(&mut Out(socket));
    }

    /// Whether the other side has said that it sends nothing more; without that an end may be a cut.
    pub fn has_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether the handshake took up an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.borrow().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The other side's own certificate, where it showed one.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.connection.borrow().peer_certificates()?.first().cloned().map(CertificateDer::into_owned)
    }

    /// The protocol version for the log.
    pub fn version(&self) -> &'static str {
        match self.connection.borrow().protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
            _ => "?",
        }
    }
}
