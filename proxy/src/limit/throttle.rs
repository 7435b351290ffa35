//! Failed logins: guessing is slowed down, and nobody can lock a user out by guessing.
//!
//! Failures are counted for each *place*: a user as tried from one source, which is an IPv4 address or an IPv6 /64. The
//! first few are free. After that each failure doubles the time for which nothing else from this place is looked at.
//!
//! **Nobody is locked out.** Guesses from elsewhere do not touch a user's own address. Where both share one (NAT), the
//! user's credential passes all the same once it was right *from this source*: that is a [proof](Throttle::begin), and
//! it only exempts from the delay, the credential is still checked. The same wrong credential again is no new guess, so
//! a forgotten machine with last week's password does not keep its owner's new one out. What is left is a first login
//! from an address that guesses that very user at that very time: nothing tells it from a guess, and it waits as one.
//!
//! **The refusal is no oracle.** A right credential that is remembered from elsewhere is refused like a wrong one while
//! its place is delayed ([`Throttle::pass`]): if it passed, then 429 would mean "wrong" and everything else "right", at
//! the speed of a cache and not of a password hash. Attempts count from their beginning, not from their end, so that a
//! thousand at once are no more than one after the other. Who shares a proven address does get that oracle: it is the
//! price of the paragraph above. An address that stands for everybody, as behind a proxy that hides its clients, is
//! therefore no source; there the throttle is better off.
//!
//! **Memory is bounded**, and what is worth most stays: a new place takes that of the one with the fewest failures, so
//! that an attacker cannot wash out a long count with many short ones.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Millis;

/// The keyed hash of something that must not be kept itself. Keyed, so that nobody can choose what collides.
pub type Name = [u8; 16];

/// The longest delay.
const LONGEST: Millis = 60_000;
/// One failure is forgotten for each of these without another.
const FORGET: Millis = 300_000;
const SETS: usize = 1024;
const WAYS: usize = 16;
/// Wrong credentials that a place remembers.
const WRONG: usize = 4;
const SOURCES: usize = 256;

/// Where attempts come from: an IPv4 address, or the /64 that one IPv6 subscriber has to himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source([u8; 16]);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 64 << 64).to_be_bytes()),
        }
    }
}

impl Source {
    /// Its bytes, to be hashed into a [`Name`].
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn index(self) -> usize {
        // FNV-1a: a collision only costs its source a second look.
        let mixed = self.0.iter().fold(0x811c_9dc5_u32, |sum, &byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (mixed >> 16) as usize % SOURCES
    }
}

/// One attempt to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Where it comes from.
    pub source: Source,
    /// The user as tried from this source.
    pub place: Name,
    /// The credential as sent from this source.
    pub credential: Name,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The credential is right.
    Right,
    /// It is not.
    Wrong,
    /// Nobody said.
    Unknown,
}

#[derive(Debug)]
struct Place {
    name: Name,
    failures: u32,
    /// Of the last failure; moves on as failures are forgotten.
    last: Millis,
    until: Millis,
    wrong: VecDeque<Name>,
    /// Credentials that are being checked, and how many times each.
    open: Vec<(Name, u32)>,
}

impl Place {
    fn new(name: Name, now: Millis) -> Self {
        Self { name, failures: 0, last: now, until: 0, wrong: VecDeque::new(), open: Vec::new() }
    }

    fn settle(&mut self, now: Millis) {
        let periods = now.saturating_sub(self.last) / FORGET;
        self.last += periods * FORGET;
        self.failures = self.failures.saturating_sub(u32::try_from(periods).unwrap_or(u32::MAX));
        if self.failures == 0 {
            self.wrong.clear();
        }
    }

    fn is_idle(&self) -> bool {
        self.failures == 0 && self.open.is_empty()
    }
}

#[derive(Debug, Clone, Copy)]
struct Proof {
    credential: Name,
    last: Millis,
}

type Sets<T> = Box<[Mutex<Vec<T>>]>;

/// The count of failed logins. Shared by all workers.
pub struct Throttle {
    free: u32,
    base: Millis,
    places: Sets<Place>,
    proofs: Sets<Proof>,
    /// Until when a refusal may be due to somebody from a source of this index.
    loud: Box<[AtomicU64]>,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("free", &self.free).field("base", &self.base).finish_non_exhaustive()
    }
}

/// A set stays usable whatever a panicking thread did: no change to it leaves it half done.
fn lock<'s, T>(sets: &'s Sets<T>, name: &Name) -> MutexGuard<'s, Vec<T>> {
    let index = usize::from(u16::from_le_bytes([name[0], name[1]])) % SETS;
    sets[index].lock().unwrap_or_else(PoisonError::into_inner)
}

fn sets<T>() -> Sets<T> {
    (0..SETS).map(|_| Mutex::default()).collect()
}

