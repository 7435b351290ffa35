//! Epochs: a number that goes into every cache key and only ever grows. What was answered, or only asked, under an older
//! one is never found again; nothing has to be searched for or removed, and no worker can miss it.
//!
//! A user's epoch is the sum of a count for all and a count that the user shares with every 4,096th other: the memory is
//! fixed, and the price of a shared count is that somebody is asked about once more than needed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SLOTS: usize = 4096;

/// The epochs of all users. Shared by all workers.
#[derive(Debug)]
pub struct Epochs {
    all: AtomicU64,
    /// Whether any user's epoch was ever ended: until then nobody's name has to be known.
    told_apart: AtomicBool,
    users: Box<[AtomicU64]>,
}

impl Default for Epochs {
    fn default() -> Self {
        let (all, told_apart) = Default::default();
        Self { all, told_apart, users: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Epochs {
    /// The epoch of a login that names the `user`, or that names nobody. The name is asked for where it matters only.
    pub fn of<U: AsRef<str>>(&self, user: impl FnOnce() -> Option<U>) -> u64 {
        // All counts only grow, so the sum is that of some moment during this call.
        let own = match self.told_apart.load(Ordering::SeqCst) {
            true => user().map_or(0, |user| self.users[slot(user.as_ref())].load(Ordering::SeqCst)),
            false => 0,
        };
        self.all.load(Ordering::SeqCst).wrapping_add(own)
    }

    /// Ends the epoch of everybody.
    pub fn end(&self) {
        self.all.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the epoch of one user, however the name is capitalised.
    pub fn end_of(&self, user: &str) {
        // First: whoever does not see it yet takes the count from before its end.
        self.told_apart.store(true, Ordering::SeqCst);
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

    fn of(epochs: &Epochs, user: Option<&str>) -> u64 {
        epochs.of(|| user)
    }

    #[test]
    fn every_end_begins_a_number_that_was_never_there() {
        let epochs = Epochs::default();
        let mut last = (of(&epochs, None), of(&epochs, Some("alice")));
        for n in 0..100 {
            if n % 3 == 0 {
                epochs.end();
                assert!(of(&epochs, None) > last.0);
            } else {
                epochs.end_of("alice");
                assert_eq!(of(&epochs, None), last.0, "others are not asked about again");
            }
            let now = (of(&epochs, None), of(&epochs, Some("alice")));
            assert!(now.1 > last.1);
            last = now;
        }
    }

    #[test]
    fn a_name_reaches_its_user_in_any_case_and_few_others() {
        let epochs = Epochs::default();
        let names: Vec<String> = (0..1000).map(|n| format!("user-{n}")).collect();
        epochs.end_of("USER-7");
        let reached = names.iter().filter(|name| of(&epochs, Some(name)) > 0).count();
        assert!(of(&epochs, Some("user-7")) > 0 && reached < 5, "{reached}");
        epochs.end_of("Zoë");
        assert!(of(&epochs, Some("ZOË")) > 0);
    }
}
