//! One connection's TLS in this process: records in and out of a non-blocking socket.
//!
//! Records are decrypted from one large read and encrypted for one large write, so that a body costs a system call for
//! each quarter of a megabyte, not for each record. rustls keeps no bytes: what is no whole record yet is in `unread`, and
//! what is to be sent is in `out`. So a session can be handed to the kernel between any two records.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind, ProtocolVersion, ServerConfig, SupportedCipherSuite};

use super::client::Trust;
use super::outbox::Outbox;
use crate::edge::sys::socket::Socket;
use crate::edge::watch::Watched;

/// One read from the socket.
const READ_BYTES: usize = 64 * 1024;

/// The most that is unread before a read: a handshake message in pieces, which rustls bounds, and a record that is not whole.
const UNREAD_BYTES: usize = 96 * 1024;

/// Plaintext that is encrypted before it is sent: sixteen full records in one write.
const PIECE_BYTES: usize = 256 * 1024;

/// The header of a record: its type, a version, its length (RFC 8446 §5.1).
const HEADER_BYTES: usize = 5;

thread_local! {
    /// A worker has one such buffer, since it is empty again before anybody waits.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES + UNREAD_BYTES]);
}

/// The TLS state of a connection.
pub struct Session {
    inner: RefCell<Box<Inner>>,
    /// The other side has said that it sends nothing more.
    closed: Cell<bool>,
}

