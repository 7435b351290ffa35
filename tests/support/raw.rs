//! Upstreams that do what no well-behaved service does: a script for each connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// A listener whose connections are each handled by the same script, told the connection's number.
pub(crate) struct Raw {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Raw {
    pub(crate) fn start(script: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, count) = (Arc::new(script), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let (script, number) = (Arc::clone(&script), count.fetch_add(1, Ordering::SeqCst));
                thread::spawn(move || script(number, stream));
            }
        });
        Self { addr, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads until the end of a head; what was read, or what there was before the end.
pub(crate) fn read_head(stream: &mut impl Read) -> Vec<u8> {
    read_until(stream, b"\r\n\r\n")
}

pub(crate) fn read_until(stream: &mut impl Read, end: &[u8]) -> Vec<u8> {
    let (mut got, mut byte) = (Vec::new(), [0]);
    while !got.ends_with(end) && matches!(stream.read(&mut byte), Ok(1)) {
        got.push(byte[0]);
    }
    got
}

/// Writes, whoever still listens.
pub(crate) fn say(stream: &mut impl Write, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// Reads all that comes until the peer closes; whether it ended with a reset.
pub(crate) fn read_all(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let (mut got, mut piece) = (Vec::new(), [0; 65536]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (got, false),
            Ok(n) => got.extend_from_slice(&piece[..n]),
            Err(error) => return (got, error.kind() == std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}
