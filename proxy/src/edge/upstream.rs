//! The upstream side: connections to a service, kept for the next exchange, and the heads that come back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::guard::vouch::Voucher;
use super::stream::Stream;
use super::sys::socket::{Socket, unconnected};
use super::tls::Trust;
use super::watch::Watch;
use crate::http::head;
use crate::limit::Millis;

/// Idle connections that one worker keeps to one service.
const KEPT: usize = 256;

/// Bytes asked for at once while a head is awaited.
const HEAD_READ: usize = 16 * 1024;

/// Where a service listens, resolved.
#[derive(Debug, Clone)]
pub struct Service {
    /// The configured URL, for messages.
    pub url: Arc<str>,
    /// Its authority, for `Host`.
    pub authority: Arc<str>,
    /// Whom it has to prove to be; none: it speaks plain HTTP.
    pub trust: Option<Trust>,
    /// Its addresses in the resolver's order.
    pub addresses: Arc<[SocketAddr]>,
}

/// How a worker reaches one service.
pub struct Pool {
    service: Service,
    watch: Rc<Watch>,
    voucher: Option<Arc<Voucher>>,
    connect_timeout: Duration,
    idle_ttl: Millis,
    /// The most recently used at the back: the oldest may fall idle and go.
    idle: RefCell<VecDeque<(Stream, Millis)>>,
    next_address: Cell<usize>,
    turn: Cell<usize>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("service", &self.service).finish()
    }
}

/// A connection to a service, with what was read from it beyond the current head.
#[derive(Debug)]
pub struct Connection {
    /// The connection itself.
    pub stream: Stream,
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
    pub fn new(
        service: Service,
        watch: Rc<Watch>,
        voucher: Option<Arc<Voucher>>,
        connect_timeout: Duration,
        idle_ttl: Duration,
    ) -> Self {
        let idle_ttl = Millis::try_from(idle_ttl.as_millis()).unwrap_or(Millis::MAX);
        let (idle, next_address, turn) = Default::default();
        Self { service, watch, voucher, connect_timeout, idle_ttl, idle, next_address, turn }
    }

    /// The service that it leads to.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Counts up: which of several upstreams is first in turn.
    pub fn next_turn(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn
    }

    /// An idle connection that still lives, else a new one.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    pub async fn get(&self) -> io::Result<Connection> {
        let oldest = self.watch.coarse_now().saturating_sub(self.idle_ttl);
        loop {
            let Some((stream, since)) = self.idle.borrow_mut().pop_back() else { break };
            if since >= oldest && stream.socket().is_quiet() {
                return Ok(Connection { stream, reused: true, read: Vec::new() });
            }
        }
        self.connect().await
    }

    /// A new connection, to the first of the service's addresses that takes one.
    ///
    /// # Errors
    /// The last address's error; `TimedOut` after the connect timeout for each.
    pub async fn connect(&self) -> io::Result<Connection> {
        let addresses = &self.service.addresses;
        let first = self.next_address.get();
        self.next_address.set(first.wrapping_add(1));
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for offset in 0..addresses.len() {
            let address = addresses[first.wrapping_add(offset) % addresses.len()];
            match self.connect_to(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
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
        Ok(Connection { stream, reused: false, read })
    }

    /// Keeps a connection whose last exchange ended cleanly.
    pub fn put(&self, connection: Connection) {
        if !connection.read.is_empty() || connection.stream.socket().expired() || self.watch.draining() {
            return;
        }
        connection.stream.socket().expect_nothing();
        let mut idle = self.idle.borrow_mut();
        if idle.len() == KEPT {
            idle.pop_front();
        }
        idle.push_back((connection.stream, self.watch.coarse_now()));
    }

    /// Closes the connections that were idle for too long.
    pub fn sweep(&self) {
        let oldest = self.watch.coarse_now().saturating_sub(self.idle_ttl);
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|(_, since)| *since < oldest) {
            idle.pop_front();
        }
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
