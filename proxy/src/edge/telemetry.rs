//! What the gate tells of itself: one JSON line for each exchange, and counters.
//!
//! Lines are written by a thread of their own behind a bounded queue. When the disk is full or slower than the traffic,
//! lines are dropped and counted; the traffic does not wait. Nor does it wake the writer for each line: having written
//! what was there, the writer rests, and what came meanwhile goes out together.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;

use self::lines::Lines;
use super::relay::Moved;
use super::requests;
use super::stream::Stream;
use super::sys::privilege::is_root;
use super::tls::tally::Tally;
use crate::config::AccessLog;

mod lines;

/// Lines that may wait for the disk.
const QUEUE: usize = 8192;

/// How long the writer rests after it has written, and lines wait for company.
const REST: Duration = Duration::from_millis(20);

/// How long the end of the gate may wait for the last lines.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Counters of the whole process, all since the start unless they say otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Exchanges by the hundreds of their status; index 0: none was sent.
    pub exchanges: [AtomicU64; 6],
    /// Verdicts by source: policy, cache, flight, asked, throttle, stale, certificate.
    pub verdicts: [AtomicU64; 7],
    /// Requests, as each worker counts them.
    pub requests: requests::All,
    /// TLS handshakes and renewals.
    pub tls: Tally,
    /// Connections closed for a PROXY header that was missing, malformed or late.
    pub proxy_refused: AtomicU64,
    /// Body bytes that crossed user space.
    pub bytes_copied: AtomicU64,
    /// Body bytes that were spliced from plain socket to plain socket.
    pub bytes_spliced: AtomicU64,
    /// Body bytes that were spliced into a connection that the kernel encrypts.
    pub bytes_ktls: AtomicU64,
    /// The same of requests: copied, spliced.
    pub received: [AtomicU64; 2],
    /// Reloads: taken, refused.
    pub reloads: [AtomicU64; 2],
    /// 1 while the last reload was refused.
    pub reload_refused: AtomicU64,
    /// Open downstream connections, now.
    pub connections: AtomicU64,
    /// Connections closed at once because there were too many.
    pub connections_refused: AtomicU64,
    /// Connections closed at once because their peer had too many.
    pub connections_refused_to_peer: AtomicU64,
}

/// How a response body moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayPath {
    /// Through this process.
    #[default]
    Copy,
    /// Spliced, as it was.
    Splice,
    /// Spliced, and encrypted by the kernel.
    Ktls,
}

impl RelayPath {
    /// The word for it in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Ktls => "ktls",
        }
    }
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts a response's body, and says how it went to a client.
    pub fn body(&self, moved: &Moved, to: &Stream) -> RelayPath {
        Self::add(&self.bytes_copied, moved.copied.get());
        let (path, counter) = match to.is_kernel_tls() {
            true => (RelayPath::Ktls, &self.bytes_ktls),
            false => (RelayPath::Splice, &self.bytes_spliced),
        };
        Self::add(counter, moved.spliced.get());
        if moved.spliced.get() > 0 { path } else { RelayPath::Copy }
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
    /// The kind of endpoint that was asked for, once known.
    pub endpoint: Option<&'static str>,
    /// The user, once known.
    pub user: Option<String>,
    /// All that it had to be allowed, as scopes.
    pub access: Option<String>,
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
    /// How the response body moved.
    pub relay: RelayPath,
    /// The upstream that answered.
    pub upstream: Option<Arc<str>>,
    /// From the first byte to the last.
    pub took: Duration,
    /// Of it, until there was a verdict.
    pub judged: Option<Duration>,
    /// Of it, from the verdict to the head of the upstream's answer.
    pub awaited: Option<Duration>,
    /// What went wrong on the way.
    pub error: Option<String>,
}

