//! The verdict cache: a sharded map with lifetimes and a bound.
//!
//! Time is an argument (milliseconds of any monotonic clock). At the bound it evicts by second chance (clock): an
//! entry that was hit since the hand last came by stays for another round. It never clears: a cache emptied at once
//! sends every user to the authenticator at once.

use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;

use super::key::Key;
use super::{Answer, Identity};

/// A monotonic time in milliseconds.
pub type Millis = u64;

/// Identities of which equal ones are found again, at the most.
const SHARED: usize = 1024;

struct Entry {
    answer: Answer,
    until: Millis,
    /// Until when it may stand in for an authenticator that is not to be had; 0 for whatever is no permission.
    stale_until: Millis,
    touched: AtomicBool,
}

/// A key is a keyed hash already, of a secret that nobody outside knows: it needs no second one to be spread, and nobody
/// can choose keys that fall together.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for half in bytes.as_chunks().0 {
            self.0 ^= u64::from_le_bytes(*half);
        }
    }

    /// All keys have the same length.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Identities that answers were remembered with lately. Who asks for many things is kept once: less memory, and of
/// two answers about the same user the second is found in a nearer cache of the processor.
struct Identities {
    lately: Box<[Mutex<Option<Arc<Identity>>>]>,
    random: RandomState,
}

impl Identities {
    fn new() -> Self {
        Self { lately: (0..SHARED).map(|_| Mutex::default()).collect(), random: RandomState::new() }
    }

    fn share(&self, answer: &Answer) -> Answer {
        let Answer::Known(identity) = answer else { return answer.clone() };
        let place = self.random.hash_one(&identity.principal) as usize % SHARED;
        // What is in it is whole, whatever a thread that panicked with it did.
        let mut lately = self.lately[place].lock().unwrap_or_else(PoisonError::into_inner);
        match &*lately {
            Some(known) if known == identity => Answer::Known(Arc::clone(known)),
            _ => {
                *lately = Some(Arc::clone(identity));
                answer.clone()
            }
        }
    }
}

/// How long answers are remembered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// A permission.
    pub allow: Duration,
    /// A refusal.
    pub deny: Duration,
    /// A permission after its time, for as long as the authenticator is not to be had.
    pub stale: Duration,
}

impl Terms {
    /// How long any answer can be of use at all.
    fn longest(&self) -> Duration {
        self.allow.saturating_add(self.stale)
    }
}

/// Remembered answers. Shared by all workers.
pub struct Cache {
    entries: DashMap<Key, Entry, BuildHasherDefault<KeyHasher>>,
    /// The order of the clock hand. Taken on insertion only, which costs an authentication anyway.
    hand: Mutex<VecDeque<Key>>,
    identities: Identities,
    capacity: usize,
    evicted: AtomicU64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("len", &self.entries.len()).field("capacity", &self.capacity).finish()
    }
}

impl Cache {
    /// An empty cache of at most `capacity` answers; 0 remembers nothing.
    pub fn new(capacity: usize) -> Self {
        let (entries, hand, evicted) = Default::default();
        Self { entries, hand, identities: Identities::new(), capacity, evicted }
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

    /// The permission under `key` whose time is over, if it may still stand in for an authenticator that is not to be had.
    pub fn stale(&self, key: &Key, now: Millis) -> Option<Answer> {
        let entry = self.entries.get(key)?;
        (now < entry.stale_until).then(|| entry.answer.clone())
    }

    /// Remembers what the authenticator said just now, no longer than `asked` where it set a limit. Only its clear words
    /// count; each replaces what it said before, even when it is not to be remembered itself.
    pub fn learn(&self, key: Key, answer: &Answer, asked: Option<Duration>, terms: &Terms, now: Millis) {
        if !answer.is_cacheable() {
            return;
        }
        let known = matches!(answer, Answer::Known(_));
        let time = if known { terms.allow } else { terms.deny };
        let time = asked.map_or(time, |asked| asked.min(time));
        if time.is_zero() {
            return self.forget(&key);
        }
        let until = now.saturating_add(millis(time));
        let stale_until = if known { until.saturating_add(millis(terms.stale)) } else { 0 };
        self.insert(key, self.identities.share(answer), until, stale_until);
    }

    /// Notes under `key` that a credential was refused, for as long as any older answer could be of use.
    pub fn learn_refused(&self, key: Key, terms: &Terms, now: Millis) {
        let until = now.saturating_add(millis(terms.longest()));
        self.insert(key, Answer::Unknown { challenge: None }, until, 0);
    }

    /// The entry keeps its place in the order of the hand: there must be one place for each.
    pub fn forget(&self, key: &Key) {
        if let Some(mut entry) = self.entries.get_mut(key) {
            (entry.until, entry.stale_until) = (0, 0);
        }
    }

    fn insert(&self, key: Key, answer: Answer, until: Millis, stale_until: Millis) {
        if self.capacity == 0 {
            return;
        }
        let Ok(mut hand) = self.hand.lock() else { return };
        let entry = Entry { answer, until, stale_until, touched: AtomicBool::new(false) };
        if self.entries.insert(key, entry).is_none() {
            hand.push_back(key);
        }
        while hand.len() > self.capacity {
            self.evict_one(&mut hand);
        }
    }

    fn evict_one(&self, hand: &mut VecDeque<Key>) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
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

    /// How many answers have made room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        [n; 16]
    }

    const TERMS: Terms = Terms {
        allow: Duration::from_millis(100),
        deny: Duration::from_millis(10),
        stale: Duration::from_millis(1000),
    };

    fn allow() -> Answer {
        Answer::Known(crate::auth::Principal::user("alice").into())
    }

