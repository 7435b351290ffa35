//! Password hashes are slow on purpose, so they are computed on helper threads with a bounded queue, never on a
//! worker: a flood of wrong passwords fills the queue and is turned away, and users in the cache notice nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The helper threads.
#[derive(Debug)]
pub struct Hashers {
    threads: usize,
    queue: SyncSender<Job>,
    jobs: Arc<Mutex<Receiver<Job>>>,
    started: AtomicBool,
}

/// The queue is full: try again a little later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

impl Hashers {
    /// A queue of `queue` jobs for `threads` helpers (at least one), who begin with [`Hashers::start`].
    pub fn new(threads: usize, queue: usize) -> Self {
        let (sender, receiver) = sync_channel(queue);
        Self { threads, queue: sender, jobs: Arc::new(Mutex::new(receiver)), started: AtomicBool::new(false) }
    }

    /// Starts the helpers, if they have not been.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(&self) -> std::io::Result<()> {
        if self.started.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        for n in 0..self.threads.max(1) {
            let jobs = Arc::clone(&self.jobs);
            std::thread::Builder::new().name(format!("hash-{n}")).spawn(move || work(&jobs))?;
        }
        Ok(())
    }

    /// Runs `job` on a helper and waits for its result.
    ///
    /// # Errors
    /// [`Busy`] when the queue is full.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the client went away; the work is then wasted, and that is all.
            let _ = sender.send(job());
        });
        match self.queue.try_send(job) {
            Ok(()) => receiver.await.map_err(|_| Busy),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