impl Record {
    /// As one line of JSON, without its end.
    pub fn line(&self) -> String {
        let time = self.began.and_then(|t| jiff::Timestamp::try_from(t).ok()).map(|t| format!("{t:.3}"));
        let seconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e6;
        json!({
            "time": time,
            "peer": self.peer.map(|peer| peer.to_string()),
            "tls": self.tls,
            "method": self.method,
            "target": self.target,
            "endpoint": self.endpoint,
            "user": self.user,
            "access": self.access,
            "rule": self.rule,
            "verdict": self.verdict,
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
            "relay": self.relay.as_str(),
            "upstream": self.upstream.as_deref(),
            "seconds": seconds(self.took),
            "verdict_seconds": self.judged.map(seconds),
            "upstream_seconds": self.awaited.map(seconds),
            "error": self.error,
        })
        .to_string()
    }
}

type Out = Box<dyn Write + Send>;
/// Without a way out yet, where only the user that the gate becomes may open the file.
type Writer = (Option<Out>, Receiver<Order>);

/// What the writer is told.
enum Order {
    Write(Box<Record>),
    /// Go on in this file.
    GoOn(Out),
    /// Say when all before this is written.
    Finish(std::sync::mpsc::Sender<()>),
}

/// The way to the access log.
#[derive(Default)]
pub struct Log {
    path: Option<PathBuf>,
    queue: Option<SyncSender<Order>>,
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
        let (out, path): (Option<Out>, _) = match to {
            AccessLog::Off => return Ok(Self::default()),
            AccessLog::Stdout => (Some(Box::new(io::stdout())), None),
            // Root without its capabilities may not write in a directory of the gate's user.
            AccessLog::File(path) => match append(path) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_root() => {
                    (None, Some(path.clone()))
                }
                opened => (Some(Box::new(opened?)), Some(path.clone())),
            },
        };
        let (queue, orders) = sync_channel(QUEUE);
        Ok(Self { path, queue: Some(queue), writer: Mutex::new(Some((out, orders))), ..Self::default() })
    }

    /// Starts the writer.
    ///
    /// # Errors
    /// When the thread cannot be started, or the file not be opened.
    pub fn start(&self) -> io::Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((out, orders)) = writer {
            let out: Out = match (out, &self.path) {
                (Some(out), _) => out,
                (None, Some(path)) => Box::new(append(path)?),
                (None, None) => return Ok(()),
            };
            let dropped = Arc::clone(&self.dropped);
            let task = move || write_lines(Lines::new(out), &orders, &dropped);
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
            && queue.try_send(Order::Write(Box::new(record))).is_err()
        {
            Counters::add(&self.dropped, 1);
        }
    }

    /// Goes on in a new file of the same name, where the log is a file that somebody has moved away: its path.
    ///
    /// # Errors
    /// When it cannot be opened; the old one is then written on.
    pub fn reopen(&self) -> io::Result<Option<&std::path::Path>> {
        let (Some(path), Some(queue)) = (&self.path, &self.queue) else { return Ok(None) };
        let file = append(path)?;
        let _ = queue.send(Order::GoOn(Box::new(file)));
        Ok(Some(path))
    }

    /// Waits until every line is written, within reason.
    pub fn finish(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = channel();
        if queue.send(Order::Finish(done)).is_ok() {
            let _ = wait.recv_timeout(LAST_LINES);
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
    let remedy = || super::sandbox::remedy(path).map_or(String::new(), |remedy| format!("; {remedy}"));
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}{}", path.display(), remedy())))
}

/// Writes what is there, then rests: whoever sends meanwhile finds nobody to wake. What cannot be written is counted, and
/// told once until it can again.
fn write_lines(mut out: Lines, orders: &Receiver<Order>, dropped: &AtomicU64) {
    while let Ok(first) = orders.recv() {
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Write(record) => {
                    out.push(&record.line());
                    if out.is_full() {
                        flush(&mut out, dropped);
                    }
                }
                Order::GoOn(file) => {
                    flush(&mut out, dropped);
                    out = Lines::new(file);
                }
                Order::Finish(done) => {
                    flush(&mut out, dropped);
                    let _ = done.send(());
                }
            }
            next = orders.try_recv().ok();
        }
        flush(&mut out, dropped);
        std::thread::sleep(REST);
    }
}

fn flush(out: &mut Lines, dropped: &AtomicU64) {
    if out.is_empty() {
        return;
    }
    let failing = out.has_failed();
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
