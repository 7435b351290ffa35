//! Requests by what they were for, how they ended and how long they took. Each worker counts its own, so no two of them
//! write to the same memory; who asks adds them up.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::telemetry::{Counters, Record};

/// Endpoints of a registry; of other services nothing is known, and of some requests not even which it was for.
const ENDPOINTS: [&str; 11] =
    ["blob", "manifest", "base", "tags", "upload", "upload-start", "referrers", "catalog", "ping", "http", "none"];
/// The hundreds of a status; none was sent.
pub const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Where a verdict came from, in the order of [`super::gate::Source`].
pub const SOURCES: [&str; 7] = ["policy", "cache", "flight", "asked", "throttle", "stale", "certificate"];
/// The upper ends of the buckets, in microseconds and as they are shown.
const BUCKETS: [(u64, &str); 12] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (30_000_000, "30"),
    (300_000_000, "300"),
];

/// What one worker has counted of one endpoint.
#[derive(Debug, Default)]
struct Endpoint {
    /// By status, then by verdict; the last verdict is none.
    ended: [[AtomicU64; SOURCES.len() + 1]; STATUSES.len()],
    took: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

/// What one worker has counted.
#[derive(Debug, Default)]
pub struct Requests([Endpoint; ENDPOINTS.len()]);

/// What all of them have.
#[derive(Debug, Default)]
pub struct All(Mutex<Vec<Arc<Requests>>>);

impl Requests {
    /// Counts one that has ended.
    pub fn count(&self, record: &Record) {
        let last = ENDPOINTS.len() - 1;
        let endpoint = ENDPOINTS.iter().position(|name| Some(*name) == record.endpoint).unwrap_or(last);
        let source = SOURCES.iter().position(|name| Some(*name) == record.verdict).unwrap_or(SOURCES.len());
        let micros = u64::try_from(record.took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.iter().position(|(end, _)| micros <= *end).unwrap_or(BUCKETS.len());
        let counts = &self.0[endpoint];
        Counters::add_own(&counts.ended[usize::from(record.status / 100).min(5)][source], 1);
        Counters::add_own(&counts.took[bucket], 1);
        Counters::add_own(&counts.micros, micros);
    }
}

impl All {
    /// The counters of one more worker.
    pub fn join(&self) -> Arc<Requests> {
        let own = Arc::new(Requests::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&own));
        own
    }

    fn total(&self, of: impl Fn(&Requests) -> &AtomicU64) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|one| of(one).load(Ordering::Relaxed)).sum()
    }

    /// Appends both families in Prometheus' text format. Writing into a String does not fail.
    pub fn metrics(&self, out: &mut String) {
        let name = "portcullis_requests_total";
        let _ = writeln!(out, "# HELP {name} Requests by endpoint, status and source of the verdict.");
        let _ = writeln!(out, "# TYPE {name} counter");
        for (e, endpoint) in ENDPOINTS.iter().enumerate() {
            for (s, status) in STATUSES.iter().enumerate() {
                for (v, verdict) in SOURCES.iter().chain(&["none"]).enumerate() {
                    let n = self.total(|one| &one.0[e].ended[s][v]);
                    if n > 0 {
                        let labels = format!("endpoint=\"{endpoint}\",status=\"{status}\",verdict=\"{verdict}\"");
                        let _ = writeln!(out, "{name}{{{labels}}} {n}");
                    }
                }
            }
        }
        let name = "portcullis_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} From a request's first byte to the answer's last, by endpoint.");
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (e, endpoint) in ENDPOINTS.iter().enumerate() {
            let mut below = 0;
            for (b, end) in BUCKETS.iter().map(|(_, end)| *end).chain(["+Inf"]).enumerate() {
                below += self.total(|one| &one.0[e].took[b]);
                let _ = writeln!(out, "{name}_bucket{{endpoint=\"{endpoint}\",le=\"{end}\"}} {below}");
            }
            let micros = self.total(|one| &one.0[e].micros);
            let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
            let _ = writeln!(out, "{name}_sum{{endpoint=\"{endpoint}\"}} {whole}.{rest:06}");
            let _ = writeln!(out, "{name}_count{{endpoint=\"{endpoint}\"}} {below}");
        }
    }
}
