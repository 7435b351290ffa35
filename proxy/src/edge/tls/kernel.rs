//! One connection's TLS in the kernel (kTLS): rustls shakes hands, then the socket gets the keys, and bytes go in and out of it
//! as if it were plain. So a blob can be spliced into an encrypted connection.
//!
//! What is left to do here are the records that are not data: alerts, and new keys. Linux takes new keys for a running
//! connection since 6.14; before, a client that changes its keys has its connection closed, which it takes for the end of a
//! kept-alive one.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::bail;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ProtocolVersion, SupportedCipherSuite};

use super::Session;
use crate::config::Ktls;
use crate::edge::files::system_reason;
use crate::edge::sys::ktls::{self, Cipher, Direction, Keys, Version};
use crate::edge::sys::socket::Socket;
use crate::edge::watch::Watched;

const CIPHERS: [Cipher; 3] = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

/// Bytes of a full record.
const RECORD_BYTES: u64 = 16 * 1024;

/// Alerts and key updates are much smaller.
const CONTROL_BYTES: usize = 256;

/// Alerts (RFC 8446 §6): a level, and what it is about.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const NO_RENEGOTIATION: [u8; 2] = [1, 100];
const UNEXPECTED_MESSAGE: [u8; 2] = [2, 10];
const USER_CANCELED: u8 = 90;

/// A KeyUpdate (RFC 8446 §4.6.3) without its last byte, which says whether one is asked for in return.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];

/// What this machine's kernel can encrypt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Support {
    known: Vec<(Version, Cipher)>,
}

impl Support {
    /// Tries everything on connections of this process with itself. As root this loads the kernel's module, too.
    ///
    /// # Errors
    /// Why the kernel encrypts nothing.
    pub fn probe() -> io::Result<Self> {
        ktls::attach(&pair()?.0)?;
        let all = VERSIONS.iter().flat_map(|version| CIPHERS.iter().map(|cipher| (*version, *cipher)));
        let known: Vec<_> = all.filter(|(version, cipher)| works(*version, *cipher).is_ok()).collect();
        if known.is_empty() { Err(io::ErrorKind::Unsupported.into()) } else { Ok(Self { known }) }
    }

    /// Whether the kernel knows a suite in a version.
    fn has(&self, version: Version, suite: SupportedCipherSuite) -> bool {
        cipher(suite).is_some_and(|cipher| self.known.contains(&(version, cipher)))
    }

    /// Whether the kernel knows all that rustls may agree on.
    pub fn is_whole(&self) -> bool {
        self.known.len() == VERSIONS.len() * CIPHERS.len()
    }

    /// What it does not know, in words.
    fn lacks(&self) -> String {
        let all = VERSIONS.iter().flat_map(|version| CIPHERS.iter().map(|cipher| (*version, *cipher)));
        let missing: Vec<_> = all.filter(|pair| !self.known.contains(pair)).map(|pair| format!("{pair:?}")).collect();
        format!("it does not know {}", missing.join(", "))
    }
}

/// What the kernel is to encrypt, as the configuration wants it.
///
/// # Errors
/// When the configuration insists on the kernel, and it cannot.
pub fn support(wanted: Ktls, has_tls: bool) -> anyhow::Result<Option<Arc<Support>>> {
    if wanted == Ktls::Off || !has_tls {
        return Ok(None);
    }
    let missing = match Support::probe() {
        Ok(support) if wanted == Ktls::Auto || support.is_whole() => return Ok(Some(Arc::new(support))),
        Ok(support) => support.lacks(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "its module is not there or not loaded".to_owned(),
        Err(error) => system_reason(&error),
    };
    if wanted == Ktls::Require {
        bail!("ktls = \"require\": this kernel cannot encrypt ({missing}): `modprobe tls`, or use \"auto\"");
    }
    Ok(None)
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    Ok((near, listener.accept()?.0))
}

fn works(version: Version, cipher: Cipher) -> io::Result<()> {
    let (near, _far) = pair()?;
    ktls::attach(&near)?;
    let key: &[u8] = if cipher == Cipher::Aes128Gcm { &[1; 16] } else { &[1; 32] };
    let keys = Keys { cipher, key, iv: &[2; 12] };
    ktls::install(&near, Direction::Send, version, &keys, 0)?;
    ktls::install(&near, Direction::Receive, version, &keys, 0)
}

fn cipher(suite: SupportedCipherSuite) -> Option<Cipher> {
    use rustls::CipherSuite as S;
    match suite.suite() {
        S::TLS13_AES_128_GCM_SHA256
        | S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(Cipher::Aes128Gcm),
        S::TLS13_AES_256_GCM_SHA384
        | S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Cipher::Aes256Gcm),
        S::TLS13_CHACHA20_POLY1305_SHA256
        | S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(Cipher::ChaCha20Poly1305),
        _ => None,
    }
}

