//! What the gate tells of itself: one JSON line for each exchange, and counters.
//!
//! Lines are made by the workers, and written by a thread of their own behind a bounded queue. When the disk is full or
//! slower than the traffic, lines are dropped and counted; the traffic does not wait. Nor does it wake the writer for
//! each line: having written what was there, the writer rests, and what came meanwhile goes out together.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::lines::Lines;
use self::queue::{Order, Queue};
pub use self::record::{Record, loggable_target};
use super::relay::Moved;
use super::requests;
use super::stream::Stream;
use super::sys::privilege::is_root;
use super::tls::tally::Tally;
use crate::config::AccessLog;

mod lines;
mod queue;
mod record;

/// Room for a usual line.
const LINE: usize = 512;

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

    /// Adds to a counter that only this thread writes to: others read it, and nobody has to be kept out meanwhile.
    pub fn add_own(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts a response's body, and says how it went to a client.
    pub fn body(&self, moved: &Moved, to: &Stream) -> RelayPath {
        Self::add(&self.bytes_copied, moved.copied.get());
        let (path, counter) = match to.is_kernel_tls() {
            true => (RelayPath::Ktls, &self.bytes_ktls),
            false => (RelayPath::Splice, &self.bytes_spliced),
        };
        if moved.spliced.get() == 0 {
            return RelayPath::Copy;
        }
        Self::add(counter, moved.spliced.get());
        path
    }
}

type Out = Box<dyn Write + Send>;

/// The way to the access log.
#[derive(Default)]
pub struct Log {
    path: Option<PathBuf>,
    /// None where nobody reads it.
    queue: Option<Arc<Queue>>,
    dropped: Arc<AtomicU64>,
    /// Until the writer has started; none where only the user that the gate becomes may open the file.
    out: Mutex<Option<Option<Out>>>,
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
        Ok(Self { path, queue: Some(Arc::default()), dropped: Arc::default(), out: Mutex::new(Some(out)) })
    }

    /// Starts the writer.
    ///
    /// # Errors
    /// When the thread cannot be started, or the file not be opened.
    pub fn start(&self) -> io::Result<()> {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(out), Some(queue)) = (out, &self.queue) {
            let out: Out = match (out, &self.path) {
                (Some(out), _) => out,
                (None, Some(path)) => Box::new(append(path)?),
                (None, None) => return Ok(()),
            };
            let (queue, dropped) = (Arc::clone(queue), Arc::clone(&self.dropped));
            let task = move || write_lines(Lines::new(out), &queue, &dropped);
            std::thread::Builder::new().name("access-log".to_owned()).spawn(task)?;
        }
        Ok(())
    }

    /// Whether anybody reads what is logged.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Logs an exchange, or counts that it could not.
    pub fn write(&self, record: &Record) {
        let Some(queue) = &self.queue else { return };
        let mut line = Vec::with_capacity(LINE);
        record.write(&mut line);
        line.push(b'\n');
        if !queue.line(&line) {
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
        queue.order(Order::GoOn(Box::new(file)));
        Ok(Some(path))
    }

    /// Waits until every line is written, within reason.
    pub fn finish(&self) {
        let Some(queue) = &self.queue else { return };
        let (done, wait) = channel();
        queue.order(Order::Finish(done));
        let _ = wait.recv_timeout(LAST_LINES);
    }

    /// Lines that nobody will read: the writer fell behind, or the disk took no more.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Log {
    /// The writer ends when it has written what there is.
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
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

/// Writes what is there, then rests: whoever adds meanwhile finds nobody to wake. What cannot be written is counted, and
/// told once until it can again.
fn write_lines(mut out: Lines, queue: &Queue, dropped: &AtomicU64) {
    while let Some(orders) = queue.take() {
        for order in orders {
            match order {
                Order::Write(lines) => {
                    out.push(lines);
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