impl Throttle {
    /// `free` failures cost nothing; the next one costs `base`, and each further one twice as much.
    pub fn new(free: u32, base: Millis) -> Self {
        let loud = (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
        Self { free, base: base.clamp(1, LONGEST), places: sets(), proofs: sets(), loud }
    }

    /// Whether nobody of this source has been refused lately, so that there is no need to name an [`Attempt`].
    pub fn is_quiet(&self, source: Source, now: Millis) -> bool {
        now >= self.loud[source.index()].load(Ordering::Relaxed)
    }

    /// Whether a credential may be checked now. Whoever was let in says how it [ended](Throttle::end).
    ///
    /// # Errors
    /// The milliseconds until another try makes sense.
    pub fn begin(&self, attempt: &Attempt, now: Millis) -> Result<(), Millis> {
        let proven = self.is_proven(&attempt.credential);
        let mut set = lock(&self.places, &attempt.place);
        let place = find_or_make(&mut set, attempt.place, now);
        if let Some((_, times)) = place.open.iter_mut().find(|(open, _)| *open == attempt.credential) {
            *times += 1;
            return Ok(());
        }
        if !proven && let Some(wait) = self.wait(place, now) {
            self.raise(attempt.source, now);
            return Err(wait);
        }
        place.open.push((attempt.credential, 1));
        Ok(())
    }

    /// Whether a credential that is known to be right may pass now: where a wrong one would be refused unseen, it passes
    /// only if it was right from this source before.
    ///
    /// # Errors
    /// As for [`Throttle::begin`].
    pub fn pass(&self, attempt: &Attempt, now: Millis) -> Result<(), Millis> {
        let wait = {
            let mut set = lock(&self.places, &attempt.place);
            let Some(place) = set.iter_mut().find(|place| place.name == attempt.place) else { return Ok(()) };
            place.settle(now);
            self.wait(place, now)
        };
        match wait {
            Some(wait) if !self.is_proven(&attempt.credential) => {
                self.raise(attempt.source, now);
                Err(wait)
            }
            Some(_) => Ok(()),
            None => {
                self.prove(attempt.credential, now);
                Ok(())
            }
        }
    }

    /// Tells how an attempt that was let in ended.
    pub fn end(&self, attempt: &Attempt, outcome: Outcome, now: Millis) {
        match outcome {
            Outcome::Right => self.prove(attempt.credential, now),
            Outcome::Wrong => {
                lock(&self.proofs, &attempt.credential).retain(|proof| proof.credential != attempt.credential);
            }
            Outcome::Unknown => {}
        }
        let mut set = lock(&self.places, &attempt.place);
        if outcome == Outcome::Wrong {
            let place = find_or_make(&mut set, attempt.place, now);
            if self.fail(place, attempt.credential, now) {
                self.raise(attempt.source, now);
            }
        }
        if let Some(at) = set.iter().position(|place| place.name == attempt.place) {
            close(&mut set[at].open, &attempt.credential);
            if set[at].is_idle() {
                set.swap_remove(at);
            }
        }
    }

    /// The number of places counted.
    pub fn len(&self) -> usize {
        self.places.iter().map(|set| set.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether no place is counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most places ever counted at once.
    pub const CAPACITY: usize = SETS * WAYS;

    fn wait(&self, place: &Place, now: Millis) -> Option<Millis> {
        let open = u32::try_from(place.open.len()).unwrap_or(u32::MAX);
        if now < place.until {
            return Some(place.until - now);
        }
        let free = place.failures.saturating_add(open) <= self.free;
        if free || open == 0 { None } else { Some(self.base) }
    }

    /// Counts a failure; whether a delay began with it.
    fn fail(&self, place: &mut Place, credential: Name, now: Millis) -> bool {
        if place.wrong.contains(&credential) {
            return false;
        }
        if place.wrong.len() == WRONG {
            place.wrong.pop_front();
        }
        place.wrong.push_back(credential);
        place.last = now;
        // Where the delay grows no more the count need not either, and is forgotten in bounded time.
        let above = place.failures.saturating_sub(self.free);
        if above == 0 || self.delay(above) < LONGEST {
            place.failures = place.failures.saturating_add(1);
        }
        if place.failures <= self.free {
            return false;
        }
        place.until = now.saturating_add(self.delay(place.failures - self.free));
        true
    }

    /// After the `n`th failure that was not free, from 1.
    fn delay(&self, n: u32) -> Millis {
        let factor = 1_u64.checked_shl(n.saturating_sub(1)).unwrap_or(u64::MAX);
        self.base.saturating_mul(factor).min(LONGEST)
    }

    /// Until the longest delay that may follow is over, even a credential that is remembered is looked at twice.
    fn raise(&self, source: Source, now: Millis) {
        self.loud[source.index()].fetch_max(now.saturating_add(LONGEST), Ordering::Relaxed);
    }

    fn is_proven(&self, credential: &Name) -> bool {
        lock(&self.proofs, credential).iter().any(|proof| proof.credential == *credential)
    }

    fn prove(&self, credential: Name, now: Millis) {
        let mut set = lock(&self.proofs, &credential);
        if let Some(proof) = set.iter_mut().find(|proof| proof.credential == credential) {
            proof.last = now;
            return;
        }
        if set.len() == WAYS
            && let Some(oldest) = (0..set.len()).min_by_key(|&at| set[at].last)
        {
            set.swap_remove(oldest);
        }
        set.push(Proof { credential, last: now });
    }
}

fn close(open: &mut Vec<(Name, u32)>, credential: &Name) {
    if let Some(at) = open.iter().position(|(open, _)| open == credential) {
        open[at].1 -= 1;
        if open[at].1 == 0 {
            open.swap_remove(at);
        }
    }
}

/// The place with its count brought up to `now`; a new one replaces the one that is worth least.
fn find_or_make(set: &mut Vec<Place>, name: Name, now: Millis) -> &mut Place {
    let at = match set.iter().position(|place| place.name == name) {
        Some(at) => at,
        None => {
            if set.len() >= WAYS {
                set.iter_mut().for_each(|place| place.settle(now));
                let worth = |place: &Place| (!place.open.is_empty(), place.failures, place.last);
                if let Some(least) = (0..set.len()).min_by_key(|&at| worth(&set[at])) {
                    set.swap_remove(least);
                }
            }
            set.push(Place::new(name, now));
            set.len() - 1
        }
    };
    set[at].settle(now);
    &mut set[at]
}

#[cfg(test)]
mod tests;
