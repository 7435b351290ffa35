//! A TLS client in this process, where a test has to look closer than a command lets it.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::pki::{Authority, Identity};

/// A connection.
pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A client that trusts one CA and remembers its sessions.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

impl Client {
    /// `identity` is the certificate that it shows when asked for one.
    pub(crate) fn new(ca: &Authority, identity: Option<&Identity>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&ca.cert).remove(0)).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        Self(Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
                builder.with_client_auth_cert(certificates(&identity.cert), key).unwrap()
            }
        }))
    }

    /// Connects to `localhost` there; the handshake is done when this returns.
    pub(crate) fn connect(&self, addr: SocketAddr) -> std::io::Result<Secure> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(&self.0), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    /// One GET on a connection of its own: status and body, and whether the session was resumed.
    pub(crate) fn get(&self, addr: SocketAddr, target: &str) -> std::io::Result<(u16, Vec<u8>, bool)> {
        let mut stream = self.connect(addr)?;
        write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut all = Vec::new();
        BufReader::new(&mut stream).read_to_end(&mut all)?;
        let text = String::from_utf8_lossy(&all);
        let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = all.windows(4).position(|end| end == b"\r\n\r\n").map_or(Vec::new(), |at| all[at + 4..].to_vec());
        Ok((status, body, stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed)))
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

/// Answers one request on each connection with `text` and hangs up, with a close_notify or without. Gives its port; it
/// runs as long as the test process.
pub(crate) fn answer(identity: &Identity, text: &'static str, with_notice: bool) -> u16 {
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(certificates(&identity.cert), key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket);
            if stream.read(&mut [0; 16_384]).is_ok_and(|read| read > 0) && stream.write_all(text.as_bytes()).is_ok() {
                if with_notice {
                    stream.conn.send_close_notify();
                }
                stream.flush().ok();
            }
        }
    });
    port
}