/// Records that may be sealed under one key (RFC 8446 §5.5).
fn most_records(suite: SupportedCipherSuite) -> u64 {
    match suite {
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
    }
}

/// Whoever encrypts a connection after its handshake.
#[derive(Debug)]
pub enum Taken {
    /// The kernel.
    Kernel(KernelSession),
    /// Still this process: the kernel does not know the suite, or the client is about to go.
    Process(Session),
}

/// A connection whose socket has its keys.
pub struct KernelSession {
    /// Makes the next keys.
    next: RefCell<Box<KernelConnection<ServerConnectionData>>>,
    version: Version,
    /// Records sealed under the present key, at the most.
    sealed: Cell<u64>,
    /// How many there may be.
    most: u64,
    /// The client has said that it sends nothing more.
    closed: Cell<bool>,
}

impl std::fmt::Debug for KernelSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelSession").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Hands a server's session over to the kernel where that knows how. What came behind the handshake with it is appended to
/// `early`.
///
/// # Errors
/// When the socket fails, or the kernel refuses keys that it took before; the connection is then of no use.
pub async fn hand_over(
    session: Session,
    socket: &Watched,
    early: &mut Vec<u8>,
    support: &Support,
) -> io::Result<Taken> {
    let version = match session.protocol() {
        Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
        Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
        _ => return Ok(Taken::Process(session)),
    };
    let Some(suite) = session.suite().filter(|suite| support.has(version, *suite)) else {
        return Ok(Taken::Process(session));
    };
    if !session.finish_record(socket, early).await? || ktls::attach(socket).is_err() {
        return Ok(Taken::Process(session));
    }
    let (secrets, next) = session.into_keys().map_err(io::Error::other)?;
    for (direction, (sequence, secrets)) in [(Direction::Send, secrets.tx), (Direction::Receive, secrets.rx)] {
        give(socket, direction, version, &secrets, sequence)?;
    }
    Ok(Taken::Kernel(KernelSession {
        next: RefCell::new(Box::new(next)),
        version,
        sealed: Cell::new(0),
        most: most_records(suite),
        closed: Cell::new(false),
    }))
}

fn give(
    socket: &Socket,
    direction: Direction,
    version: Version,
    secrets: &ConnectionTrafficSecrets,
    sequence: u64,
) -> io::Result<()> {
    let keys = Keys::of(secrets).ok_or(io::ErrorKind::Unsupported)?;
    ktls::install(socket, direction, version, &keys, sequence)
}

