//! What the gate tells of itself: one JSON line for each exchange, and counters.
//!
//! Lines are written by a thread of their own behind a bounded queue. When the disk is full or slower than the traffic,
//! lines are dropped and counted; the traffic does not wait.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;

use self::lines::Lines;
use super::tls::tally::Tally;
use crate::config::AccessLog;

mod lines;

/// Lines that may wait for the disk.
const QUEUE: usize = 8192;

/// Counters of the whole process, all since the start unless they say otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Exchanges by the hundreds of their status; index 0: none was sent.
    pub exchanges: [AtomicU64; 6],
    /// Verdicts by source: policy, cache, flight, asked, throttle, stale, certificate.
    pub verdicts: [AtomicU64; 7],
    /// TLS handshakes and renewals.
    pub tls: Tally,
    /// Connections closed for a PROXY header that was missing, malformed or late.
    pub proxy_refused: AtomicU64,
    /// Body bytes that crossed user space.
    pub bytes_copied: AtomicU64,
    /// Body bytes that were spliced.
    pub bytes_spliced: AtomicU64,
    /// Open downstream connections, now.
    pub connections: AtomicU64,
    /// Connections closed at once because there were too many.
    pub connections_refused: AtomicU64,
    /// Connections closed at once because their peer had too many.
    pub connections_refused_to_peer: AtomicU64,
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// One exchange as the access log tells it. No field ever holds a credential.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// When its first byte was there.
    pub began: Option<SystemTime>,
    /// The client.
    pub peer: Option<SocketAddr>,
    /// The TLS version, on an encrypted connection.
    pub tls: Option<&'static str>,
    /// The method; empty when the head was not understood.
    pub method: String,
    /// The target, without what a query may hold in secret.
    pub target: String,
    /// The user, once known.
    pub user: Option<String>,
    /// The rule that granted it, from 1.
    pub rule: Option<usize>,
    /// Where the verdict came from.
    pub verdict: Option<&'static str>,
    /// The status sent; 0: none.
    pub status: u16,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// Whether the response body was spliced.
    pub spliced: bool,
    /// The upstream that answered.
    pub upstream: Option<Arc<str>>,
    /// From the first byte to the last.
    pub took: Duration,
    /// What went wrong on the way.
    pub error: Option<String>,
}

impl Record {
    /// As one line of JSON, without its end.
    pub fn line(&self) -> String {
        let time = self.began.and_then(|t| jiff::Timestamp::try_from(t).ok()).map(|t| format!("{t:.3}"));
        json!({
            "time": time,
            "peer": self.peer.map(|peer| peer.to_string()),
            "tls": self.tls,
            "method": self.method,
            "target": self.target,
            "user": self.user,
            "rule": self.rule,
            "verdict": self.verdict,
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
            "relay": if self.spliced { "splice" } else { "copy" },
            "upstream": self.upstream.as_deref(),
            "seconds": (self.took.as_secs_f64() * 1e6).round() / 1e6,
            "error": self.error,
        })
        .to_string()
    }
}

type Writer = (Box<dyn Write + Send>, Receiver<Box<Record>>);

/// The way to the access log.
pub struct Log {
    queue: Option<SyncSender<Box<Record>>>,
    dropped: Arc<AtomicU64>,
    /// Until the writer has started.
    writer: Mutex<Option<Writer>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("on", &self.is_on()).finish()
    }
}

impl Log {
    /// Opens the log; its writer begins with [`Log::start`].
    ///
    /// # Errors
    /// When the file cannot be opened for appending; the text names it.
    pub fn prepare(to: &AccessLog) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match to {
            AccessLog::Off => return Ok(Self { queue: None, dropped: Arc::default(), writer: Mutex::default() }),
            AccessLog::Stdout => Box::new(io::stdout()),
            AccessLog::File(path) => Box::new(append(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        Ok(Self { queue: Some(queue), dropped: Arc::default(), writer: Mutex::new(Some((out, lines))) })
    }

    /// Starts the writer.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(&self) -> io::Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((out, lines)) = writer {
            let dropped = Arc::clone(&self.dropped);
            let task = move || write_lines(Lines::new(out), &lines, &dropped);
            std::thread::Builder::new().name("access-log".to_owned()).spawn(task)?;
        }
        Ok(())
    }

    /// Whether anybody reads what is logged.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Logs an exchange, or counts that it could not.
    pub fn write(&self, record: Record) {
        if let Some(queue) = &self.queue
            && queue.try_send(Box::new(record)).is_err()
        {
            Counters::add(&self.dropped, 1);
        }
    }

    /// Lines that nobody will read: the writer fell behind, or the disk took no more.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// One line on standard error.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "portcullis: {line}");
}

fn append(path: &std::path::Path) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Writes what is there before it waits again. What cannot be written is counted, and told once until it can again.
fn write_lines(mut out: Lines, records: &Receiver<Box<Record>>, dropped: &AtomicU64) {
    let mut failing = false;
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        while let Some(record) = next {
            out.push(&record.line());
            next = if out.is_full() { None } else { records.try_recv().ok() };
        }
        match out.flush() {
            Ok(()) if failing => say("access log: writing again"),
            Ok(()) => {}
            Err((lost, error)) => {
                Counters::add(dropped, lost);
                if !failing {
                    say(&format!("access log: {error}; lines are lost until it can be written again"));
                }
            }
        }
        failing = out.has_failed();
    }
}

/// A target for the log: the value of every query parameter that could be a signature or token is left out.
pub fn loggable_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key @ ("_state" | "token" | "access_token" | "password" | "signature" | "sig"), _)) => format!("{key}=…"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_the_client_sent() {
        let record = Record { target: "/a\n{\"x\":1}\u{2028}\"".to_owned(), status: 404, ..Record::default() };
        let line = record.line();
        assert!(!line.contains('\n'), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(parsed["target"], record.target);
        assert_eq!(parsed["status"], 404);
    }

    #[test]
    fn secrets_in_a_query_are_left_out() {
        assert_eq!(
            loggable_target("/v2/a/blobs/uploads/1?_state=abc&digest=d"),
            "/v2/a/blobs/uploads/1?_state=…&digest=d"
        );
        assert_eq!(loggable_target("/v2/"), "/v2/");
    }
}
