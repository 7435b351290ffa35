//! The verdict cache: a sharded map with lifetimes and a bound.
//!
//! Time is an argument (milliseconds of any monotonic clock). At the bound it evicts by second chance (clock): an
//! entry that was hit since the hand last came by stays for another round. It never clears: a cache emptied at once
//! sends every user to the authenticator at once.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;

use super::Answer;
use super::key::Key;

/// A monotonic time in milliseconds.
pub type Millis = u64;

struct Entry {
    answer: Answer,
    until: Millis,
    touched: AtomicBool,
}

/// Remembered answers. Shared by all workers.
pub struct Cache {
    entries: DashMap<Key, Entry>,
    /// The order of the clock hand. Taken on insertion only, which costs an authentication anyway.
    hand: Mutex<VecDeque<Key>>,
    capacity: usize,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("len", &self.entries.len()).field("capacity", &self.capacity).finish()
    }
}

impl Cache {
    /// An empty cache of at most `capacity` answers; 0 remembers nothing.
    pub fn new(capacity: usize) -> Self {
        Self { entries: DashMap::new(), hand: Mutex::default(), capacity }
    }

    /// The answer remembered under `key`, unless its time is over at `now`.
    pub fn get(&self, key: &Key, now: Millis) -> Option<Answer> {
        let entry = self.entries.get(key)?;
        if entry.until <= now {
            return None;
        }
        // A plain load first: a store to a line that every core reads would bounce it between them.
        if !entry.touched.load(Ordering::Relaxed) {
            entry.touched.store(true, Ordering::Relaxed);
        }
        Some(entry.answer.clone())
    }

    /// Remembers `answer` until `until`, and evicts another where the cache is full.
    ///
    /// Answers that are not clear words of the authenticator are not kept.
    pub fn insert(&self, key: Key, answer: Answer, until: Millis) {
        if self.capacity == 0 || !answer.is_cacheable() {
            return;
        }
        let Ok(mut hand) = self.hand.lock() else { return };
        let entry = Entry { answer, until, touched: AtomicBool::new(false) };
        if self.entries.insert(key, entry).is_none() {
            hand.push_back(key);
        }
        while hand.len() > self.capacity {
            self.evict_one(&mut hand);
        }
    }

    fn evict_one(&self, hand: &mut VecDeque<Key>) {
        // One round at the most: after it every bit is cleared, unless other threads set them again meanwhile.
        for _ in 0..hand.len() {
            let Some(key) = hand.pop_front() else { return };
            let spared = self.entries.get(&key).is_some_and(|entry| entry.touched.swap(false, Ordering::Relaxed));
            if !spared {
                self.entries.remove(&key);
                return;
            }
            hand.push_back(key);
        }
        if let Some(key) = hand.pop_front() {
            self.entries.remove(&key);
        }
    }

    /// The number of answers kept, expired ones that nobody has evicted yet among them.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 16]
    }

    #[test]
    fn an_answer_lives_exactly_its_time() {
        let cache = Cache::new(10);
        cache.insert(key(1), Answer::Forbidden, 100);
        assert_eq!(cache.get(&key(1), 99), Some(Answer::Forbidden));
        assert_eq!(cache.get(&key(1), 100), None);
        assert_eq!(cache.get(&key(2), 0), None);
    }

    #[test]
    fn unclear_answers_are_not_kept() {
        let cache = Cache::new(10);
        cache.insert(key(1), Answer::Unavailable { why: "down" }, 100);
        cache.insert(key(2), Answer::Throttled { retry_after: 1 }, 100);
        assert!(cache.is_empty());
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(4);
        for n in 0..4 {
            cache.insert(key(n), Answer::Forbidden, 100);
        }
        cache.get(&key(0), 1);
        for n in 10..13 {
            cache.insert(key(n), Answer::Forbidden, 100);
        }
        assert_eq!(cache.len(), 4);
        assert!(cache.get(&key(0), 1).is_some(), "the one that was used stays");
        assert!(cache.get(&key(1), 1).is_none());
        for n in 0..200 {
            cache.insert(key(n), Answer::Forbidden, 100);
            cache.get(&key(n), 1);
        }
        assert_eq!(cache.len(), 4, "even when everything is used");
    }

    #[test]
    fn capacity_zero_remembers_nothing() {
        let cache = Cache::new(0);
        cache.insert(key(1), Answer::Forbidden, 100);
        assert!(cache.is_empty());
    }
}
