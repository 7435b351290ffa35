//! The upstream side: connections to a service, kept for the next exchange, and the heads that come back.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::guard::vouch::Voucher;
use super::names::Name;
use super::stream::Stream;
use super::sys::privilege::file_limit;
use super::sys::socket::{Socket, unconnected};
use super::telemetry::Counters;
use super::tls::Trust;
use super::watch::Watch;
use crate::balance::idle::{Idle, Need};
use crate::config::Limits;
use crate::http::head;
use crate::limit::Millis;

/// Of the files that this process may have open, the part that idle connections leave to those in use: a thirty-second.
const SPARED: u64 = 32;

/// Idle connections, the oldest, that one sweep looks at: a system call each.
const LOOKED_AT: usize = 1024;

/// Bytes asked for at once while a head is awaited.
const HEAD_READ: usize = 16 * 1024;

/// How long an address that took no connection is the last one to be tried.
const AVOIDED: Millis = 10_000;

/// Where a service listens.
#[derive(Debug, Clone)]
pub struct Service {
    /// The configured URL, for messages.
    pub url: Arc<str>,
    /// Its authority, for `Host`.
    pub authority: Arc<str>,
    /// Whom it has to prove to be; none: it speaks plain HTTP.
    pub trust: Option<Trust>,
    /// Its addresses, as they are now.
    pub name: Arc<Name>,
}

/// What one worker counts of one upstream. Only that worker writes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Attempts: requests that were to go there.
    pub requests: AtomicU64,
    /// Attempts that failed by the upstream's fault.
    pub failures: AtomicU64,
    /// Connections made.
    pub opened: AtomicU64,
    /// Exchanges under way, now.
    pub busy: AtomicU64,
    /// Connections between two exchanges, now.
    pub idle: AtomicU64,
}

/// How a worker reaches one service.
pub struct Pool {
    service: Service,
    watch: Rc<Watch>,
    voucher: Option<Arc<Voucher>>,
    connect_timeout: Duration,
    tally: Arc<Tally>,
    idle: RefCell<Idle<Kept>>,
    /// Descriptors from here on are closed and not kept. A new one is the lowest that is free, so that one as high as this
    /// says that nearly all are taken.
    highest: RawFd,
    /// The addresses as last seen, with their version.
    addresses: RefCell<(Option<u64>, Arc<[SocketAddr]>)>,
    next_address: Cell<usize>,
    /// Addresses that took no connection, and when.
    avoided: RefCell<Vec<(SocketAddr, Millis)>>,
}

#[derive(Debug)]
struct Kept {
    stream: Box<Stream>,
    address: SocketAddr,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("service", &self.service).finish()
    }
}

/// A connection to a service, with what was read from it beyond the current head.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself; in a box, since it goes from hand to hand.
    pub stream: Box<Stream>,
    /// Where it leads.
    pub address: SocketAddr,
    /// Whether an exchange went over it before: then it may have been closed while our request was on its way.
    pub reused: bool,
    /// Bytes read and not yet dealt with.
    pub read: Vec<u8>,
}

/// Why no response head came.
#[derive(Debug, thiserror::Error)]
pub enum NoResponse {
    /// The connection failed or ended; `silent` when not one byte had come.
    #[error("{error}")]
    Lost {
        /// What the socket said.
        error: io::Error,
        /// Whether nothing at all was received.
        silent: bool,
    },
    /// Nothing came in time.
    #[error("no response in time")]
    TimedOut,
    /// What came is not an HTTP response that can be relayed.
    #[error("{0}")]
    Invalid(crate::http::Reject),
}

impl Pool {
    /// A pool without connections.
    pub fn new(service: Service, watch: Rc<Watch>, voucher: Option<Arc<Voucher>>, limits: &Limits) -> Self {
        let ttl = Millis::try_from(limits.upstream_idle.as_millis()).unwrap_or(Millis::MAX);
        let (tally, next_address, avoided) = Default::default();
        // As many as clients may ask at once: after a burst, with fewer, a part of them would have to connect anew in the
        // next one, which costs as much again as the request.
        let idle = RefCell::new(Idle::new(limits.connections, ttl));
        let addresses = RefCell::new((None, Arc::default()));
        let (connect_timeout, files) = (limits.connect_timeout, file_limit());
        let highest = RawFd::try_from(files - files / SPARED).unwrap_or(RawFd::MAX);
        Self { service, watch, voucher, connect_timeout, tally, idle, highest, addresses, next_address, avoided }
    }

