//! Turns: so many at once, so many more in a queue, and nobody else.
//!
//! Who comes first is served first. A turn that is given back goes straight to the first who waits, on whatever thread
//! that is: it is never up for grabs, so a newcomer cannot overtake the queue. There is no runtime and no clock in here:
//! waiting is a plain [`Future`], and giving up is dropping it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The turns. Shared by all workers.
pub struct Turns {
    state: Mutex<State>,
    at_once: usize,
    queue: usize,
}

struct State {
    free: usize,
    next: u64,
    /// In the order of arrival.
    waiting: VecDeque<(u64, Waker)>,
    /// Turns that were handed to somebody who has not looked yet.
    granted: Vec<u64>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Turns").field("free", &state.free).field("waiting", &state.waiting.len()).finish()
    }
}

/// The queue is full: try again a little later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A turn; given back when it is dropped.
#[derive(Debug)]
pub struct Turn<'t>(&'t Turns);

/// The wait for a turn.
#[derive(Debug)]
pub struct Wait<'t> {
    turns: &'t Turns,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    New,
    Queued(u64),
    Done,
}

impl Turns {
    /// `at_once` turns, and `queue` who may wait for one.
    pub fn new(at_once: usize, queue: usize) -> Self {
        let state = State { free: at_once, next: 0, waiting: VecDeque::new(), granted: Vec::new() };
        Self { state: Mutex::new(state), at_once, queue }
    }

    /// How many turns are taken.
    pub fn taken(&self) -> usize {
        self.at_once.saturating_sub(self.lock().free)
    }

    /// Waits for a turn.
    pub fn take(&self) -> Wait<'_> {
        Wait { turns: self, place: Place::New }
    }

    /// The state stays usable whatever a panicking thread did: nothing that is called under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self) {
        let heir = {
            let mut state = self.lock();
            let heir = state.waiting.pop_front();
            match &heir {
                Some((ticket, _)) => state.granted.push(*ticket),
                None => state.free += 1,
            }
            heir
        };
        if let Some((_, waker)) = heir {
            waker.wake();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl<'t> Future for Wait<'t> {
    type Output = Result<Turn<'t>, Full>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let turns = self.turns;
        let mut state = turns.lock();
        match self.place {
            Place::Queued(ticket) => {
                if let Some(at) = state.granted.iter().position(|granted| *granted == ticket) {
                    state.granted.swap_remove(at);
                    self.place = Place::Done;
                    return Poll::Ready(Ok(Turn(turns)));
                }
                if let Some((_, waker)) = state.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket) {
                    waker.clone_from(cx.waker());
                }
                Poll::Pending
            }
            Place::New if state.free > 0 => {
                state.free -= 1;
                self.place = Place::Done;
                Poll::Ready(Ok(Turn(turns)))
            }
            Place::New if state.waiting.len() < turns.queue => {
                let ticket = state.next;
                state.next += 1;
                state.waiting.push_back((ticket, cx.waker().clone()));
                self.place = Place::Queued(ticket);
                Poll::Pending
            }
            Place::New | Place::Done => Poll::Ready(Err(Full)),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Place::Queued(ticket) = self.place else { return };
        let mut state = self.turns.lock();
        state.waiting.retain(|(waiting, _)| *waiting != ticket);
        let Some(at) = state.granted.iter().position(|granted| *granted == ticket) else { return };
        state.granted.swap_remove(at);
        drop(state);
        self.turns.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll<'t>(wait: &mut Wait<'t>) -> (Poll<Result<Turn<'t>, Full>>, Arc<Bell>) {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        (Pin::new(wait).poll(&mut Context::from_waker(&waker)), bell)
    }

    fn ready(turns: &Turns) -> Result<Turn<'_>, Full> {
        match poll(&mut turns.take()).0 {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => panic!("it has to wait"),
        }
    }

    #[test]
    fn first_come_first_served_and_nobody_overtakes() {
        let turns = Turns::new(1, 2);
        let first = ready(&turns).unwrap();
        let (mut second, mut third) = (turns.take(), turns.take());
        let (waits, bell_2) = poll(&mut second);
        assert!(waits.is_pending());
        let (waits, bell_3) = poll(&mut third);
        assert!(waits.is_pending());
        assert_eq!(ready(&turns).unwrap_err(), Full, "one works and two wait");
        assert_eq!(turns.taken(), 1);
        drop(first);
        assert_eq!((bell_2.0.load(Ordering::SeqCst), bell_3.0.load(Ordering::SeqCst)), (1, 0));
        let mut late = turns.take();
        assert!(poll(&mut late).0.is_pending(), "the turn belongs to the second already");
        assert!(poll(&mut third).0.is_pending());
        let Poll::Ready(Ok(second)) = poll(&mut second).0 else { panic!("its turn") };
        drop(second);
        assert!(matches!(poll(&mut third).0, Poll::Ready(Ok(_))));
    }

    #[test]
    fn who_gives_up_takes_nothing_along() {
        let turns = Turns::new(1, 8);
        let first = ready(&turns).unwrap();
        let (mut second, mut third, mut fourth) = (turns.take(), turns.take(), turns.take());
        assert!(poll(&mut second).0.is_pending());
        let _ = poll(&mut third).0.is_pending();
        let bell = poll(&mut fourth).1;
        drop(second);
        drop(first);
        drop(third);
        assert_eq!(bell.0.load(Ordering::SeqCst), 1, "a turn that was granted and not used goes on");
        assert!(matches!(poll(&mut fourth).0, Poll::Ready(Ok(_))));
        drop(fourth);
        assert_eq!(turns.lock().free, 1);
    }

    #[test]
    fn without_a_queue_the_next_is_refused() {
        let turns = Turns::new(2, 0);
        let both = (ready(&turns), ready(&turns));
        assert_eq!(ready(&turns).unwrap_err(), Full);
        drop(both);
        assert!(ready(&turns).is_ok());
    }

    #[test]
    fn across_threads_everybody_gets_a_turn_and_never_too_many_at_once() {
        let turns = Turns::new(3, 1000);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let turn = block_on(turns.take()).unwrap();
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 3);
        let state = turns.lock();
        assert_eq!((state.free, state.waiting.len(), state.granted.len()), (3, 0, 0));
    }

    fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        loop {
            match Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}
