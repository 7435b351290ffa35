//! A yardstick for downloads over TLS: rustls with aws-lc, TLS 1.3 and AES-128-GCM, between two sockets, and nothing of
//! what it moves is looked at. What it takes is the kernel's part, sealing, and rustls' own copies: a yardstick for what a
//! proxy adds, not the least that is possible. `cargo xtask bench pulls` builds and starts it: `bare-tls LISTEN TO CERT KEY`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

/// What the gate reads at once of a large body.
const ROOM: usize = 256 << 10;
/// More than a client keeps.
const CONNECTIONS: usize = 64;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, to, cert, key] = args.as_slice() else {
        return Err(anyhow!("want LISTEN TO CERT KEY: two addresses and two PEM files"));
    };
    let config = Arc::new(config(cert, key)?);
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    thread::scope(|scope| {
        let serving: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| serve(&listener, to, &config))).collect();
        serving.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

/// One connection after the other, in a thread that stays: the bench adds up the processor time of those there are.
fn serve(listener: &TcpListener, to: &str, config: &Arc<ServerConfig>) -> anyhow::Result<()> {
    loop {
        let (client, _) = listener.accept().context("cannot accept")?;
        // A client that goes away in the middle is no matter here.
        let _ = relay(client, to, Arc::clone(config));
    }
}

fn config(cert: &str, key: &str) -> anyhow::Result<ServerConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let chain = CertificateDer::pem_file_iter(cert).with_context(|| format!("cannot read {cert}"))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().with_context(|| format!("cannot read {cert}"))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("cannot read {key}"))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Until either end closes.
fn relay(mut client: TcpStream, to: &str, config: Arc<ServerConfig>) -> anyhow::Result<()> {
    let mut upstream = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let mut tls = ServerConnection::new(config)?;
    tls.set_buffer_limit(None);
    let mut room = vec![0; ROOM];
    loop {
        let [from_client, from_upstream] = ready(&client, &upstream)?;
        if from_client {
            let n = client.read(&mut room)?;
            if n == 0 {
                return Ok(());
            }
            open(&mut tls, &room[..n], &mut upstream)?;
        }
        if from_upstream {
            let n = upstream.read(&mut room)?;
            if n == 0 {
                tls.send_close_notify();
                return send(&mut tls, &mut client);
            }
            tls.writer().write_all(&room[..n])?;
        }
        send(&mut tls, &mut client)?;
    }
}

/// Waits until one of them has something to read, or has ended.
fn ready(client: &TcpStream, upstream: &TcpStream) -> anyhow::Result<[bool; 2]> {
    let ends = [client.as_fd(), upstream.as_fd()];
    let mut polled = ends.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN));
    poll(&mut polled, None)?;
    Ok(polled.map(|end| !end.revents().is_empty()))
}

/// Opens the records in `bytes` and passes on what is in them.
fn open(tls: &mut ServerConnection, mut bytes: &[u8], upstream: &mut TcpStream) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        let mut plain = vec![0; tls.process_new_packets()?.plaintext_bytes_to_read()];
        tls.reader().read_exact(&mut plain)?;
        upstream.write_all(&plain)?;
    }
    Ok(())
}

fn send(tls: &mut ServerConnection, client: &mut TcpStream) -> anyhow::Result<()> {
    while tls.wants_write() {
        tls.write_tls(client)?;
    }
    Ok(())
}
