//! One exchange with an upstream: a request with a permit goes out, its response comes back, both bodies move at once.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use super::balance::{Lease, Tries, Upstreams, is_failure};
use super::connection::{Body, Client, Next};
use super::plan::Plan;
use super::relay::{self, Broken, Moved};
use super::stream::Stream;
use super::telemetry::{Counters, Record};
use super::tunnel;
use super::upstream::{Connection, NoResponse, response_head};
use crate::forward::{self, Downstream, OwnOrigin, ResponsePlan};
use crate::http::head::{self, ResponseHead};
use crate::http::{Framing, Reject, RequestHead};
use crate::reply::Failure;
use crate::verdict::Permit;

/// How long an upstream that stopped reading a request has to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The interim answer to `Expect: 100-continue` (RFC 9110 §10.1.1). It is ours to give, after the verdict: an upstream
/// that never sees the field cannot answer it at the wrong time.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Room for a usual head. The allocator has quick ways for this much and not for more.
const HEAD_ROOM: usize = 1024;

/// A request that may pass.
#[derive(Debug)]
pub struct Allowed<'r> {
    /// The right to it.
    pub permit: &'r Permit,
    /// Its head as it came.
    pub head: &'r RequestHead<'r>,
    /// What it asks for.
    pub plan: &'r Plan,
    /// The target that the permit is for.
    pub target: &'r str,
    /// The connection that it came on.
    pub from: &'r Downstream<'r>,
    /// When there was the permit.
    pub at: Instant,
}

/// Everything that stays the same through the attempts of one exchange.
struct Exchange<'e> {
    client: &'e Client<'e>,
    allowed: &'e Allowed<'e>,
    /// An upstream that answered with a change of protocol that was asked for, and the length of its head.
    switched: Cell<Option<Box<(Connection, usize)>>>,
}

/// Why an attempt gave no response.
enum Failed {
    /// Nothing of the request had an effect: another connection or upstream may be tried.
    Retry(Cause),
    /// The request may have had an effect, or a part of its body has been read.
    Final(Cause),
    /// The client broke off its own request.
    Client(String),
}

/// What the client is told, and what the log is told.
struct Cause {
    failure: Failure,
    why: String,
}

/// How far a request with a body got.
enum Sent {
    /// All of it is out, and a response head of this length is in.
    Whole(usize),
    /// The upstream stopped reading, but a response head of this length is in.
    CutShort(usize),
    /// The response came before the end of the request, and has been relayed.
    Answered(Next),
}

/// What becomes of an upstream's connection after its response.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Another request may go over it.
    Keep,
    /// Nothing more goes over it.
    Close,
    /// It speaks another protocol behind a head of this length.
    Switch(usize),
}

/// Forwards a request and relays the response.
pub async fn run(client: &Client<'_>, allowed: &Allowed<'_>, read: &mut Vec<u8>, record: &mut Record) -> Next {
    let Allowed { head, plan, .. } = *allowed;
    let exchange = Exchange { client, allowed, switched: Cell::default() };
    let upstreams = &client.worker.upstreams[plan.site];
    let failed = if head.framing.is_empty() {
        exchange.without_body(upstreams, record).await
    } else {
        // In a box of its own: most requests have no body, and none of its two directions.
        Box::pin(exchange.with_body(upstreams, read, record)).await
    };
    if let Some(switched) = exchange.switched.take() {
        let (mut up, len) = *switched;
        let rest = up.read.split_off(len);
        let answer = std::mem::replace(&mut up.read, rest);
        return match head::response(&answer, head.method) {
            Ok(answer) => Box::pin(tunnel::run(client, up, &answer, read, record)).await,
            Err(_) => Next::Abort,
        };
    }
    match failed {
        Ok(next) => next,
        Err(Failed::Retry(cause)) => {
            record.error = Some(cause.why);
            client.refuse(&cause.failure, plan.oci, head, Body::Unread, read, record).await
        }
        Err(Failed::Final(cause)) => {
            record.error = Some(cause.why);
            client.refuse(&cause.failure, plan.oci, head, Body::Begun, read, record).await
        }
        Err(Failed::Client(error)) => {
            record.error = Some(error);
            Next::Abort
        }
    }
}

