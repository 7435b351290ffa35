//! Several upstreams of a site: which one is asked, and what its answers say about it.
//!
//! What one worker counts (exchanges under way, kept connections) is its own; an upstream's health is everybody's, behind
//! a lock that nobody takes while all is well.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::telemetry::{Counters, say};
use super::upstream::{Connection, Pool, Service, Tally};
use super::worker::Site;
use crate::balance::health::{Change, Health, Standing, Terms, Ticket};
use crate::balance::idle::Need;
use crate::balance::{Balance, Wish};
use crate::config::Limits;
use crate::config::units::format_duration;
use crate::limit::Millis;

/// Upstreams that one request is sent to at the most.
const ATTEMPTS: usize = 4;

/// After so many times the time for one attempt no further one begins.
const RETRYING: u32 = 3;

/// The first while that an upstream is out, and the longest.
const PAUSE: Millis = 1_000;
const LONGEST_PAUSE: Millis = 60_000;

/// One upstream, as all workers share it.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub service: Service,
    /// It is the site's only one, and is asked whatever is known about it.
    alone: bool,
    start: Instant,
    health: Mutex<Health>,
    /// Copies of what the health says, to be read without the lock.
    calm: AtomicBool,
    up: AtomicBool,
    era: AtomicU64,
    tallies: Mutex<Vec<Arc<Tally>>>,
}

impl Upstream {
    /// The upstreams of one site, about which nothing is known yet.
    pub fn site(services: Vec<Service>, limits: &Limits) -> Vec<Arc<Self>> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (failures, successes) = (count(limits.health_failures), count(limits.health_successes));
        let terms = Terms { failures, successes, pause: PAUSE, longest: LONGEST_PAUSE };
        let alone = services.len() == 1;
        let upstream = |service| Self {
            service,
            alone,
            start: Instant::now(),
            health: Mutex::new(Health::new(terms)),
            calm: AtomicBool::new(true),
            up: AtomicBool::new(true),
            era: AtomicU64::new(0),
            tallies: Mutex::default(),
        };
        services.into_iter().map(|service| Arc::new(upstream(service))).collect()
    }

    /// Tells the result of a check.
    pub fn checked(&self, result: &Result<(), String>) {
        self.change(|health, _| health.checked(result.is_ok()), result.as_ref().err().map_or("", String::as_str));
    }

    fn standing(&self) -> Standing {
        if self.calm.load(Ordering::Acquire) { Standing::Up } else { self.health().standing(self.now()) }
    }

    fn begin(&self, chosen_as: Standing) -> Option<Ticket> {
        if self.calm.load(Ordering::Acquire) {
            return Some(Ticket::ordinary(self.era.load(Ordering::Relaxed)));
        }
        self.health().begin(chosen_as, self.now())
    }

    fn succeeded(&self, ticket: Ticket) {
        if ticket.is_trial() || !self.calm.load(Ordering::Acquire) {
            self.change(|health, _| health.succeeded(ticket), "");
        }
    }

    fn failed(&self, ticket: Ticket, why: &str) {
        self.change(|health, now| health.failed(ticket, now), why);
    }

    fn abandoned(&self, ticket: Ticket) {
        if ticket.is_trial() {
            self.health().abandoned(ticket);
        }
    }

    fn change(&self, witness: impl FnOnce(&mut Health, Millis) -> Option<Change>, why: &str) {
        let change = {
            let mut health = self.health();
            let change = witness(&mut health, self.now());
            self.era.store(health.era(), Ordering::Relaxed);
            self.up.store(health.is_up(), Ordering::Relaxed);
            self.calm.store(health.is_calm(), Ordering::Release);
            change
        };
        let Some(change) = change else { return };
        let url = &self.service.url;
        say(&match change {
            Change::Out(_) if self.alone => format!("upstream {url} fails: {why}"),
            Change::Out(pause) => {
                format!("upstream {url} is out for {}: {why}", format_duration(Duration::from_millis(pause)))
            }
            Change::Back => format!("upstream {url} is back"),
            Change::Sick => format!("upstream {url} fails its checks and is out: {why}"),
            Change::Well => format!("upstream {url} passes its checks again"),
        });
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        Millis::try_from(self.start.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    fn total(&self, of: fn(&Tally) -> &AtomicU64) -> u64 {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.iter().map(|tally| of(tally).load(Ordering::Relaxed)).sum()
    }
}

/// A site's upstreams, as one worker reaches them.
#[derive(Debug)]
pub struct Upstreams {
    members: Vec<(Arc<Upstream>, Pool)>,
    balance: RefCell<Balance>,
    retry_timeout: Duration,
}

impl Upstreams {
    /// With a pool for each.
    pub fn new(site: &Site, limits: &Limits, pool: impl Fn(&Service) -> Pool) -> Self {
        let member = |upstream: &Arc<Upstream>| {
            let pool = pool(&upstream.service);
            upstream.tallies.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(pool.tally()));
            (Arc::clone(upstream), pool)
        };
        let members: Vec<_> = site.upstreams.iter().map(member).collect();
        let balance = RefCell::new(Balance::new(members.len()));
        Self { members, balance, retry_timeout: limits.retry_timeout }
    }

    /// The attempts of one request; `repeatable` when it may be sent to one after the other.
    /// They began at `began`.
    pub fn tries(&self, repeatable: bool, began: Instant) -> Tries<'_> {
        Tries { upstreams: self, repeatable, tried: [0; ATTEMPTS], count: 0, began }
    }

    /// Looks over the kept connections.
    pub fn sweep(&self) {
        self.members.iter().for_each(|(_, pool)| pool.sweep());
    }
}