impl KernelSession {
    /// Appends at most `most` bytes to `buffer`: 0 at the end of the stream.
    ///
    /// # Errors
    /// As recv(2), and `InvalidData` for what is no record of this session.
    pub async fn read(&self, socket: &Watched, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        loop {
            if self.closed.get() {
                return Ok(0);
            }
            let before = buffer.len();
            match ktls::try_recv(socket, buffer, most) {
                Ok(None) => return Ok(0),
                Ok(Some((ktls::DATA, 0))) => {}
                Ok(Some((ktls::DATA, n))) => {
                    socket.moved(n as u64);
                    return Ok(n);
                }
                Ok(Some((kind, _))) => {
                    let record = buffer.split_off(before);
                    self.control(socket, kind, &record)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Deals with a record that splice(2) came upon and would not move, since it is no data.
    ///
    /// # Errors
    /// As [`KernelSession::read`].
    pub fn pass_control(&self, socket: &Socket) -> io::Result<()> {
        let mut record = Vec::new();
        match ktls::try_recv(socket, &mut record, CONTROL_BYTES)? {
            Some((kind, _)) if kind != ktls::DATA => self.control(socket, kind, &record),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel would not splice a record of data")),
        }
    }

    fn control(&self, socket: &Socket, kind: u8, record: &[u8]) -> io::Result<()> {
        match (kind, self.version, record) {
            (ktls::ALERT, _, [_, 0]) => {
                self.closed.set(true);
                Ok(())
            }
            (ktls::ALERT, _, &[_, USER_CANCELED]) => Ok(()),
            (ktls::ALERT, _, [_, about]) => Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                format!("the client ended the TLS session with alert {about}"),
            )),
            (ktls::HANDSHAKE, Version::Tls13, [message @ .., asks @ 0..=1]) if message == KEY_UPDATE => {
                self.follow_new_keys(socket, *asks == 1)
            }
            (ktls::HANDSHAKE, Version::Tls12, _) => refuse(socket, NO_RENEGOTIATION, "a renegotiation"),
            _ => refuse(socket, UNEXPECTED_MESSAGE, "a record that has no place here"),
        }
    }

    /// The client has changed its key, and asks us to change ours perhaps.
    fn follow_new_keys(&self, socket: &Socket, asked: bool) -> io::Result<()> {
        let mut next = self.next.borrow_mut();
        let (sequence, secrets) = next.update_rx_secret().map_err(io::Error::other)?;
        give(socket, Direction::Receive, self.version, &secrets, sequence).map_err(|error| no_new_keys(&error))?;
        if !asked {
            return Ok(());
        }
        let message = [KEY_UPDATE.as_slice(), &[0]].concat();
        ktls::try_send_record(socket, ktls::HANDSHAKE, &message)?;
        let (sequence, secrets) = next.update_tx_secret().map_err(io::Error::other)?;
        give(socket, Direction::Send, self.version, &secrets, sequence).map_err(|error| no_new_keys(&error))?;
        self.sealed.set(0);
        Ok(())
    }

    /// Counts what one call has sent.
    ///
    /// # Errors
    /// When the key has sealed as much as it may: what was sent went out, nothing more should.
    pub fn sent(&self, bytes: usize) -> io::Result<()> {
        // A call ends in the middle of a record, and may have begun in the middle of another.
        self.sealed.set(self.sealed.get() + bytes as u64 / RECORD_BYTES + 2);
        if self.sealed.get() < self.most {
            return Ok(());
        }
        Err(io::Error::other("this connection has sent as much as one key may encrypt"))
    }

    /// Whether most of what one key may encrypt has been: no further request should come.
    pub fn is_worn(&self) -> bool {
        self.sealed.get() >= self.most / 2
    }

    /// Says that nothing more will be sent, so that the client can tell an end from a cut.
    pub fn close(&self, socket: &Socket) {
        let _ = ktls::try_send_record(socket, ktls::ALERT, &CLOSE_NOTIFY);
    }

    /// Whether the other side has said that it sends nothing more; without that an end may be a cut.
    pub fn has_closed(&self) -> bool {
        self.closed.get()
    }

    /// The protocol version for the log.
    pub fn version(&self) -> &'static str {
        match self.version {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        }
    }
}

fn refuse(socket: &Socket, alert: [u8; 2], what: &str) -> io::Result<()> {
    let _ = ktls::try_send_record(socket, ktls::ALERT, &alert);
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}")))
}

fn no_new_keys(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the client changed its keys, which this kernel cannot follow: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_that_may_be_agreed_on_has_its_cipher() {
        let suites = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        assert_eq!(suites.len(), 9);
        assert!(suites.iter().all(|suite| cipher(*suite).is_some()));
        let of = |version, suite| Support { known: vec![(version, Cipher::Aes128Gcm)] }.has(version, suite);
        assert_eq!(suites.iter().filter(|suite| of(Version::Tls13, **suite)).count(), 3);
    }

    #[test]
    fn a_key_that_must_not_be_used_on_for_ever_has_a_limit() {
        let suites = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        for suite in suites {
            let endless = cipher(suite) == Some(Cipher::ChaCha20Poly1305);
            assert_eq!(most_records(suite) == u64::MAX, endless, "{suite:?}");
        }
    }
}
