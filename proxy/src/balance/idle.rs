//! Connections between two exchanges.
//!
//! A kept connection may be closed by its other end at the very moment that a request is on its way. A request that can be
//! repeated then goes over a new one. One that cannot would be lost, so it takes only a connection that was in use a
//! [`MOMENT`] ago: what closes idle connections waits longer than that before it does.

use std::collections::VecDeque;

use crate::limit::Millis;

/// How long after its last exchange a connection is as good as a new one. The shortest idle time-outs in use (gunicorn's
/// 2 s, node's 5 s) are longer; a push's requests follow each other more quickly.
pub const MOMENT: Millis = 1_000;

/// What a request asks of a kept connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Any will do: the request can be repeated.
    Any,
    /// It must not be about to be closed: the request can be sent only once.
    Sure,
}

/// Idle connections to one service.
#[derive(Debug)]
pub struct Idle<T> {
    /// The most recently used at the back: the oldest may fall idle and go.
    kept: VecDeque<(T, Millis)>,
    most: usize,
    ttl: Millis,
}

impl<T> Idle<T> {
    /// Keeps at most so many, each for so long.
    pub fn new(most: usize, ttl: Millis) -> Self {
        Self { kept: VecDeque::new(), most, ttl }
    }

    /// The most recently used one that serves the need; the dead ones before it are dropped.
    pub fn take(&mut self, need: Need, now: Millis, alive: impl Fn(&T) -> bool) -> Option<T> {
        let oldest = match need {
            Need::Any => now.saturating_sub(self.ttl),
            Need::Sure => now.saturating_sub(self.ttl.min(MOMENT)),
        };
        while self.kept.back().is_some_and(|(_, since)| *since >= oldest) {
            match self.kept.pop_back() {
                Some((connection, _)) if alive(&connection) => return Some(connection),
                _ => {}
            }
        }
        None
    }

    /// Keeps a connection; when there are too many, the oldest goes.
    pub fn put(&mut self, connection: T, now: Millis) {
        while self.kept.len() >= self.most.max(1) {
            self.kept.pop_front();
        }
        self.kept.push_back((connection, now));
    }

    /// Drops those that were idle for too long, and the dead among the `looked_at` oldest: the other end's idle time-out
    /// meets those first.
    pub fn sweep(&mut self, now: Millis, looked_at: usize, alive: impl Fn(&T) -> bool) {
        let oldest = now.saturating_sub(self.ttl);
        let mut place = 0;
        self.kept.retain(|(connection, since)| {
            place += 1;
            *since >= oldest && (place > looked_at || alive(connection))
        });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}