/// The attempts of one request, bounded in number and in time.
#[derive(Debug)]
pub struct Tries<'u> {
    upstreams: &'u Upstreams,
    repeatable: bool,
    /// Of these the first `count`.
    tried: [usize; ATTEMPTS],
    count: usize,
    began: Instant,
}

impl<'u> Tries<'u> {
    /// Begins the next attempt; none when there were enough.
    pub fn attempt(&mut self) -> Option<Lease<'u>> {
        if self.is_over() {
            return None;
        }
        loop {
            let wish = self.wish();
            let (index, standing) = self.upstreams.balance.borrow_mut().choose(&wish, |index| self.standing(index))?;
            let (upstream, pool) = &self.upstreams.members[index];
            // Between the look and the act another worker may have begun the trial: then look again.
            if let Some(ticket) = upstream.begin(standing) {
                self.tried[self.count] = index;
                self.count += 1;
                self.upstreams.balance.borrow_mut().begin(index);
                Counters::add_own(&pool.tally().requests, 1);
                Counters::add_own(&pool.tally().busy, 1);
                let need = if self.repeatable { Need::Any } else { Need::Sure };
                let ticket = Cell::new(Some(ticket));
                return Some(Lease { upstream, pool, balance: &self.upstreams.balance, index, need, ticket });
            }
        }
    }

    /// Whether another upstream promises more than an error that is in hand.
    pub fn has_better(&self) -> bool {
        let wish = self.wish();
        !self.is_over() && self.upstreams.balance.borrow().has_better(&wish, |index| self.standing(index))
    }

    /// How long to wait for an answer: less than `all` where another upstream may have it sooner.
    pub fn patience(&self, all: Duration) -> Duration {
        if self.repeatable && self.has_better() { all.min(self.upstreams.retry_timeout) } else { all }
    }

    fn wish(&self) -> Wish<'_> {
        Wish { tried: &self.tried[..self.count], repeatable: self.repeatable }
    }

    fn is_over(&self) -> bool {
        self.count >= ATTEMPTS.min(self.upstreams.members.len())
            || self.count > 0 && self.began.elapsed() >= self.upstreams.retry_timeout.saturating_mul(RETRYING)
    }

    fn standing(&self, index: usize) -> Standing {
        self.upstreams.members[index].0.standing()
    }
}

/// One attempt: an upstream counts as busy with it until it is dropped.
#[derive(Debug)]
pub struct Lease<'u> {
    upstream: &'u Upstream,
    pool: &'u Pool,
    balance: &'u RefCell<Balance>,
    index: usize,
    need: Need,
    /// Until it is known how it ended.
    ticket: Cell<Option<Ticket>>,
}

impl Lease<'_> {
    /// A connection that is good enough for this request.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    pub async fn connection(&self) -> io::Result<Connection> {
        self.pool.get(self.need).await
    }

    /// The upstream answered. An error of its own making is a failure, too.
    pub fn answered(&self, status: u16) {
        if is_failure(status) {
            self.failed(&format!("it answers {status}"));
        } else if let Some(ticket) = self.ticket.take() {
            self.upstream.succeeded(ticket);
        }
    }

    /// The upstream failed to answer.
    pub fn failed(&self, why: &str) {
        if let Some(ticket) = self.ticket.take() {
            Counters::add_own(&self.pool.tally().failures, 1);
            self.upstream.failed(ticket, why);
        }
    }
}