    /// The service that it leads to.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What is counted here.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// An idle connection that still lives and serves the need, else a new one.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    pub async fn get(&self, need: Need) -> io::Result<Connection> {
        self.follow();
        let taken = self.idle.borrow_mut().take(need, self.watch.coarse_now(), Kept::is_alive);
        self.count_idle();
        match taken {
            Some(Kept { stream, address }) => Ok(Connection { stream, address, reused: true, read: Vec::new() }),
            // In a box of its own: it is rare, and every exchange would have to be as large as its timers.
            None => Box::pin(self.connect()).await,
        }
    }

    /// A new connection, to the first of the service's addresses that takes one.
    ///
    /// # Errors
    /// The last address's error. Each has the connect timeout, and all together no more than twice that.
    pub async fn connect(&self) -> io::Result<Connection> {
        let patience = Millis::try_from(self.connect_timeout.as_millis()).unwrap_or(Millis::MAX).saturating_mul(2);
        let until = self.watch.now().saturating_add(patience);
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "its name is not found");
        for (tried, address) in self.in_order().into_iter().enumerate() {
            if tried > 0 && self.watch.now() >= until {
                break;
            }
            let result = self.connect_to(address).await;
            let mut avoided = self.avoided.borrow_mut();
            avoided.retain(|(known, _)| *known != address);
            match result {
                Ok(connection) => {
                    Counters::add_own(&self.tally.opened, 1);
                    return Ok(connection);
                }
                Err(error) => {
                    avoided.push((address, self.watch.now()));
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The addresses, beginning with another one each time; those that took no connection lately come last.
    fn in_order(&self) -> Vec<SocketAddr> {
        self.follow();
        let mut addresses = self.addresses.borrow().1.to_vec();
        let first = self.next_address.get();
        self.next_address.set(first.wrapping_add(1));
        let count = addresses.len();
        if count > 1 {
            addresses.rotate_left(first % count);
            let oldest = self.watch.now().saturating_sub(AVOIDED);
            let mut avoided = self.avoided.borrow_mut();
            avoided.retain(|(_, since)| *since >= oldest);
            addresses.sort_by_key(|address| avoided.iter().any(|(known, _)| known == address));
        }
        addresses
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<Connection> {
        let fd = unconnected(&address)?;
        if let Some(voucher) = &self.voucher {
            voucher.vouch(fd.as_fd())?;
        }
        let connecting = Socket::connect(fd, address);
        let socket = monoio::time::timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (socket, mut read) = (self.watch.add(socket), Vec::new());
        let stream = match &self.service.trust {
            None => Stream::plain(socket),
            Some(trust) => {
                socket.expect_within(self.connect_timeout);
                Stream::trusting(socket, trust, &mut read).await?
            }
        };
        Ok(Connection { stream: Box::new(stream), address, reused: false, read })
    }

    /// Keeps a connection whose last exchange ended cleanly.
    pub fn put(&self, connection: Connection) {
        self.follow();
        let Connection { stream, address, read, .. } = connection;
        let known = self.addresses.borrow().1.contains(&address);
        let spared = stream.socket().as_fd().as_raw_fd() < self.highest;
        if !spared || !known || !read.is_empty() || stream.socket().expired() || self.watch.draining() {
            return;
        }
        stream.socket().expect_nothing();
        self.idle.borrow_mut().put(Kept { stream, address }, self.watch.coarse_now());
        self.count_idle();
    }

    /// Closes the connections that were idle for too long, and those of the oldest that the other end closed.
    pub fn sweep(&self) {
        self.follow();
        self.idle.borrow_mut().sweep(self.watch.coarse_now(), LOOKED_AT, Kept::is_alive);
        self.count_idle();
    }

    /// Takes the service's addresses when they have changed, and lets go of connections to those that are gone.
    fn follow(&self) {
        if self.addresses.borrow().0 == Some(self.service.name.version()) {
            return;
        }
        let (version, addresses) = self.service.name.addresses();
        self.idle.borrow_mut().sweep(self.watch.coarse_now(), usize::MAX, |kept| addresses.contains(&kept.address));
        *self.addresses.borrow_mut() = (Some(version), addresses);
    }

    fn count_idle(&self) {
        self.tally.idle.store(self.idle.borrow().len() as u64, Ordering::Relaxed);
    }
}

impl Kept {
    /// Open, and without a byte that nobody asked for.
    fn is_alive(&self) -> bool {
        self.stream.socket().is_quiet()
    }
}

/// Reads until a complete response head is at the start of `read`, and returns its length. Interim responses (1xx) are
/// skipped: the gate itself answers `Expect`, and nothing else has a use for them. How long that may take is for the
/// caller to say, by what it expects of the socket.
///
/// # Errors
/// [`NoResponse`]; the connection must then be closed.
pub async fn response_head(stream: &Stream, read: &mut Vec<u8>) -> Result<usize, NoResponse> {
    /// Interim responses before one final one; more is an upstream gone wrong.
    const MOST_INTERIM: usize = 16;
    for _ in 0..MOST_INTERIM {
        let len = one_head(stream, read).await?;
        // 101 is an answer: what follows it is another protocol's.
        let interim = read.get(9) == Some(&b'1') && read.get(9..12) != Some(b"101");
        if !interim {
            return Ok(len);
        }
        read.drain(..len);
    }
    Err(NoResponse::Invalid(crate::http::Reject::Malformed("too many interim responses")))
}

async fn one_head(stream: &Stream, read: &mut Vec<u8>) -> Result<usize, NoResponse> {
    let mut seen = 0;
    loop {
        if let Some(len) = head::response_end(read, seen).map_err(NoResponse::Invalid)? {
            return Ok(len);
        }
        seen = read.len();
        let lost = |error| NoResponse::Lost { error, silent: seen == 0 };
        if seen == 0 {
            // The answer takes its time: wait for it without a buffer and without a call that finds nothing.
            stream.wait().await.map_err(lost)?;
        }
        let n = stream.read_head(read, HEAD_READ).await;
        if stream.socket().expired() {
            return Err(NoResponse::TimedOut);
        }
        if n.map_err(lost)? == 0 {
            return Err(lost(io::Error::new(io::ErrorKind::UnexpectedEof, "closed without a response")));
        }
    }
}
