//! TLS on both sides: rustls over a non-blocking socket, as the server for clients and as the client for `https://`
//! upstreams.
//!
//! Records are decrypted from one large read and encrypted into one vectored write, so that a body costs a system
//! call for each quarter of a megabyte, not for each record.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use super::files::{load_certificates, load_identity};
use super::sys::socket::Socket;
use super::watch::Watched;
use crate::config::TlsIdentity;

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
        let connection = ClientConnection::new(Arc::clone(&to.config), to.name.clone()).map_err(io::Error::other)?;
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

    /// The protocol version for the log.
    pub fn version(&self) -> &'static str {
        match self.connection.borrow().protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
            _ => "?",
        }
    }
}

/// The server side of TLS for one listener: TLS 1.2 and 1.3, the certificate chosen by server name, HTTP/1.1 only.
///
/// # Errors
/// When an identity cannot be used; the text names the file and the remedy.
pub fn server_config(identities: &[TlsIdentity]) -> anyhow::Result<Arc<ServerConfig>> {
    let keys = identities.iter().map(|identity| load_identity(identity).map_err(anyhow::Error::msg));
    let resolver = ByName { keys: keys.collect::<anyhow::Result<_>>()? };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// Whom an `https://` upstream has to be.
#[derive(Debug, Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The client side of TLS for upstreams: TLS 1.2 and 1.3, the server's certificate checked against these roots, or the
/// system's.
///
/// # Errors
/// When there are no roots to check against; the text names the file and the remedy.
pub fn client_config(roots: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    if let Some(path) = roots {
        let pem = load_certificates(path).map_err(anyhow::Error::msg)?;
        for certificate in pem {
            store.add(certificate).map_err(|error| anyhow!("{}: not a root certificate: {error}", path.display()))?;
        }
    } else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            bail!("this system has no root certificates: install ca-certificates, or name a file in upstream_ca");
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Trust {
    /// Trusts the server of this host name or address.
    ///
    /// # Errors
    /// When no certificate could be valid for the name.
    pub fn new(config: &Arc<ClientConfig>, host: &str) -> anyhow::Result<Self> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| anyhow!("{host} cannot stand in a certificate"))?;
        Ok(Self { config: Arc::clone(config), name })
    }
}

/// Chooses the first certificate that is valid for the name asked for, else the first of all.
#[derive(Debug)]
struct ByName {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| {
            let name = ServerName::try_from(name).ok()?;
            self.keys.iter().find(|key| is_valid_for(key, &name))
        });
        named.or_else(|| self.keys.first()).map(Arc::clone)
    }
}

fn is_valid_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let Ok(end_entity) = key.end_entity_cert() else { return false };
    let Ok(parsed) = rustls::server::ParsedCertificate::try_from(end_entity) else { return false };
    rustls::client::verify_server_name(&parsed, name).is_ok()
}
