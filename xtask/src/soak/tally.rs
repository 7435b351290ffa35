//! What happened, and what must not have.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::lab::interrupt;

/// Counts of all kinds, shared by everybody.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) downloads: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) ranges: AtomicU64,
    pub(super) uploads: AtomicU64,
    pub(super) images: AtomicU64,
    pub(super) strangers: AtomicU64,
    /// Transfers that the registry's end cut short.
    pub(super) cut: AtomicU64,
    /// Answers other than a yes while the registry was away.
    pub(super) refused: AtomicU64,
    pub(super) resets: AtomicU64,
    pub(super) half_closes: AtomicU64,
    pub(super) stalls: AtomicU64,
    pub(super) kills: AtomicU64,
    pub(super) stops: AtomicU64,
    pub(super) lines: AtomicU64,
    pub(super) permitted: AtomicU64,
    violations: Mutex<Vec<String>>,
    stopped: AtomicBool,
    closed: AtomicBool,
}

impl Tally {
    /// Notes that something must not have happened.
    pub(super) fn violated(&self, what: String) {
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        if violations.len() < 20 {
            violations.push(what);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all clients to end.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub(super) fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::SeqCst) && !interrupt::requested()
    }

    /// Sleeps, but not past the end.
    pub(super) fn sleep(&self, time: Duration) {
        let end = std::time::Instant::now() + time;
        while self.goes_on() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells the reader of the log that nothing more will come.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What a run without has not shown anything about.
    pub(super) fn must_happen(&self) -> [(&'static str, &AtomicU64); 5] {
        [
            ("downloads", &self.downloads),
            ("uploads", &self.uploads),
            ("strangers", &self.strangers),
            ("registry's kills", &self.kills),
            ("permitted exchanges in the access log", &self.permitted),
        ]
    }

    pub(super) fn line(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} downloads, {} uploads, {} images, {} kills",
            load(&self.downloads),
            load(&self.uploads),
            load(&self.images),
            load(&self.kills)
        )
    }

    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        [
            ("downloads whose SHA-256 is their digest", &self.downloads),
            ("their MiB", &self.bytes),
            ("ranges, compared", &self.ranges),
            ("uploads, by length or in chunks", &self.uploads),
            ("images pushed and pulled by skopeo", &self.images),
            ("strangers, refused", &self.strangers),
            ("transfers cut by the registry's end, and seen to be", &self.cut),
            ("answers other than yes", &self.refused),
            ("clients: resets", &self.resets),
            ("clients: half-closes", &self.half_closes),
            ("clients: stalls", &self.stalls),
            ("registry: kills and restarts", &self.kills),
            ("registry: stopped for a moment", &self.stops),
            ("lines of the access log read", &self.lines),
            ("of them 2xx, each with its permit", &self.permitted),
        ]
        .map(|(name, counter)| {
            let value = counter.load(Ordering::Relaxed);
            vec![name.to_owned(), if name == "their MiB" { value >> 20 } else { value }.to_string()]
        })
        .into()
    }
}