impl Exchange<'_> {
    fn limits(&self) -> &crate::config::Limits {
        &self.client.worker.shared.config.limits
    }

    /// The head for the upstream.
    fn request_head(&self) -> Vec<u8> {
        let Allowed { permit, head, target, from, .. } = *self.allowed;
        let mut out = Vec::with_capacity(HEAD_ROOM);
        forward::request_head(permit, head, target, from, &mut out);
        out
    }

    /// Bytes that the request's body may have.
    fn most(&self) -> u64 {
        if self.allowed.plan.is_manifest_upload { self.limits().manifest_bytes as u64 } else { u64::MAX }
    }

    /// A request without a body: it may be sent again while no response has come, if it changes nothing.
    async fn without_body(&self, upstreams: &Upstreams, record: &mut Record) -> Result<Next, Failed> {
        let safe = matches!(self.allowed.head.method, "GET" | "HEAD");
        let (mut tries, mut failures) = (upstreams.tries(safe, self.allowed.at), None);
        while let Some(lease) = tries.attempt() {
            match blame(&lease, self.once(&lease, safe, &tries, record).await) {
                Err(Failed::Retry(cause)) => failures = Some(cause.after(failures, &lease)),
                done => return done,
            }
        }
        Err(given_up(failures))
    }

    /// One upstream; a kept connection that turns out to be dead is replaced by a new one.
    async fn once(
        &self,
        lease: &Lease<'_>,
        safe: bool,
        tries: &Tries<'_>,
        record: &mut Record,
    ) -> Result<Next, Failed> {
        let mut up = lease.connection().await.map_err(|error| cannot_connect(&error))?;
        loop {
            let patience = tries.patience(self.limits().response_timeout);
            match self.ask(&mut up, patience).await {
                Ok(len) => {
                    let status = status(&up.read).filter(|status| safe && is_failure(*status));
                    if let Some(status) = status.filter(|_| tries.has_better()) {
                        return Err(Failed::Retry(Cause {
                            failure: Failure::BadGateway(
                                "the service behind this gate failed: try again, or tell its administrator",
                            ),
                            why: format!("it answers {status}"),
                        }));
                    }
                    let (next, then) = self.respond(lease, &mut up, len, record).await;
                    self.settle(lease, up, then);
                    return Ok(next);
                }
                Err(NoResponse::Lost { silent: true, .. }) if up.reused && safe => {
                    up = Box::pin(lease.connect()).await.map_err(|error| cannot_connect(&error))?;
                }
                Err(error) if safe => return Err(Failed::Retry(no_response(&error))),
                Err(error) => return Err(Failed::Final(no_response(&error))),
            }
        }
    }

    async fn ask(&self, up: &mut Connection, patience: Duration) -> Result<usize, NoResponse> {
        let lost = |error| NoResponse::Lost { error, silent: true };
        up.stream.expect_large_body(self.allowed.plan.is_blob);
        // Made for each attempt, and gone while the answer takes its time: most requests have one attempt.
        up.stream.write_all(&self.request_head()).await.map_err(lost)?;
        up.stream.socket().expect_within(patience);
        response_head(&up.stream, &mut up.read).await
    }

    /// A request with a body: it goes to the first upstream that takes the connection, and never twice.
    async fn with_body(&self, upstreams: &Upstreams, read: &mut Vec<u8>, record: &mut Record) -> Result<Next, Failed> {
        let (mut tries, mut failures) = (upstreams.tries(false, self.allowed.at), None);
        while let Some(lease) = tries.attempt() {
            match blame(&lease, lease.connection().await.map_err(|error| cannot_connect(&error))) {
                Ok(up) => return blame(&lease, self.upload(&lease, up, read, record).await),
                Err(Failed::Retry(cause)) => failures = Some(cause.after(failures, &lease)),
                Err(failed) => return Err(failed),
            }
        }
        Err(given_up(failures))
    }

    async fn upload(
        &self,
        lease: &Lease<'_>,
        mut up: Connection,
        read: &mut Vec<u8>,
        record: &mut Record,
    ) -> Result<Next, Failed> {
        let stream = &self.client.stream;
        if self.allowed.head.expects_continue && read.is_empty() {
            stream.write_all(CONTINUE).await.map_err(|error| Failed::Client(error.to_string()))?;
        }
        let received = Moved::default();
        let sent = self.send_and_await(lease, &mut up, &received, read, record).await;
        record.received = received.total();
        count_received(self.client, &received);
        match sent? {
            Sent::Whole(len) => {
                let (next, then) = self.respond(lease, &mut up, len, record).await;
                self.settle(lease, up, then);
                Ok(next)
            }
            Sent::CutShort(len) => {
                let (next, _) = self.respond_over(lease, &up.stream, &mut up.read, len, false, record).await;
                Ok(linger(next))
            }
            Sent::Answered(next) => Ok(linger(next)),
        }
    }

    /// Sends the request and waits for the head of its response. Where the response comes first, it is relayed while the
    /// rest of the request is still on its way: side by side, or a service that echoes would fill up both directions.
    async fn send_and_await(
        &self,
        lease: &Lease<'_>,
        up: &mut Connection,
        received: &Moved,
        read: &mut Vec<u8>,
        record: &mut Record,
    ) -> Result<Sent, Failed> {
        let stream = &self.client.stream;
        let (upstream, answer) = (&up.stream, &mut up.read);
        let body = relay::Body {
            from: stream,
            to: upstream,
            framing: self.allowed.head.framing,
            rechunk: self.allowed.head.framing == Framing::Chunked,
            most: self.most(),
            moved: received,
        };
        let behind = std::mem::take(read);
        let mut sending = pin!(self.client.worker.mover.relay(&body, &behind, read, self.request_head()));
        let len = {
            let mut head = pin!(response_head(upstream, answer));
            match select(sending.as_mut(), head.as_mut()).await {
                Either::Right((len, _)) => len,
                Either::Left((Err(broken @ (Broken::Source(_) | Broken::Chunks(_) | Broken::TooLarge(_))), _)) => {
                    return Err(self.client_broke(&broken));
                }
                Either::Left((result, _)) => {
                    let patience = if result.is_ok() { self.limits().response_timeout } else { LAST_WORDS };
                    stream.socket().expect_nothing();
                    upstream.socket().expect_within(patience);
                    let len = head.await.map_err(|error| Failed::Final(no_response(&error)))?;
                    return Ok(if result.is_ok() { Sent::Whole(len) } else { Sent::CutShort(len) });
                }
            }
        };
        let len = len.map_err(|error| Failed::Final(no_response(&error)))?;
        let mut responding = pin!(self.respond_over(lease, upstream, answer, len, false, record));
        let (next, _) = match select(responding.as_mut(), sending.as_mut()).await {
            // When the response is out, the rest of the request has no one to go to.
            Either::Left((done, _)) => done,
            // The upstream may wait for the rest before it ends its response: nobody would ever end this.
            Either::Right((Err(broken @ (Broken::Source(_) | Broken::Chunks(_) | Broken::TooLarge(_))), _)) => {
                return Err(Failed::Client(broken.to_string()));
            }
            Either::Right((_, responding)) => responding.await,
        };
        Ok(Sent::Answered(next))
    }

    fn client_broke(&self, broken: &Broken) -> Failed {
        if let Broken::TooLarge(most) = broken {
            let failure = Failure::LargeManifest(usize::try_from(*most).unwrap_or(usize::MAX));
            return Failed::Final(Cause { failure, why: broken.to_string() });
        }
        if matches!(broken, Broken::Chunks(_)) {
            let failure = Failure::Reject(Reject::Malformed("the request body's chunked coding is malformed"));
            return Failed::Final(Cause { failure, why: broken.to_string() });
        }
        Failed::Client(match self.client.stream.socket().expired() {
            true => "the request body came too slowly".to_owned(),
            false => broken.to_string(),
        })
    }

    /// Relays the response to a request that went out whole, and says what becomes of the upstream's connection.
    async fn respond(&self, lease: &Lease<'_>, up: &mut Connection, len: usize, record: &mut Record) -> (Next, Then) {
        if let Some(protocol) = self.allowed.head.switches_to()
            && head::response(&up.read[..len], self.allowed.head.method)
                .is_ok_and(|answer| answer.switched_to(protocol))
        {
            lease.answered(101);
            record.awaited = Some(self.allowed.at.elapsed());
            record.status = 101;
            record.upstream = Some(lease.service().authority.clone());
            return (Next::Close, Then::Switch(len));
        }
        let (next, keep) = self.respond_over(lease, &up.stream, &mut up.read, len, true, record).await;
        (next, if keep { Then::Keep } else { Then::Close })
    }

    fn settle(&self, lease: &Lease<'_>, up: Connection, then: Then) {
        match then {
            Then::Keep => lease.put(up),
            Then::Switch(len) => self.switched.set(Some(Box::new((up, len)))),
            Then::Close => {}
        }
    }

    /// Relays a response, of which `read` has the head in its first `len` bytes: what becomes of the client's connection, and
    /// whether the upstream's can be used again. `complete` says whether the request has been read to its end.
    async fn respond_over(
        &self,
        lease: &Lease<'_>,
        upstream: &Stream,
        read: &mut Vec<u8>,
        len: usize,
        complete: bool,
        record: &mut Record,
    ) -> (Next, bool) {
        record.awaited = Some(self.allowed.at.elapsed());
        let whole = std::mem::take(read);
        let (head_bytes, behind) = whole.split_at(len);
        let response = match head::response(head_bytes, self.allowed.head.method) {
            Ok(response) if response.status != 101 => response,
            _ => {
                let (cause, mut nothing) = (no_response(&NoResponse::Invalid(Reject::Version)), Vec::new());
                lease.failed("its response head is not one that can be relayed");
                record.error = Some("the upstream's response head is not one that can be relayed".to_owned());
                // An upstream that changes the protocol unasked may have meant the next bytes of the client for it.
                let body = Body::Begun;
                let next = self
                    .client
                    .refuse(&cause.failure, self.allowed.plan.oci, self.allowed.head, body, &mut nothing, record)
                    .await;
                return (next, false);
            }
        };
        let keep_alive = complete && self.allowed.head.keep_alive && self.client.may_go_on();
        let plan = forward::plan_response(&response, self.allowed.head.version, keep_alive);
        record.status = response.status;
        lease.answered(response.status);
        if self.client.worker.shared.log.is_on() {
            record.upstream = Some(lease.service().authority.clone());
        }
        let out = self.answer_head(&response, &plan, lease, whole.len());
        let (client, sent) = (&self.client.stream, Moved::default());
        let (framing, rechunk) = (response.framing, plan.framing == Framing::Chunked);
        let body = relay::Body { from: upstream, to: client, framing, rechunk, most: u64::MAX, moved: &sent };
        let result = self.client.worker.mover.relay(&body, behind, read, out).await;
        record.sent = sent.total();
        record.relay = self.client.worker.shared.counters.body(&sent, client);
        match result {
            Ok(()) if !read.is_empty() => {
                // Who miscounts once is not believed again: nobody knows whose bytes these are.
                record.error = Some("the upstream sent more than its response has".to_owned());
                (Next::Close, false)
            }
            Ok(()) => (if plan.keep_alive { Next::KeepAlive } else { Next::Close }, response.keep_alive),
            Err(broken) => {
                record.error = Some(broken.to_string());
                // By length or last chunk the client sees what is missing, and goes on from the last byte that it got.
                let seen = plan.framing != Framing::UntilClose;
                (if seen { Next::Cut } else { Next::Abort }, false)
            }
        }
    }

    /// The head for the client, with room for what came behind the upstream's: `arrived` bytes in all.
    fn answer_head(
        &self,
        response: &ResponseHead<'_>,
        plan: &ResponsePlan,
        lease: &Lease<'_>,
        arrived: usize,
    ) -> Vec<u8> {
        let public_url = self.allowed.plan.site(&self.client.worker.shared.sites).public_url.as_deref();
        let own = OwnOrigin { authorities: [&lease.service().authority, self.allowed.from.host], public_url };
        let mut out = Vec::with_capacity(HEAD_ROOM.max(arrived));
        forward::response_head(response, plan, self.allowed.head.version, &own, &mut out);
        out
    }
}

