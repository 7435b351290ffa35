//! **Read this first.** A client's connection from its first byte to its last.
//!
//! ```text
//! arrival, TLS → ┌ head → plan → verdict → exchange ┐ → close
//!                 └──────── keep-alive ◄─────────────┘
//! ```
//!
//! * the *arrival* says who comes: a PROXY header, a TLS handshake, a certificate ([`super::arrival`])
//! * the *head* is read under a deadline and a limit, and understood in one way only ([`crate::http`])
//! * the *plan* says which site and, for a registry, which endpoint and accesses ([`super::plan`])
//! * the *verdict* is a permit or a refusal ([`super::gate`], [`crate::verdict`])
//! * the *exchange* takes the permit to an upstream and relays both bodies ([`super::exchange`])
//!
//! Whatever goes wrong on the way is a [`Failure`], and [`crate::reply`] makes it a response. A connection whose state is
//! not known to the byte is closed, never used again.
//!
//! The configuration may change while a connection lives: each request is served by the one that held when it came.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::arrival::{Arrival, arrive};
use super::exchange::{self, Allowed};
use super::heard::Heard;
use super::listener::{Door, Settings};
use super::plan::Plan;
use super::stream::Stream;
use super::sys::socket::Socket;
use super::telemetry::{Counters, Record, loggable_target};
use super::worker::{Home, Worker};
use crate::auth::ClientCertificate;
use crate::forward::Downstream;
use crate::http::head::{self, Limits};
use crate::http::{Framing, RequestHead, Version};
use crate::limit::peers::Place;
use crate::reply::{Failure, Style};
use crate::verdict::{Permit, Refusal};

/// Bytes asked for at once while a head is awaited.
const HEAD_READ: usize = 8 * 1024;

/// A refused request's body up to this length is read and dropped, so that the connection can be used again.
const DISCARDED: u64 = 64 * 1024;

/// How long a client may go on sending after the last response, before the connection is cut. Cut at once, with bytes of
/// its still unread, it would get a reset and perhaps never see the response.
const LINGER: Duration = Duration::from_secs(5);

/// What becomes of the connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another request may come.
    KeepAlive,
    /// Everything was said. If the client has sent more all the same, the end lingers.
    Close,
    /// A response was sent, but the client may still be sending.
    Linger,
    /// The response is not whole, and its framing shows it: close without a reset, which would take from the client what
    /// it has not read yet.
    Cut,
    /// The response is not whole: cut it, so that nobody takes it for whole.
    Abort,
}

/// How much of a request's body has been read when the request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Nothing beyond what came with the head.
    Unread,
    /// Nobody knows how much: what comes next on the connection has no meaning any more.
    Begun,
}

/// A client's connection.
#[derive(Debug)]
pub struct Client<'p> {
    /// The worker that it belongs to, as its request found it.
    pub worker: Rc<Worker>,
    /// The connection itself.
    pub stream: Stream,
    /// Where it comes from, by a trusted balancer's word or by its own address.
    pub peer: SocketAddr,
    /// The certificate that it proved to hold.
    pub certificate: Option<ClientCertificate>,
    /// What its listener says.
    pub settings: Arc<Settings>,
    /// One of the connections that its peer may have.
    _place: Place<'p>,
}

/// Serves one connection to its end.
pub async fn serve(home: &Home, fd: OwnedFd, peer: SocketAddr, door: &Door) {
    let Ok(socket) = Socket::new(fd) else { return };
    let (worker, settings) = (home.worker(), door.settings());
    let socket = worker.watch.add(socket);
    // In a box of its own, as below: most of a connection's life is idle, and has to be small.
    let arrival = Box::pin(arrive(&worker, &home.peers, socket, peer, &settings)).await;
    let Some(Arrival { stream, peer, certificate, mut read, place: _place }) = arrival else {
        return;
    };
    let mut client = Client { worker, stream, peer, certificate, settings, _place };
    let last = loop {
        if read.is_empty() && !client.idle(&mut read).await {
            break Next::Close;
        }
        client.follow(home, door);
        let next = match client.head(&mut read).await {
            // In a room of its own: a connection that waits for its next request holds none for an exchange.
            Ok(Some(len)) => home.rooms.house(|| client.request(len, &mut read)).await,
            Ok(None) => Next::Close,
            Err(failure) => Box::pin(client.reject(&failure, Record::default())).await,
        };
        if next != Next::KeepAlive {
            break next;
        }
    };
    client.end(last).await;
}

