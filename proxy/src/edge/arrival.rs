//! Who comes: before the first request there may be a balancer's PROXY header, then a TLS handshake.

use std::io;
use std::net::SocketAddr;

use super::listener::Settings;
use super::stream::Stream;
use super::telemetry::{Counters, say};
use super::tls::tally::Reason;
use super::tls::{Server, Session, Taken, kernel};
use super::watch::Watched;
use super::worker::Worker;
use crate::auth::ClientCertificate;
use crate::http::proxy;
use crate::limit::peers::{Peers, Place};

/// A connection whose first request may come.
#[derive(Debug)]
pub struct Arrival<'p> {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The certificate that its client proved to hold.
    pub certificate: Option<ClientCertificate>,
    /// What came right behind the handshake.
    pub read: Vec<u8>,
    /// One of the connections that its peer may have.
    pub place: Place<'p>,
}

/// Brings a connection to where its first request may come; none where it does not get so far.
pub async fn arrive<'p>(
    worker: &Worker,
    peers: &'p Peers,
    socket: Watched,
    peer: SocketAddr,
    settings: &Settings,
) -> Option<Arrival<'p>> {
    let peer = if settings.proxy_protocol.iter().any(|block| block.contains(peer.ip())) {
        told(worker, &socket, peer).await?
    } else {
        peer
    };
    let Some(place) = peers.enter(peer.ip()) else {
        Counters::add(&worker.shared.counters.connections_refused_to_peer, 1);
        return None;
    };
    let (taken, certificate, read) = match &settings.tls {
        None => {
            return Some(Arrival { stream: Stream::plain(socket), peer, certificate: None, read: Vec::new(), place });
        }
        Some(server) => secure(worker, &socket, peer, server).await?,
    };
    Some(Arrival { stream: Stream::secure(socket, taken), peer, certificate, read, place })
}

/// Where the connection comes from, as a peer says that has to say so.
async fn told(worker: &Worker, socket: &Watched, peer: SocketAddr) -> Option<SocketAddr> {
    socket.expect_within(worker.shared.config.limits.head_timeout);
    match header(socket).await {
        Ok(source) => {
            socket.expect_nothing();
            Some(source.unwrap_or(peer))
        }
        // A balancer that only tries whether the port is open.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => None,
        Err(error) => {
            let counters = &worker.shared.counters;
            let first = counters.proxy_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            if first {
                say(&format!(
                    "{peer} has to speak the PROXY protocol and does not: {error} (the metric counts the next)"
                ));
            }
            None
        }
    }
}

/// Reads a PROXY header and not one byte more: what follows it may be for the TLS session.
async fn header(socket: &Watched) -> io::Result<Option<SocketAddr>> {
    let mut taken = Vec::new();
    let mut seen = [0; 512];
    loop {
        let n = match socket.try_peek(&mut seen) {
            Ok(0) if socket.expired() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) if taken.is_empty() => return Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let before = taken.len();
        taken.extend_from_slice(&seen[..n]);
        let found = proxy::parse(&taken).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let ours = found.map_or(n, |header| header.len - before);
        socket.try_recv_into(&mut seen[..ours])?;
        if let Some(header) = found {
            return Ok(header.source);
        }
    }
}

type Secured = (Taken, Option<ClientCertificate>, Vec<u8>);

async fn secure(worker: &Worker, socket: &Watched, peer: SocketAddr, server: &Server) -> Option<Secured> {
    let shared = &worker.shared;
    let tally = &shared.counters.tls;
    socket.expect_within(shared.config.limits.tls_timeout);
    // Who says nothing takes no turn.
    socket.readable().await.ok()?;
    let turn = monoio::time::timeout(shared.config.limits.tls_timeout, shared.handshakes.take()).await;
    let Ok(Ok(turn)) = turn else {
        tally.failed(Reason::Busy, peer, &"too many handshakes under way");
        return None;
    };
    let mut read = Vec::new();
    let session = match Session::accept(&server.config(), socket, &mut read).await {
        Ok(session) => session,
        Err(error) => {
            tally.failed(Reason::of(&error, socket.expired()), peer, &error);
            return None;
        }
    };
    drop(turn);
    tally.done(&session);
    let certificate = session.peer_certificate().filter(|_| server.knows_clients());
    let certificate = certificate.and_then(|der| ClientCertificate::read(&der));
    let taken = match &shared.ktls {
        None => Ok(Taken::Process(session)),
        Some(support) => kernel::hand_over(session, socket, &mut read, support).await,
    };
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            tally.failed(Reason::of(&error, socket.expired()), peer, &error);
            return None;
        }
    };
    socket.expect_nothing();
    tally.taken(&taken);
    Some((taken, certificate, read))
}
