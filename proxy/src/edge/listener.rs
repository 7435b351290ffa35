//! Accepting connections: one listening socket for each worker and address, all on the same port (SO_REUSEPORT).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use rustix::net::Shutdown;

use super::connection;
use super::handover::{self, Successors};
use super::sys::socket::{Socket, stop_raw};
use super::telemetry::Counters;
use super::tls::Server;
use super::worker::Home;
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
    /// The service manager's: it outlives this process, and is neither emptied nor shut down.
    pub inherited: bool,
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
    /// How many sockets this process has there.
    pub sockets: usize,
    /// Of them, those that are open.
    pub open: Mutex<usize>,
}

/// What holds for the connections of one address now.
#[derive(Debug)]
pub struct Door(RefCell<Arc<Settings>>);

/// A listening socket at home with its worker.
#[derive(Debug)]
pub struct Listener {
    socket: Rc<Socket>,
    inherited: bool,
    door: Rc<Door>,
    stop: oneshot::Sender<Successors>,
    finished: oneshot::Receiver<()>,
}

impl Door {
    /// What holds now.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.0.borrow())
    }
}

impl Bound {
    /// Hands the socket to the calling thread's runtime and begins to accept.
    ///
    /// # Errors
    /// When the runtime cannot register it.
    pub fn open(self, home: &Rc<Home>) -> io::Result<Listener> {
        let (stop, stopped) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let (socket, door) = (Rc::new(Socket::new(self.fd)?), Rc::new(Door(RefCell::new(self.settings))));
        let accepting = accept(Rc::clone(home), Rc::clone(&socket), self.inherited, Rc::clone(&door), stopped);
        monoio::spawn(async move {
            accepting.await;
            let _ = finish.send(());
        });
        Ok(Listener { socket, inherited: self.inherited, door, stop, finished })
    }
}

impl Listener {
    /// Changes what holds for its connections.
    pub fn set(&self, settings: &Arc<Settings>) {
        *self.door.0.borrow_mut() = Arc::clone(settings);
    }

    /// Where a gate beside this one listens on the same address, sends it all that is new from now on.
    pub fn hand_over(&self) -> Successors {
        if self.inherited {
            return Successors::default();
        }
        handover::to_successors(self.socket.as_fd(), self.door.settings().sockets).unwrap_or_default()
    }

    /// Ends accepting, with what the kernel has completed before: a connection in the queue of a socket that is closed would
    /// be reset.
    pub async fn stop(self, successors: Successors) {
        drop(self.socket);
        let _ = self.stop.send(successors);
        let _ = self.finished.await;
    }
}

/// Accepts for a worker until the listener is stopped. Connections above the limit are closed at once: the kernel would
/// otherwise keep them waiting in a queue that nobody serves.
async fn accept(
    home: Rc<Home>,
    socket: Rc<Socket>,
    inherited: bool,
    door: Rc<Door>,
    stopped: oneshot::Receiver<Successors>,
) {
    let serve = accept_all(&socket, |fd, peer| admit(&home, &door, fd, peer));
    let successors = match select(pin!(serve), stopped).await {
        Either::Right((Ok(successors), _)) => successors,
        _ => Successors::default(),
    };
    // The queue of the service manager's socket is for whoever comes after this process.
    if !inherited {
        let settings = door.settings();
        let mut open = settings.open.lock().unwrap_or_else(PoisonError::into_inner);
        // One socket after the other: each that goes changes the kernel's numbers of those that stay.
        let _ = successors.before_one_of(*open, socket.as_fd());
        while let Some(accepted) = next_in_queue(&socket) {
            accepted.into_iter().for_each(|(fd, peer)| admit(&home, &door, fd, peer));
        }
        stop_raw(socket.as_fd().as_raw_fd(), Shutdown::Both);
        *open = open.saturating_sub(1);
    }
}

/// The next connection that is there, or one that died in the queue; none when the queue is empty.
fn next_in_queue(socket: &Socket) -> Option<Option<(OwnedFd, SocketAddr)>> {
    match socket.try_accept() {
        Ok(accepted) => Some(Some(accepted)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Some(None),
        Err(_) => None,
    }
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

fn admit(home: &Rc<Home>, door: &Rc<Door>, fd: OwnedFd, peer: SocketAddr) {
    let counters = &home.counters;
    let open = counters.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place(Rc::clone(home));
    if open >= home.worker().shared.config.limits.connections as u64 {
        Counters::add(&counters.connections_refused, 1);
        return;
    }
    let door = Rc::clone(door);
    monoio::spawn(async move { connection::serve(&place.0, fd, peer, &door).await });
}

/// One of the connections that may be open at once.
struct Place(Rc<Home>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
