//! Epochs: a number that goes into every cache key and only ever grows. What was answered, or only asked, under an older
//! one is never found again; nothing has to be searched for or removed, and no worker can miss it.
//!
//! A user's epoch is the sum of a count for all and a count that the user shares with every 4,096th other: the memory is
//! fixed, and the price of a shared count is that somebody is asked about once more than needed.

use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 4096;

/// The epochs of all users. Shared by all workers.
#[derive(Debug)]
pub struct Epochs {
    all: AtomicU64,
    users: Box<[AtomicU64]>,
}

impl Default for Epochs {
    fn default() -> Self {
        Self { all: AtomicU64::new(0), users: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Epochs {
    /// The epoch of a login that names `user`, or that names nobody.
    pub fn of(&self, user: Option<&str>) -> u64 {
        // Both counts only grow, so the sum is that of some moment during this call.
        let own = user.map_or(0, |user| self.users[slot(user)].load(Ordering::SeqCst));
        self.all.load(Ordering::SeqCst).wrapping_add(own)
    }

    /// Ends the epoch of everybody.
    pub fn end(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the epoch of one user, however the name is capitalised.
    pub fn end_of(&self, user: &str) {
        self.users[slot(user)].fetch_add(1, Ordering::SeqCst);
    }
}

/// FNV-1a of what an authenticator that ignores case cannot tell apart: letters in lower case, and nothing of what is
/// not ASCII.
fn slot(user: &str) -> usize {
    let known = user.bytes().filter(u8::is_ascii).map(|byte| byte.to_ascii_lowercase());
    let hash = known.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_begins_a_number_that_was_never_there() {
        let epochs = Epochs::default();
        let mut last = (epochs.of(None), epochs.of(Some("alice")));
        for n in 0..100 {
            if n % 3 == 0 {
                epochs.end();
                assert!(epochs.of(None) > last.0);
            } else {
                epochs.end_of("alice");
                assert_eq!(epochs.of(None), last.0, "others are not asked about again");
            }
            let now = (epochs.of(None), epochs.of(Some("alice")));
            assert!(now.1 > last.1);
            last = now;
        }
    }

    #[test]
    fn a_name_reaches_its_user_in_any_case_and_few_others() {
        let epochs = Epochs::default();
        let names: Vec<String> = (0..1000).map(|n| format!("user-{n}")).collect();
        epochs.end_of("USER-7");
        let reached = names.iter().filter(|name| epochs.of(Some(name)) > 0).count();
        assert!(epochs.of(Some("user-7")) > 0 && reached < 5, "{reached}");
        epochs.end_of("Zoë");
        assert!(epochs.of(Some("ZOË")) > 0);
    }
}
