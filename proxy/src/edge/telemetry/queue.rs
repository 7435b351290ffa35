//! Lines on their way to the writer. A worker's part is a short one: to append a finished line under a lock that nobody
//! holds for longer than that, and to wake the writer where it sleeps, which a busy gate's does not.

use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Out;

/// Lines that may wait for the disk.
const MOST: usize = 8192;

/// What the writer is told.
pub(super) enum Order {
    /// Write these lines, each with its end.
    Write(Vec<u8>),
    /// Go on in this file.
    GoOn(Out),
    /// Say when all before this is written.
    Finish(Sender<()>),
}

#[derive(Default)]
struct Waiting {
    orders: Vec<Order>,
    lines: usize,
    /// The writer waits to be woken.
    asleep: bool,
    closed: bool,
}

/// Between the workers and the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Queue {
    /// Adds a line with its end; false where too many wait.
    pub(super) fn line(&self, line: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.lines >= MOST {
            return false;
        }
        waiting.lines += 1;
        match waiting.orders.last_mut() {
            Some(Order::Write(lines)) => lines.extend_from_slice(line),
            _ => waiting.orders.push(Order::Write(line.to_vec())),
        }
        self.wake(waiting);
        true
    }

    /// Adds anything else, behind all lines that were added before.
    pub(super) fn order(&self, order: Order) {
        let mut waiting = self.lock();
        waiting.orders.push(order);
        self.wake(waiting);
    }

    /// Nothing more will be added.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        self.wake(waiting);
    }

    /// Waits for orders and takes all that there are; none when it is closed and empty.
    pub(super) fn take(&self) -> Option<Vec<Order>> {
        let mut waiting = self.lock();
        while waiting.orders.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting.asleep = true;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.asleep = false;
        }
        waiting.lines = 0;
        Some(std::mem::take(&mut waiting.orders))
    }

    fn wake(&self, waiting: MutexGuard<'_, Waiting>) {
        let asleep = waiting.asleep;
        drop(waiting);
        if asleep {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn lines_stay_on_their_side_of_an_order_and_too_many_are_refused() {
        let queue = Queue::default();
        assert!(queue.line(b"1\n") && queue.line(b"2\n"));
        queue.order(Order::Finish(channel().0));
        assert!((3..=MOST).all(|_| queue.line(b"3\n")));
        assert!(!queue.line(b"lost\n"));
        let orders = queue.take().unwrap();
        let [Order::Write(before), Order::Finish(_), Order::Write(after)] = &orders[..] else { panic!() };
        assert_eq!((&before[..], after.len()), (&b"1\n2\n"[..], (MOST - 2) * 2));
        assert!(queue.line(b"4\n"), "there is room again");
        queue.close();
        assert!(queue.take().is_some() && queue.take().is_none());
    }

    #[test]
    fn no_line_is_lost_between_many_writers_and_a_reader_that_sleeps() {
        let queue = Queue::default();
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let lines = |order: &Order| if let Order::Write(lines) = order { lines.len() / 2 } else { 0 };
                std::iter::from_fn(|| queue.take()).flatten().map(|order| lines(&order)).sum::<usize>()
            });
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..2_000 {
                            while !queue.line(b"x\n") {
                                std::thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            queue.close();
            reader.join().unwrap()
        });
        assert_eq!(read, 8_000);
    }
}