impl Client<'_> {
    /// Takes the configuration that holds now. A certificate was proved to the authorities of its handshake and to no others.
    fn follow(&mut self, home: &Home, door: &Door) {
        if home.is_current(&self.worker) {
            return;
        }
        self.worker = home.worker();
        let before = std::mem::replace(&mut self.settings, door.settings());
        let authority = |settings: &Settings| settings.tls.as_ref().and_then(|tls| tls.client_ca().map(Path::to_owned));
        if authority(&before) != authority(&self.settings) {
            self.certificate = None;
        }
    }

    /// Waits for the first byte of a request, without a buffer for it: most connections are idle most of the time. Says
    /// whether one may come.
    async fn idle(&self, read: &mut Vec<u8>) -> bool {
        *read = Vec::new();
        let socket = self.stream.socket();
        socket.expect_within(self.worker.shared.config.limits.idle_timeout);
        socket.set_idle(true);
        let woken = self.stream.wait().await;
        socket.set_idle(false);
        woken.is_ok()
    }

    /// Answers the request whose head is the first `len` bytes of `read`.
    async fn request(&self, len: usize, read: &mut Vec<u8>) -> Next {
        let clock = Instant::now();
        // What follows the head stays in `read`; the head's bytes live as long as the exchange.
        let rest = read.split_off(len);
        let heard = Heard::new(std::mem::replace(read, rest));
        let mut record = Record::default();
        let next = match head::request(heard.bytes(), &self.limits()) {
            Ok(head) => {
                heard.holds(head.authorization.unwrap_or_default());
                if self.worker.shared.log.is_on() {
                    record.began = Some(SystemTime::now());
                    record.method = head.method.to_owned();
                    record.target = loggable_target(head.target);
                }
                self.understood(&head, clock, read, &mut record).await
            }
            Err(reject) => return self.reject(&Failure::Reject(reject), record).await,
        };
        record.took = clock.elapsed();
        self.log(&mut record);
        next
    }

    /// Reads until a whole head is at the start of `read`: its length, or nothing when the client went away between two
    /// requests.
    async fn head(&self, read: &mut Vec<u8>) -> Result<Option<usize>, Failure> {
        let limits = &self.worker.shared.config.limits;
        let socket = self.stream.socket();
        socket.expect_within(limits.head_timeout);
        let mut seen = 0;
        loop {
            if !read.is_empty()
                && let Some(len) = head::end(read, seen, &self.limits()).map_err(Failure::Reject)?
            {
                socket.expect_nothing();
                return Ok(Some(len));
            }
            seen = read.len();
            match self.stream.read_head(read, HEAD_READ).await {
                Ok(0) | Err(_) if seen == 0 => return Ok(None),
                _ if socket.expired() => return Err(Failure::HeadTimeout),
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }

    fn limits(&self) -> Limits {
        let limits = &self.worker.shared.config.limits;
        Limits { head_bytes: limits.head_bytes, target_bytes: limits.target_bytes, fields: limits.fields }
    }

    /// From a head, which was there at `clock`, to an answer.
    async fn understood(
        &self,
        head: &RequestHead<'_>,
        clock: Instant,
        read: &mut Vec<u8>,
        record: &mut Record,
    ) -> Next {
        if let Some(origin) = &self.settings.redirect {
            let moved = Failure::Moved([origin, head.target].concat());
            return self.refuse(&moved, false, head, Body::Unread, read, record).await;
        }
        let plan = match Plan::make(&self.worker.shared.sites, head) {
            Ok(plan) => plan,
            Err((failure, oci)) => return self.refuse(&failure, oci, head, Body::Unread, read, record).await,
        };
        record.endpoint = Some(plan.endpoint);
        let most = self.worker.shared.config.limits.manifest_bytes;
        if plan.is_manifest_upload && matches!(head.framing, Framing::Length(length) if length > most as u64) {
            let large = Failure::LargeManifest(most);
            return self.refuse(&large, plan.oci, head, Body::Unread, read, record).await;
        }
        let from = Downstream {
            peer: self.peer.ip().to_canonical(),
            secure: self.stream.is_secure(),
            certificate: self.certificate.as_ref().filter(|certificate| certificate.holds_at(now_in_seconds())),
            told: &self.worker.shared.config.auth.copy_headers,
            host: head
                .host
                .unwrap_or_else(|| plan.site(&self.worker.shared.sites).upstreams[0].service.authority.as_ref()),
        };
        let verdict = self.verdict(head, clock, &plan, &from, record).await;
        let judged = Instant::now();
        record.judged = Some(judged - clock);
        match verdict {
            Ok((permit, target)) => {
                let allowed = Allowed { permit: &permit, head, plan: &plan, target, from: &from, at: judged };
                exchange::run(self, &allowed, read, record).await
            }
            Err(failure) => self.refuse(&failure, plan.oci, head, Body::Unread, read, record).await,
        }
    }

    /// The permit, and the target that it is for.
    async fn verdict<'p>(
        &self,
        head: &RequestHead<'_>,
        clock: Instant,
        plan: &'p Plan,
        from: &Downstream<'_>,
        record: &mut Record,
    ) -> Result<(Permit, &'p str), Failure> {
        if let Some(permit) = crate::verdict::open(head.method, &plan.target) {
            return Ok((permit, &plan.target));
        }
        if self.settings.refuses_credentials && head.authorization.is_some() {
            return Err(Failure::Plaintext);
        }
        let gate = &self.worker.shared.gate;
        let backend = self.worker.backend.as_deref();
        let mut plain = false;
        let (mut target, mut verdict, mut source);
        (target, (verdict, source)) = (&plan.target, gate.admit(&plan.ask(head, from, false, clock), backend).await);
        if let (Err(Refusal::Forbidden { .. }), Some(without)) = (&verdict, &plan.target_without_mount) {
            // No right to pull from the other repository: without the mount the client simply uploads.
            target = without;
            plain = true;
            (verdict, source) = gate.admit(&plan.ask(head, from, true, Instant::now()), backend).await;
        }
        Counters::add(&self.worker.shared.counters.verdicts[source as usize], 1);
        record.verdict = Some(source.as_str());
        record.access = self.worker.shared.log.is_on().then(|| plan.scope(plain)).flatten();
        match verdict {
            Ok(permit) => {
                if self.worker.shared.log.is_on() {
                    record.user = permit.principal().name().map(str::to_owned);
                }
                record.rule = permit.rule();
                Ok((permit, target))
            }
            Err(Refusal::Unauthenticated { .. }) if self.settings.refuses_credentials => Err(Failure::Plaintext),
            // docker takes anything but a 401 here for "no login needed" and goes on without one.
            Err(Refusal::Unavailable { why }) if plan.is_base && head.authorization.is_none() => {
                record.error = Some(why.to_owned());
                Err(Failure::Refused(Refusal::Unauthenticated { challenge: None }))
            }
            Err(refusal) => Err(Failure::Refused(refusal)),
        }
    }

    /// Answers a request that was understood and is not forwarded.
    pub async fn refuse(
        &self,
        failure: &Failure,
        oci: bool,
        head: &RequestHead<'_>,
        body: Body,
        read: &mut Vec<u8>,
        record: &mut Record,
    ) -> Next {
        if let Failure::Refused(Refusal::Unavailable { why }) = failure {
            record.error = Some((*why).to_owned());
        }
        let small = match head.framing {
            Framing::None => true,
            Framing::Length(length) => length <= DISCARDED && !head.expects_continue,
            Framing::Chunked | Framing::UntilClose => false,
        };
        let keep_alive = head.keep_alive && body == Body::Unread && small && self.may_go_on();
        let style = Style {
            oci,
            realm: &self.worker.shared.config.auth.realm,
            version: head.version,
            head_only: head.method == "HEAD",
            keep_alive,
        };
        record.status = failure.status();
        if !self.answer(failure, &style).await {
            return Next::Abort;
        }
        match head.framing {
            _ if !keep_alive && head.framing.is_empty() => Next::Close,
            Framing::Length(length) if keep_alive => self.discard(length, read).await,
            _ if keep_alive => Next::KeepAlive,
            _ => Next::Linger,
        }
    }

    /// Answers bytes that are not a request that we understand; what follows them has no meaning.
    async fn reject(&self, failure: &Failure, mut record: Record) -> Next {
        let style = Style { oci: false, realm: "", version: Version::Http11, head_only: false, keep_alive: false };
        record.began = Some(SystemTime::now());
        record.status = failure.status();
        record.error = Some(failure.message().into_owned());
        let sent = self.answer(failure, &style).await;
        self.log(&mut record);
        if sent { Next::Linger } else { Next::Abort }
    }

    async fn answer(&self, failure: &Failure, style: &Style<'_>) -> bool {
        let mut out = Vec::with_capacity(512);
        failure.write(style, &mut out);
        self.stream.socket().expect_rate();
        self.stream.write_all(&out).await.is_ok()
    }

    /// Reads past a body that nobody wants.
    async fn discard(&self, mut left: u64, read: &mut Vec<u8>) -> Next {
        self.stream.socket().expect_rate();
        loop {
            let ours = read.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            read.drain(..ours);
            left -= ours as u64;
            if left == 0 {
                return Next::KeepAlive;
            }
            if !matches!(self.stream.read(read, HEAD_READ).await, Ok(1..)) {
                return Next::Close;
            }
        }
    }

    async fn end(self, how: Next) {
        match how {
            Next::Abort => self.stream.socket().reset_on_close(),
            Next::Cut => {}
            Next::KeepAlive | Next::Close | Next::Linger => {
                self.stream.finish_sending();
                // A TLS client may change its keys at any time, also while the end of an answer is still on its way.
                if how == Next::Linger || self.stream.is_secure() || self.stream.socket().has_unread() {
                    self.hear_out().await;
                }
            }
        }
    }

    /// Reads whatever the client still sends: a socket closed on unread bytes is reset, and what the client has not yet
    /// received is lost to it.
    async fn hear_out(&self) {
        self.stream.socket().expect_within(LINGER);
        let mut scrap = Vec::new();
        while matches!(self.stream.read(&mut scrap, HEAD_READ).await, Ok(1..)) {
            scrap.clear();
        }
    }

    /// Whether another request may come on this connection, for all that the gate knows.
    pub fn may_go_on(&self) -> bool {
        !self.worker.watch.draining() && !self.stream.is_worn()
    }

    fn log(&self, record: &mut Record) {
        let shared = &self.worker.shared;
        Counters::add(&shared.counters.exchanges[usize::from(record.status / 100).min(5)], 1);
        self.worker.requests.count(record);
        if shared.log.is_on() {
            record.peer = Some(self.peer);
            record.tls = self.stream.tls_version();
            shared.log.write(record);
        }
    }
}

/// Seconds since 1970; before it, at the end of all certificates.
fn now_in_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
}
