//! What the gate tells of itself as a process: which it is, since when, what it is told and what it asks.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::edge::server;
use crate::edge::worker::Shared;

/// When the gate started, in seconds since 1970.
pub(super) fn started() -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    *STARTED.get_or_init(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Appends the families in Prometheus' text format.
pub(super) fn metrics(shared: &Shared, out: &mut String) {
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# HELP portcullis_{name} {help}\n# TYPE portcullis_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "portcullis_{name}{labels} {value}");
        }
    };
    let counters = &shared.counters;
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let version = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    family("build_info", "gauge", "Which gate this is.", &[(version, 1)]);
    family("start_time_seconds", "gauge", "When it started, in seconds since 1970.", &[("", started())]);
    family("workers", "gauge", "Worker threads.", &[("", server::worker_count(&shared.config) as u64)]);
    let draining = u64::from(shared.draining.load(Ordering::Relaxed));
    family("draining", "gauge", "1 once it finishes what runs and takes nothing new.", &[("", draining)]);
    let [taken, refused] = &counters.reloads;
    let reloads = [("{result=\"ok\"}", load(taken)), ("{result=\"failed\"}", load(refused))];
    family("reloads_total", "counter", "Reloads of the configuration by what became of them.", &reloads);
    let last = 1 - load(&counters.reload_refused).min(1);
    family("last_reload_success", "gauge", "0 while the file is not the configuration that holds.", &[("", last)]);
    let [copied, spliced] = &counters.received;
    let bytes = [("{path=\"splice\"}", load(spliced)), ("{path=\"copy\"}", load(copied))];
    family("request_bytes_total", "counter", "Request body bytes by how they moved.", &bytes);
    let evicted = [("", shared.gate.evicted())];
    family("verdicts_evicted_total", "counter", "Answers thrown out of the cache for want of room.", &evicted);
    let asked = [("", shared.gate.questions() as u64)];
    family("verdict_flights", "gauge", "Questions to the authenticators under way, equal ones once.", &asked);
    let turns = [("", shared.gate.turns().taken() as u64)];
    family("auth_backend_requests", "gauge", "Requests to the auth backend under way.", &turns);
}
