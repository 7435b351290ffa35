//! Is the gate of use to anybody: are its upstreams there, its authenticator, its guard?
//!
//! It asks them, with the gate's own right to connect. Waiting for a peer that is silent takes a while, so each question
//! has a thread of its own; they take turns, and who comes a moment later is told the same.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::health;
use crate::edge::sys::driver::Driver;
use crate::edge::upstream::{Pool, Service, response_head};
use crate::edge::watch::Watch;
use crate::edge::worker::Shared;
use crate::limit::MinimumRate;

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long an answer holds.
const FRESH: Duration = Duration::from_secs(1);

/// Callers that may wait at once.
const CALLERS: usize = 16;

/// The callers' turns, and the last answer.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    callers: AtomicUsize,
    last: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Readiness {
    /// One line for each part that fails; none: it is ready.
    pub(super) fn failures(&self, shared: &Shared) -> Vec<String> {
        let waiting = self.callers.fetch_add(1, Ordering::Relaxed);
        let failures =
            if waiting < CALLERS { self.ask(shared) } else { vec!["too many ask at once; ask again".to_owned()] };
        self.callers.fetch_sub(1, Ordering::Relaxed);
        failures
    }

    fn ask(&self, shared: &Shared) -> Vec<String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, failures)) if at.elapsed() < FRESH => failures.clone(),
            _ => {
                let failures = look(shared);
                *last = Some((Instant::now(), failures.clone()));
                failures
            }
        }
    }
}

fn look(shared: &Shared) -> Vec<String> {
    let mut failures = Vec::new();
    if shared.draining.load(Ordering::Relaxed) {
        failures.push("gate: it is stopping".to_owned());
    }
    failures.extend(guard(shared));
    match Driver::build() {
        Ok(mut driver) => failures.extend(driver.block_on(peers(shared))),
        Err(error) => failures.push(format!("gate: it cannot ask its peers: {error}")),
    }
    failures
}

/// A guard that is required, or whose connect ring the gate has to pass, has to hold.
fn guard(shared: &Shared) -> Option<String> {
    if !shared.config.guard.require && shared.voucher.is_none() {
        return None;
    }
    match shared.guard.as_ref().map_or("absent", |guard| guard.mode()) {
        "enforce" => None,
        mode => Some(format!("guard: it does not hold, its mode is {mode}")),
    }
}

async fn peers(shared: &Shared) -> Vec<String> {
    let mut failures = Vec::new();
    let watch = Watch::new(MinimumRate { bytes_per_second: 0, window: 0 });
    monoio::spawn(Rc::clone(&watch).run());
    let limits = &shared.config.limits;
    let pool = |service: &Service| Pool::new(service.clone(), Rc::clone(&watch), shared.voucher.clone(), limits);
    for site in &shared.sites {
        let mut last = Some("it has none".to_owned());
        for upstream in &site.upstreams {
            let pool = pool(&upstream.service);
            let result = in_time(health::check(&pool, site.kind)).await;
            last = result.err().map(|why| format!("{}: {why}", upstream.service.url));
            if last.is_none() {
                break;
            }
        }
        failures.extend(last.map(|why| format!("upstream: {why}")));
    }
    if let Some((service, path)) = &shared.backend {
        let answers = in_time(answers(&pool(service), path)).await;
        failures.extend(answers.err().map(|why| format!("auth backend: {}: {why}", service.url)));
    }
    failures
}

async fn in_time(check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    monoio::time::timeout(PATIENCE, check).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// Whatever it says to somebody without a login, it is there; unless it says itself that it is not.
async fn answers(pool: &Pool, path: &str) -> Result<(), String> {
    let mut connection = pool.connect().await.map_err(|error| format!("connecting: {error}"))?;
    let authority = &pool.service().authority;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: portcullis\r\nConnection: close\r\n\r\n");
    connection.stream.socket().expect_within(PATIENCE);
    connection.stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let len = response_head(&connection.stream, &mut connection.read).await.map_err(|error| error.to_string())?;
    match connection.read.get(9..12.min(len)) {
        Some([b'5', rest @ ..]) => Err(format!("it answers 5{}", String::from_utf8_lossy(rest))),
        Some(_) => Ok(()),
        None => Err("its answer is no HTTP".to_owned()),
    }
}