struct Inner {
    side: Side,
    /// What was read and is no whole record or message yet.
    unread: Vec<u8>,
    /// Records on their way, whoever made them: the reader answers the protocol itself while the writer writes.
    out: Outbox,
    /// The protocol was broken: rustls is not to be asked again, since what it remembers of `unread` is not true any more.
    failed: bool,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What the protocol is wanted for.
enum Task<'t> {
    /// Append what can be decrypted.
    Read(&'t mut Vec<u8>),
    /// Encrypt this.
    Write(&'t [u8]),
    /// Say that nothing more comes.
    Close,
}

/// Where the protocol stands after a step.
#[derive(PartialEq, Eq)]
enum Step {
    /// It may take another.
    Again,
    /// It has done what was wanted, or can do no more of it now.
    Over,
    /// The other side sends nothing more.
    PeerClosed,
}

/// What one read from the socket gave.
enum Pulled {
    /// This many decrypted bytes; 0 when only handshake or control records came.
    Plaintext(usize),
    /// The other side sends nothing more.
    End,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Session {
    /// Performs the server's part of the handshake. What the client sends right behind it is appended to `early`.
    ///
    /// # Errors
    /// On a failed handshake (the alert is sent), an end in the middle, or a socket error.
    pub async fn accept(config: &Arc<ServerConfig>, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Self::handshake(Side::Server(connection), socket, early).await
    }

    /// Performs the client's part of the handshake with the server `name`, whose certificate must be valid for it.
    ///
    /// # Errors
    /// As [`Session::accept`]; `InvalidData` for a certificate that is not trusted.
    pub async fn connect(to: &Trust, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        let connection = to.connection().map_err(io::Error::other)?;
        Self::handshake(Side::Client(connection), socket, early).await
    }

    async fn handshake(side: Side, socket: &Watched, early: &mut Vec<u8>) -> io::Result<Self> {
        let inner = Inner { side, unread: Vec::new(), out: Outbox::default(), failed: false };
        let session = Self { inner: RefCell::new(Box::new(inner)), closed: Cell::new(false) };
        // A client speaks before it has read anything.
        session.digest(&mut [], early)?;
        loop {
            session.flush(socket).await?;
            if !session.inner.borrow().side.state().is_handshaking() {
                return Ok(session);
            }
            match session.pull(socket, early, READ_BYTES) {
                Ok(Pulled::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Pulled::Plaintext(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => {
                    // The alert tells the other side why, as far as its socket takes it.
                    let _ = session.inner.borrow_mut().out.send(socket);
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
            match self.pull(socket, buffer, READ_BYTES) {
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

    /// Reads once, at most `most` bytes, and decrypts what is whole.
    fn pull(&self, socket: &Socket, buffer: &mut Vec<u8>, most: usize) -> io::Result<Pulled> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.inner.borrow().unread.len();
            let end = scratch.len().min(kept + most);
            let room = scratch.get_mut(kept..end).ok_or(io::ErrorKind::InvalidData)?;
            let n = socket.try_recv_into(room)?;
            if n == 0 {
                return Ok(Pulled::End);
            }
            scratch[..kept].copy_from_slice(&self.inner.borrow().unread);
            let before = buffer.len();
            self.digest(&mut scratch[..kept + n], buffer)?;
            match buffer.len() - before {
                0 if self.closed.get() => Ok(Pulled::End),
                n => Ok(Pulled::Plaintext(n)),
            }
        })
    }

    /// Takes every step that the bytes in `input` allow: plaintext goes to `plain`, answers of the protocol to `out`.
    fn digest(&self, input: &mut [u8], plain: &mut Vec<u8>) -> io::Result<()> {
        let inner = &mut **self.inner.borrow_mut();
        if inner.failed {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut at = 0;
        loop {
            let (taken, step) = inner.side.step(&mut input[at..], &mut Task::Read(plain), &mut inner.out);
            at += taken;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Over) => break,
                Ok(Step::PeerClosed) => {
                    self.closed.set(true);
                    at = input.len();
                    break;
                }
                Err(error) => {
                    // What is left to be sent ends with the alert that tells the other side why. Beyond that rustls must not
                    // be asked again: it takes a second error for a mistake of ours.
                    while inner.side.state().wants_write() {
                        let (_, step) = inner.side.step(&mut input[at..], &mut Task::Read(plain), &mut inner.out);
                        if step.is_err() {
                            break;
                        }
                    }
                    inner.failed = true;
                    return Err(error);
                }
            }
        }
        // Most of the time nothing is left: an idle connection holds no room for it.
        inner.unread = input[at..].to_vec();
        Ok(())
    }

    /// Encrypts and sends all of `bytes`.
    ///
    /// # Errors
    /// As send(2).
    pub async fn write_all(&self, socket: &Watched, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.make(&mut Task::Write(piece))?;
            self.flush(socket).await?;
        }
        Ok(())
    }

    /// Puts records behind those that are on their way.
    fn make(&self, task: &mut Task<'_>) -> io::Result<()> {
        let inner = &mut **self.inner.borrow_mut();
        if inner.failed {
            return Err(io::ErrorKind::InvalidData.into());
        }
        loop {
            // All that is whole was digested when it was read: these bytes are only looked at.
            let (_, step) = inner.side.step(&mut inner.unread, task, &mut inner.out);
            if step? == Step::Over {
                return Ok(());
            }
        }
    }

    async fn flush(&self, socket: &Watched) -> io::Result<()> {
        loop {
            let sent = self.inner.borrow_mut().out.send(socket);
            match sent {
                Ok(0) => return Ok(()),
                Ok(n) => socket.moved(n as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that nothing more will be sent, so that the client can tell an end from a cut.
    pub fn close(&self, socket: &Socket) {
        if self.make(&mut Task::Close).is_ok() {
            let _ = self.inner.borrow_mut().out.send(socket);
        }
    }

    /// Whether the other side has said that it sends nothing more; without that an end may be a cut.
    pub fn has_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether the handshake took up an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.inner.borrow().side.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The other side's own certificate, where it showed one.
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let inner = self.inner.borrow();
        inner.side.state().peer_certificates()?.first().cloned().map(CertificateDer::into_owned)
    }

    /// The protocol version.
    pub fn protocol(&self) -> Option<ProtocolVersion> {
        self.inner.borrow().side.state().protocol_version()
    }

    /// The cipher suite.
    pub fn suite(&self) -> Option<SupportedCipherSuite> {
        self.inner.borrow().side.state().negotiated_cipher_suite()
    }

    /// The protocol version for the log.
    pub fn version(&self) -> &'static str {
        match self.protocol() {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "?",
        }
    }

    /// Reads on to the end of the record whose beginning came with the last one, and not one byte beyond: whether the next
    /// byte on the socket is the first of a record.
    ///
    /// # Errors
    /// As [`Session::read`]; `UnexpectedEof` for an end in the middle.
    pub async fn finish_record(&self, socket: &Watched, buffer: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let missing = missing(&self.inner.borrow().unread);
            if missing == 0 {
                return Ok(self.inner.borrow().unread.is_empty() && !self.closed.get());
            }
            match self.pull(socket, buffer, missing) {
                Ok(Pulled::Plaintext(_)) => {}
                Ok(Pulled::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// The keys, and what makes the next ones; for a server between two records.
    ///
    /// # Errors
    /// When the session is not in that state; it is lost then.
    pub fn into_keys(self) -> Result<(ExtractedSecrets, KernelConnection<ServerConnectionData>), rustls::Error> {
        match self.inner.into_inner().side {
            Side::Server(connection) => connection.dangerous_into_kernel_connection(),
            Side::Client(_) => Err(rustls::Error::General("the keys of a client's side stay where they are".into())),
        }
    }
}

/// How many bytes the last record in `unread` still lacks, as far as its header tells.
fn missing(mut unread: &[u8]) -> usize {
    while !unread.is_empty() {
        let Some((header, rest)) = unread.split_at_checked(HEADER_BYTES) else { return HEADER_BYTES - unread.len() };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let Some(next) = rest.get(length..) else { return length - rest.len() };
        unread = next;
    }
    0
}

impl Side {
    fn state(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }

    /// One step of the protocol: how much of `input` it has used up, and where it stands.
    fn step(&mut self, input: &mut [u8], task: &mut Task<'_>, out: &mut Outbox) -> (usize, io::Result<Step>) {
        match self {
            Self::Server(connection) => take(connection.process_tls_records(input), task, out),
            Self::Client(connection) => take(connection.process_tls_records(input), task, out),
        }
    }
}

fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    task: &mut Task<'_>,
    out: &mut Outbox,
) -> (usize, io::Result<Step>) {
    let mut used = status.discard;
    let state = match status.state {
        Ok(state) => state,
        Err(error) => return (used, Err(io::Error::new(io::ErrorKind::InvalidData, error))),
    };
    let step = match (state, task) {
        (ConnectionState::ReadTraffic(mut traffic), Task::Read(plain)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    used += record.discard;
                    plain.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                None => break Ok(Step::Again),
            }
        },
        (ConnectionState::EncodeTlsData(mut data), _) => {
            out.add(HEADER_BYTES, |room| data.encode(room), encoding_needs).map(|()| Step::Again)
        }
        // They are in the outbox, which is emptied in order.
        (ConnectionState::TransmitTlsData(data), _) => {
            data.done();
            Ok(Step::Again)
        }
        (ConnectionState::WriteTraffic(mut traffic), Task::Write(bytes)) => {
            out.add(bytes.len(), |room| traffic.encrypt(bytes, room), encryption_needs).map(|()| Step::Over)
        }
        (ConnectionState::WriteTraffic(mut traffic), Task::Close) => {
            out.add(0, |room| traffic.queue_close_notify(room), encryption_needs).map(|()| Step::Over)
        }
        (ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_), Task::Read(_)) => Ok(Step::Over),
        (ConnectionState::PeerClosed, Task::Read(_)) => Ok(Step::PeerClosed),
        (ConnectionState::PeerClosed, _) => Ok(Step::Again),
        (ConnectionState::Closed, Task::Read(_)) => Ok(Step::PeerClosed),
        (ConnectionState::Closed, _) => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Err(io::Error::other("the TLS session is in no state for that")),
    };
    (used, step)
}

fn encoding_needs(error: &EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn encryption_needs(error: &EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
        EncryptError::EncryptExhausted => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_lacks_what_its_header_says() {
        let record = |length: u16| [&[23, 3, 3][..], &length.to_be_bytes(), &vec![0; usize::from(length)]].concat();
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&record(9)), 0);
        let two = [record(9), record(300)].concat();
        for cut in 1..HEADER_BYTES {
            assert_eq!(missing(&two[..14 + cut]), HEADER_BYTES - cut);
        }
        for cut in HEADER_BYTES..305 {
            assert_eq!(missing(&two[..14 + cut]), 305 - cut);
        }
        assert_eq!(missing(&two), 0);
    }
}
