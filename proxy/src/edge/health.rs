//! Checks: where a site has several upstreams, each is asked at intervals whether it is well, so that one that is not is
//! left alone before a request finds out.
//!
//! All checks run on one thread with a runtime of its own. A check is the one request of the gate that nobody needs a
//! permit for: it is always the same and carries nothing of a client's.

use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::balance::Upstream;
use super::sys::driver::Driver;
use super::telemetry::say;
use super::upstream::{Pool, response_head};
use super::watch::Watch;
use super::worker::Shared;
use crate::config::Kind;
use crate::limit::MinimumRate;

/// How long a registry may take to answer a check, once it is connected.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the checks, if there is anything to check.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let several = shared.sites.iter().any(|site| site.upstreams.len() > 1);
    if shared.config.limits.health_interval.is_zero() || !several {
        return Ok(());
    }
    let shared = Arc::clone(shared);
    let run = move || match Driver::build() {
        Ok(mut driver) => driver.block_on(check_all(shared)),
        Err(error) => say(&format!("warning: upstreams are not checked: {error}")),
    };
    thread::Builder::new().name("health".to_owned()).spawn(run).map(drop)
}

async fn check_all(shared: Arc<Shared>) {
    let watch = Watch::new(MinimumRate { bytes_per_second: 0, window: 0 });
    monoio::spawn(Rc::clone(&watch).run());
    let mut checks = Vec::new();
    for site in shared.sites.iter().filter(|site| site.upstreams.len() > 1) {
        for upstream in &site.upstreams {
            let limits = &shared.config.limits;
            let pool = Pool::new(upstream.service.clone(), Rc::clone(&watch), shared.voucher.clone(), limits);
            let (upstream, draining) = (Arc::downgrade(upstream), Arc::clone(&shared.draining));
            checks.push(monoio::spawn(keep_checking(draining, upstream, pool, site.kind, limits.health_interval)));
        }
    }
    drop(shared);
    for check in checks {
        check.await;
    }
}

/// Until a configuration without this upstream has taken over, or the gate drains.
async fn keep_checking(draining: Arc<AtomicBool>, upstream: Weak<Upstream>, pool: Pool, kind: Kind, every: Duration) {
    while !draining.load(Ordering::Relaxed) && upstream.strong_count() > 0 {
        let result = check(&pool, kind).await;
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.checked(&result);
        drop(upstream);
        monoio::time::sleep(every).await;
    }
}

/// A registry has to know its own API, with or without a login of its own; of another service nothing can be asked but a
/// connection.
pub async fn check(pool: &Pool, kind: Kind) -> Result<(), String> {
    let mut connection = pool.connect().await.map_err(|error| format!("connecting: {error}"))?;
    if kind == Kind::Http {
        return Ok(());
    }
    let authority = &pool.service().authority;
    let request =
        format!("GET /v2/ HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: portcullis\r\nConnection: close\r\n\r\n");
    connection.stream.socket().expect_within(PATIENCE);
    connection.stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let len = response_head(&connection.stream, &mut connection.read).await.map_err(|error| error.to_string())?;
    match connection.read.get(9..12.min(len)) {
        Some(b"200" | b"401") => Ok(()),
        other => Err(format!("GET /v2/ answers {}", String::from_utf8_lossy(other.unwrap_or_default()))),
    }
}
