//! Accepting connections: one listening socket for each worker and address, all on the same port (SO_REUSEPORT).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::Shutdown;

use super::connection;
use super::sys::socket::{Socket, stop_raw};
use super::telemetry::Counters;
use super::tls::Server;
use super::worker::Worker;
use crate::config::Cidr;

/// How long accepting rests when the process is out of files: long enough not to spin, short enough not to be felt.
const REST: Duration = Duration::from_millis(50);

/// Connections accepted before the worker's other tasks have a turn.
const TURN: usize = 64;

/// A bound socket on its way to a worker.
#[derive(Debug)]
pub struct Bound {
    /// The listening socket.
    pub fd: OwnedFd,
    /// What it speaks.
    pub settings: Arc<Settings>,
}

/// What the connections of one address have in common.
#[derive(Debug)]
pub struct Settings {
    /// The address, for messages.
    pub address: SocketAddr,
    /// The server side of TLS; none: plain HTTP.
    pub tls: Option<Arc<Server>>,
    /// Peers that must begin with a PROXY header.
    pub proxy_protocol: Vec<Cidr>,
    /// Passwords sent here could be read on the way, and nobody said that this is fine.
    pub refuses_credentials: bool,
    /// Where every request is sent on to.
    pub redirect: Option<String>,
}

/// A listening socket at home with its worker.
#[derive(Debug)]
pub struct Listener {
    socket: io::Result<Socket>,
    settings: Arc<Settings>,
}

impl Bound {
    /// Hands the socket to the calling thread's runtime.
    pub fn settle(self) -> Listener {
        Listener { socket: Socket::new(self.fd), settings: self.settings }
    }
}

impl Listener {
    /// Ends accepting; whoever waits for a connection wakes up.
    pub fn stop(&self) {
        if let Ok(socket) = &self.socket {
            stop_raw(socket.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Accepts for a worker until the listener is stopped. Connections above the limit are closed at once: the kernel would
/// otherwise keep them waiting in a queue that nobody serves.
pub async fn accept(worker: Rc<Worker>, listener: Rc<Listener>) {
    let Ok(socket) = &listener.socket else { return };
    accept_all(socket, |fd, peer| admit(&worker, &listener, fd, peer)).await;
}

/// Accepts until the socket is stopped.
pub async fn accept_all(socket: &Socket, mut admit: impl FnMut(OwnedFd, SocketAddr)) {
    let mut turn = 0;
    loop {
        if turn == TURN {
            turn = 0;
            if socket.readable().await.is_err() {
                return;
            }
        }
        match socket.try_accept() {
            Ok((fd, peer)) => {
                turn += 1;
                admit(fd, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => turn = TURN,
            // The listener was stopped.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            // One connection that died in the queue is not the listener's end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => turn += 1,
            // Nor is it to be out of files or memory (EMFILE, ENFILE, ENOBUFS).
            Err(_) => monoio::time::sleep(REST).await,
        }
    }
}

fn admit(worker: &Rc<Worker>, listener: &Listener, fd: OwnedFd, peer: SocketAddr) {
    let counters = &worker.shared.counters;
    let open = counters.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place(Rc::clone(worker));
    if open >= worker.shared.config.limits.connections as u64 {
        Counters::add(&counters.connections_refused, 1);
        return;
    }
    let settings = Arc::clone(&listener.settings);
    monoio::spawn(async move { connection::serve(&place.0, fd, peer, &settings).await });
}

/// One of the connections that may be open at once.
struct Place(Rc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
