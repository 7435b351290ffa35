//! Deadlines for a worker's sockets, without a timer for each operation.
//!
//! Every socket is on the watch with what is expected of it: to finish something by a time, or to move bytes at a
//! minimum rate. One task a worker looks over them four times a second and *stops* (shutdown(2)) those that
//! failed: reading only where something was awaited, so that the client can still be told. Whoever waits for such a socket wakes up at its end and asks [`Watched::expired`] why. Nothing is
//! cancelled, so no operation can be lost half-way, and 10,000 idle connections cost one pass over a table.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::sys::socket::{Socket, stop_raw};
use rustix::net::Shutdown;

use crate::limit::{Millis, MinimumRate, Progress};

/// How often deadlines are looked at; they are kept to within this much.
const TICK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
enum Expectation {
    Nothing,
    Until(Millis),
    Rate(Progress),
    /// Something moves at least once in this span; the deadline for the next time.
    Activity(Millis, Millis),
}

struct Entry {
    fd: RawFd,
    expectation: Cell<Expectation>,
    expired: Cell<bool>,
    /// Between two requests: may be stopped at once when the gate drains.
    idle: Cell<bool>,
}

/// All the sockets of one worker.
pub struct Watch {
    start: Instant,
    now: Cell<Millis>,
    rate: Cell<MinimumRate>,
    entries: RefCell<Vec<Option<Rc<Entry>>>>,
    free: RefCell<Vec<usize>>,
    draining: Cell<bool>,
    closing: Cell<bool>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("sockets", &self.len()).finish()
    }
}

/// A socket on the watch.
pub struct Watched {
    /// Declared before the socket: it leaves the table before its number can be used again.
    place: Place,
    socket: Socket,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("fd", &self.place.entry.fd).finish()
    }
}

struct Place {
    watch: Rc<Watch>,
    entry: Rc<Entry>,
    index: usize,
}

impl Watch {
    /// An empty watch; `rate` is what bodies must keep up.
    pub fn new(rate: MinimumRate) -> Rc<Self> {
        Rc::new(Self {
            start: Instant::now(),
            now: Cell::new(0),
            rate: Cell::new(rate),
            entries: RefCell::default(),
            free: RefCell::default(),
            draining: Cell::new(false),
            closing: Cell::new(false),
        })
    }

    /// Milliseconds since the worker began, fresh from the clock.
    pub fn now(&self) -> Millis {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.now.set(now);
        now
    }

    /// The time of the last look at the clock: at most a tick old, and free.
    pub fn coarse_now(&self) -> Millis {
        self.now.get()
    }

    /// Puts a socket on the watch, with nothing expected of it yet.
    pub fn add(self: &Rc<Self>, socket: Socket) -> Watched {
        let entry = Rc::new(Entry {
            fd: socket.as_fd().as_raw_fd(),
            expectation: Cell::new(Expectation::Nothing),
            expired: Cell::new(false),
            idle: Cell::new(false),
        });
        let mut entries = self.entries.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(None);
            entries.len() - 1
        });
        entries[index] = Some(Rc::clone(&entry));
        Watched { place: Place { watch: Rc::clone(self), entry, index }, socket }
    }

    /// The number of sockets on the watch.
    pub fn len(&self) -> usize {
        self.entries.borrow().len() - self.free.borrow().len()
    }

    /// Whether no socket is on the watch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the worker is finishing what runs and takes nothing new.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Changes what bodies must keep up from now on.
    pub fn set_rate(&self, rate: MinimumRate) {
        self.rate.set(rate);
    }

    /// From now on each response is the last one of its connection, and says so.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Ends all idle connections now, and each other one after its exchange.
    pub fn close_idle(&self) {
        self.draining.set(true);
        self.closing.set(true);
        for entry in self.entries.borrow().iter().flatten().filter(|entry| entry.idle.get()) {
            stop_raw(entry.fd, Shutdown::Read);
        }
    }

    /// Looks after the deadlines, for ever.
    pub async fn run(self: Rc<Self>) {
        loop {
            monoio::time::sleep(TICK).await;
            self.tick(self.now());
        }
    }

    fn tick(&self, now: Millis) {
        for entry in self.entries.borrow().iter().flatten() {
            let late = |deadline, how| (now >= deadline).then_some(how);
            let failed = match entry.expectation.get() {
                Expectation::Nothing => None,
                Expectation::Until(deadline) => late(deadline, Shutdown::Read),
                Expectation::Activity(_, deadline) => late(deadline, Shutdown::Both),
                Expectation::Rate(mut progress) => {
                    let holds = progress.holds(now, &self.rate.get());
                    entry.expectation.set(Expectation::Rate(progress));
                    (!holds).then_some(Shutdown::Both)
                }
            };
            if let Some(how) = failed {
                entry.expired.set(true);
                entry.expectation.set(Expectation::Nothing);
                stop_raw(entry.fd, how);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.watch.entries.borrow_mut()[self.index] = None;
        self.watch.free.borrow_mut().push(self.index);
    }
}

impl Watched {
    /// Expects the current step to be over within `span`.
    pub fn expect_within(&self, span: Duration) {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let deadline = self.place.watch.now().saturating_add(span);
        self.place.entry.expectation.set(Expectation::Until(deadline));
    }

    /// Expects bytes to move at the minimum rate from now on; count them with [`Watched::moved`].
    pub fn expect_rate(&self) {
        let progress = Progress::begin(self.place.watch.coarse_now(), &self.place.watch.rate.get());
        self.place.entry.expectation.set(Expectation::Rate(progress));
    }

    /// Expects something to move at least once in each `span` from now on; told, too, by [`Watched::moved`].
    pub fn expect_activity(&self, span: Duration) {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let deadline = self.place.watch.now().saturating_add(span);
        self.place.entry.expectation.set(Expectation::Activity(span, deadline));
    }

    /// Counts bytes of a body that moved through this socket.
    pub fn moved(&self, bytes: u64) {
        let expectation = &self.place.entry.expectation;
        match expectation.get() {
            Expectation::Rate(mut progress) => {
                progress.add(bytes);
                expectation.set(Expectation::Rate(progress));
            }
            Expectation::Activity(span, _) => {
                let deadline = self.place.watch.coarse_now().saturating_add(span);
                expectation.set(Expectation::Activity(span, deadline));
            }
            Expectation::Nothing | Expectation::Until(_) => {}
        }
    }

    /// Expects nothing.
    pub fn expect_nothing(&self) {
        self.place.entry.expectation.set(Expectation::Nothing);
    }

    /// Whether the socket was stopped because it failed an expectation.
    pub fn expired(&self) -> bool {
        self.place.entry.expired.get()
    }

    /// Marks the time between two requests, in which a drain may stop the socket.
    pub fn set_idle(&self, idle: bool) {
        self.place.entry.idle.set(idle);
        if idle && self.place.watch.closing.get() {
            stop_raw(self.place.entry.fd, Shutdown::Read);
        }
    }

    /// The worker's watch.
    pub fn watch(&self) -> &Rc<Watch> {
        &self.place.watch
    }
}

impl std::ops::Deref for Watched {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