/// A status by which an upstream says that it cannot do what another one perhaps can.
pub fn is_failure(status: u16) -> bool {
    matches!(status, 500 | 502 | 503 | 504)
}

impl Deref for Lease<'_> {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        self.pool
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.balance.borrow_mut().end(self.index);
        Counters::add_own(&self.pool.tally().busy, 1_u64.wrapping_neg());
        if let Some(ticket) = self.ticket.take() {
            self.upstream.abandoned(ticket);
        }
    }
}

/// A further label and the value under it.
type Sample = (&'static str, fn(&Upstream) -> u64);

/// What the status page shows of each.
pub fn status(sites: &[Site]) -> Vec<serde_json::Value> {
    let all = sites.iter().flat_map(|site| site.upstreams.iter().map(move |one| (site, one)));
    let show = |(site, one): (&Site, &Arc<Upstream>)| {
        serde_json::json!({
            "site": site.hosts.first().map_or("default", String::as_str),
            "url": one.service.url.as_ref() as &str,
            "up": one.up.load(Ordering::Relaxed),
            "requests": one.total(|tally| &tally.requests),
            "failures": one.total(|tally| &tally.failures),
            "busy": one.total(|tally| &tally.busy),
            "idle": one.total(|tally| &tally.idle),
        })
    };
    all.map(show).collect()
}

/// Appends what is counted of all upstreams in Prometheus' text format.
pub fn metrics(sites: &[Site], out: &mut String) {
    let mut family = |name: &str, kind: &str, help: &str, state: &[Sample]| {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# HELP portcullis_upstream_{name} {help}\n# TYPE portcullis_upstream_{name} {kind}");
        for (site, upstream) in sites.iter().flat_map(|site| site.upstreams.iter().map(move |one| (site, one))) {
            let (site, url) = (site.hosts.first().map_or("default", String::as_str), &upstream.service.url);
            for (state, value) in state {
                let value = value(upstream);
                let _ =
                    writeln!(out, "portcullis_upstream_{name}{{site=\"{site}\",upstream=\"{url}\"{state}}} {value}");
            }
        }
    };
    let requests = "Attempts to have a request answered.";
    family("requests_total", "counter", requests, &[("", |one| one.total(|tally| &tally.requests))]);
    let failures = "Attempts that failed by the upstream's fault.";
    family("failures_total", "counter", failures, &[("", |one| one.total(|tally| &tally.failures))]);
    let opened = "Connections made.";
    family("connections_opened_total", "counter", opened, &[("", |one| one.total(|tally| &tally.opened))]);
    let states: [Sample; 2] = [
        (",state=\"busy\"", |one| one.total(|tally| &tally.busy)),
        (",state=\"idle\"", |one| one.total(|tally| &tally.idle)),
    ];
    family("connections", "gauge", "Connections by what they do: an exchange, or nothing.", &states);
    let up = "0 after failures in a row, until it answers again.";
    family("up", "gauge", up, &[("", |one| u64::from(one.up.load(Ordering::Relaxed)))]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::names::Name;

    fn upstream() -> Arc<Upstream> {
        let (name, _) = Name::new("127.0.0.1", 1);
        let service =
            || Service { url: "http://a".into(), authority: "a".into(), trust: None, name: Arc::clone(&name) };
        Upstream::site(vec![service(), service()], &Limits::default()).remove(0)
    }

    /// Of many threads that see that a trial is due, all at once, the tickets of those that may begin.
    fn rush(upstream: &Upstream) -> Vec<Ticket> {
        let due = Standing::Due { overdue: false };
        while upstream.standing() != due {
            std::thread::sleep(Duration::from_millis(5));
        }
        let begin = || upstream.begin(due);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn of_all_workers_one_begins_the_trial() {
        let upstream = upstream();
        for _ in 0..Limits::default().health_failures {
            let ticket = upstream.begin(Standing::Up).unwrap();
            upstream.failed(ticket, "test");
        }
        assert_eq!(upstream.standing(), Standing::Out);
        let first = rush(&upstream);
        assert_eq!(first.len(), 1);
        upstream.abandoned(first[0]);
        let second = rush(&upstream);
        assert_eq!(second.len(), 1, "the client of the first went away");
        upstream.succeeded(second[0]);
        assert_eq!(upstream.standing(), Standing::Up);
        assert!(upstream.calm.load(Ordering::SeqCst), "and nobody takes the lock any more");
    }
}