    #[test]
    fn an_answer_lives_exactly_its_time() {
        let cache = Cache::new(10);
        cache.learn(key(1), &allow(), None, &TERMS, 0);
        cache.learn(key(2), &Answer::Forbidden, None, &TERMS, 0);
        assert_eq!(cache.get(&key(1), 99), Some(allow()));
        assert_eq!(cache.get(&key(1), 100), None);
        assert_eq!(cache.get(&key(2), 9), Some(Answer::Forbidden));
        assert_eq!(cache.get(&key(2), 10), None);
        assert_eq!(cache.get(&key(3), 0), None);
    }

    #[test]
    fn the_sender_may_shorten_a_time_and_never_lengthen_it() {
        let cache = Cache::new(10);
        for (n, seconds) in [(1, 0), (2, 3600)] {
            cache.learn(key(n), &allow(), Some(Duration::from_secs(seconds)), &TERMS, 0);
        }
        assert_eq!((cache.get(&key(1), 0), cache.stale(&key(1), 0)), (None, None));
        assert_eq!((cache.get(&key(2), 99).is_some(), cache.get(&key(2), 100)), (true, None));
    }

    #[test]
    fn only_a_permission_may_be_used_after_its_time() {
        let cache = Cache::new(10);
        cache.learn(key(1), &allow(), None, &TERMS, 0);
        assert_eq!((cache.get(&key(1), 1099), cache.stale(&key(1), 1099)), (None, Some(allow())));
        assert_eq!(cache.stale(&key(1), 1100), None);
        cache.learn(key(2), &Answer::Forbidden, None, &TERMS, 0);
        assert_eq!(cache.stale(&key(2), 5), None);
    }

    #[test]
    fn a_refusal_ends_an_older_permission_even_when_it_is_not_remembered_itself() {
        let refusals = [Answer::Forbidden, Answer::Unknown { challenge: None }];
        for (refusal, lifetime) in refusals.iter().zip([None, Some(Duration::ZERO)]) {
            let cache = Cache::new(10);
            cache.learn(key(1), &allow(), None, &TERMS, 0);
            cache.learn(key(1), refusal, lifetime, &TERMS, 200);
            assert_eq!(cache.stale(&key(1), 300), None, "{refusal:?}");
        }
        let cache = Cache::new(10);
        cache.learn(key(1), &allow(), None, &TERMS, 0);
        cache.learn(key(1), &Answer::Unavailable { why: "down" }, None, &TERMS, 200);
        assert_eq!(cache.stale(&key(1), 300), Some(allow()), "a failure is no refusal");
    }

    #[test]
    fn a_refused_credential_outlasts_whatever_it_was_once_good_for() {
        let cache = Cache::new(10);
        cache.learn(key(1), &allow(), None, &TERMS, 0);
        cache.learn_refused(key(1), &TERMS, 50);
        for now in [50, 99, 1099] {
            assert_eq!(cache.get(&key(1), now), Some(Answer::Unknown { challenge: None }), "{now}");
            assert_eq!(cache.stale(&key(1), now), None, "{now}");
        }
        assert_eq!(cache.get(&key(1), 50 + 1100), None);
    }

    #[test]
    fn equal_identities_are_kept_once_and_others_are_not_mixed_up() {
        let identity = |n: usize, field: &[u8]| {
            let fields = [("X-Role".to_owned(), field.to_vec())].into();
            Answer::Known(Arc::new(Identity { principal: crate::auth::Principal::user(format!("user-{n}")), fields }))
        };
        let cache = Cache::new(1_000_000);
        let name = |n: usize, m: u8| (n as u128 * 256 + u128::from(m)).to_le_bytes();
        // More than there is room for: what is no longer found is kept for itself.
        for n in 0..3 * SHARED {
            for (m, field) in [(0, b"a"), (1, b"a"), (2, b"b")] {
                cache.learn(name(n, m), &identity(n, field), None, &TERMS, 0);
            }
        }
        for n in 0..3 * SHARED {
            let got = |m| cache.get(&name(n, m), 0);
            assert_eq!(
                (got(0), got(1), got(2)),
                (Some(identity(n, b"a")), Some(identity(n, b"a")), Some(identity(n, b"b")))
            );
            let (Some(Answer::Known(first)), Some(Answer::Known(second))) = (got(0), got(1)) else { panic!("{n}") };
            assert!(Arc::ptr_eq(&first, &second), "{n}");
        }
    }

    #[test]
    fn unclear_answers_are_not_kept() {
        let cache = Cache::new(10);
        cache.learn(key(1), &Answer::Unavailable { why: "down" }, None, &TERMS, 0);
        cache.learn(key(2), &Answer::Throttled { retry_after: 1 }, None, &TERMS, 0);
        assert!(cache.is_empty());
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(4);
        for n in 0..4 {
            cache.insert(key(n), Answer::Forbidden, 100, 0);
        }
        cache.get(&key(0), 1);
        for n in 10..13 {
            cache.insert(key(n), Answer::Forbidden, 100, 0);
        }
        assert_eq!((cache.len(), cache.evicted()), (4, 3));
        assert!(cache.get(&key(0), 1).is_some(), "the one that was used stays");
        assert!(cache.get(&key(1), 1).is_none());
        for n in 0..200 {
            cache.insert(key(n), Answer::Forbidden, 100, 0);
            cache.get(&key(n), 1);
        }
        assert_eq!(cache.len(), 4, "even when everything is used");
    }

    #[test]
    fn capacity_zero_remembers_nothing() {
        let cache = Cache::new(0);
        cache.insert(key(1), Answer::Forbidden, 100, 0);
        assert!(cache.is_empty());
    }
}
