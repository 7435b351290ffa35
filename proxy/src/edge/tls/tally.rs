//! What became of the handshakes: counted all, told of some.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kernel::Taken;
use super::session::Session;
use crate::edge::telemetry::{Counters, say};

/// One line about failed handshakes in this time: a scanner must not fill the log.
const QUIET: Duration = Duration::from_secs(10);

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It took too long.
    Timeout,
    /// The client went away.
    Closed,
    /// What came is not TLS.
    Malformed,
    /// No version, cipher or the like in common.
    Incompatible,
    /// The client's certificate is not one of `client_ca`, or expired.
    Certificate,
    /// The client refused: it does not trust our certificate, most often.
    Alert,
    /// Too many others were under way.
    Busy,
    /// Anything else.
    Other,
}

/// The reasons in the order of their counters.
pub const REASONS: [(Reason, &str); 8] = [
    (Reason::Timeout, "timeout"),
    (Reason::Closed, "closed"),
    (Reason::Malformed, "malformed"),
    (Reason::Incompatible, "incompatible"),
    (Reason::Certificate, "certificate"),
    (Reason::Alert, "alert"),
    (Reason::Busy, "busy"),
    (Reason::Other, "other"),
];

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Handshakes by version (1.2, 1.3) and whether they took up an earlier session.
    pub done: [[AtomicU64; 2]; 2],
    /// Failures by [`REASONS`].
    pub failed: [AtomicU64; 8],
    /// Connections by who encrypts them: this process, the kernel.
    pub taken: [AtomicU64; 2],
    /// Times that changed files were taken.
    pub renewed: AtomicU64,
    /// Times that changed files could not be used.
    pub renewal_failed: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Reason {
    /// The reason of an error; `expired` says that the deadline ended it.
    pub fn of(error: &io::Error, expired: bool) -> Self {
        use rustls::Error as Tls;
        if expired {
            return Self::Timeout;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
            Some(Tls::InvalidMessage(_)) => Self::Malformed,
            Some(Tls::PeerIncompatible(_)) => Self::Incompatible,
            Some(Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented) => Self::Certificate,
            Some(Tls::AlertReceived(_)) => Self::Alert,
            Some(_) => Self::Other,
            None => Self::Closed,
        }
    }

    fn index(self) -> usize {
        REASONS.iter().position(|(reason, _)| *reason == self).unwrap_or(REASONS.len() - 1)
    }
}

impl Tally {
    /// Counts a handshake that succeeded.
    pub fn done(&self, session: &Session) {
        let version = usize::from(session.version() == "1.3");
        Counters::add(&self.done[version][usize::from(session.is_resumed())], 1);
    }

    /// Counts who encrypts a connection from now on.
    pub fn taken(&self, by: &Taken) {
        Counters::add(&self.taken[usize::from(matches!(by, Taken::Kernel(_)))], 1);
    }

    /// Counts one that failed, and says so from time to time. Who merely went away again is not worth a line.
    pub fn failed(&self, reason: Reason, peer: SocketAddr, error: &dyn std::fmt::Display) {
        Counters::add(&self.failed[reason.index()], 1);
        if reason == Reason::Closed {
            return;
        }
        if let Some(untold) = self.may_tell() {
            let word = REASONS[reason.index()].1;
            let more = if untold > 0 { format!(" (and {untold} others failed)") } else { String::new() };
            say(&format!("no TLS with {peer}: {word}: {error}{more}"));
        }
    }

    /// How many went untold, when it is time for another line.
    fn may_tell(&self) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| last.elapsed() < QUIET) {
            told.untold += 1;
            return None;
        }
        told.last = Some(Instant::now());
        Some(std::mem::take(&mut told.untold))
    }

    /// The handshakes as samples: labels and value.
    pub fn done_samples(&self) -> Vec<(String, u64)> {
        let all = ["1.2", "1.3"].iter().zip(&self.done).flat_map(|(version, kinds)| {
            ["no", "yes"].iter().zip(kinds).map(move |(resumed, count)| {
                (format!("{{version=\"{version}\",resumed=\"{resumed}\"}}"), count.load(Ordering::Relaxed))
            })
        });
        all.collect()
    }

    /// Who encrypts, as samples.
    pub fn taken_samples(&self) -> Vec<(String, u64)> {
        let all = ["process", "kernel"].iter().zip(&self.taken);
        all.map(|(by, count)| (format!("{{by=\"{by}\"}}"), count.load(Ordering::Relaxed))).collect()
    }

    /// The failures as samples.
    pub fn failed_samples(&self) -> Vec<(String, u64)> {
        let all = REASONS.iter().zip(&self.failed);
        all.map(|((_, word), count)| (format!("{{reason=\"{word}\"}}"), count.load(Ordering::Relaxed))).collect()
    }
}