impl Cause {
    /// This cause after those of the attempts before it.
    fn after(self, earlier: Option<Cause>, lease: &Lease<'_>) -> Self {
        let earlier = earlier.map(|earlier| earlier.why + "; ").unwrap_or_default();
        Self { why: format!("{earlier}{}: {}", lease.service().url, self.why), failure: self.failure }
    }
}

/// Counts the bytes of a client's body.
pub(super) fn count_received(client: &Client<'_>, received: &Moved) {
    let [copied, spliced] = &client.worker.shared.counters.received;
    Counters::add(copied, received.copied.get());
    Counters::add(spliced, received.spliced.get());
}

/// What is left when no upstream could be asked with success.
fn given_up(failures: Option<Cause>) -> Failed {
    failures.map_or_else(|| cannot_connect(&io::ErrorKind::AddrNotAvailable.into()), Failed::Retry)
}

/// Tells of a failure that was the upstream's; a client's malformed body is not.
fn blame<T>(lease: &Lease<'_>, result: Result<T, Failed>) -> Result<T, Failed> {
    if let Err(Failed::Retry(cause) | Failed::Final(cause)) = &result
        && matches!(cause.failure, Failure::BadGateway(_) | Failure::GatewayTimeout)
    {
        lease.failed(&cause.why);
    }
    result
}

/// The status of a response head that [`response_head`] found.
fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// After a response to a request that was not read to its end, the client may still be sending.
fn linger(next: Next) -> Next {
    if matches!(next, Next::Abort | Next::Cut) { next } else { Next::Linger }
}

fn cannot_connect(error: &io::Error) -> Failed {
    const UNREACHABLE: &str = "the service behind this gate cannot be reached: its administrator has to look";
    let (failure, why) = match error.kind() {
        io::ErrorKind::TimedOut => (Failure::GatewayTimeout, "connecting to the upstream took too long".to_owned()),
        io::ErrorKind::PermissionDenied => {
            let why = "a guard keeps the gate from its upstream: start the gate after the guard, with the guard's pins";
            (Failure::BadGateway(UNREACHABLE), why.to_owned())
        }
        _ => (Failure::BadGateway(UNREACHABLE), format!("connecting to the upstream: {error}")),
    };
    Failed::Retry(Cause { failure, why })
}

fn no_response(error: &NoResponse) -> Cause {
    let failure = match error {
        NoResponse::TimedOut => Failure::GatewayTimeout,
        NoResponse::Lost { .. } => Failure::BadGateway(
            "the service behind this gate closed the connection unanswered: try again, or tell its administrator",
        ),
        NoResponse::Invalid(_) => {
            Failure::BadGateway("the service behind this gate does not speak HTTP/1.1: tell its administrator")
        }
    };
    Cause { failure, why: format!("the upstream's response: {error}") }
}
