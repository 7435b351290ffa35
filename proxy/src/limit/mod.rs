//! Limits that are arithmetic: progress over a window of time, connections by peer, turns in a bounded queue, failed
//! logins.

pub mod peers;
pub mod throttle;
pub mod turns;

/// Milliseconds of a monotonic clock.
pub type Millis = u64;

/// How slowly a body may move: at least `bytes_per_second`, looked at over whole windows.
///
/// A total time limit would cut large layers on slow lines; a limit on the pause between bytes lets one byte a minute
/// hold a connection for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinimumRate {
    /// Bytes a second; 0 asks only for one byte in each window.
    pub bytes_per_second: u64,
    /// The length of a window in milliseconds.
    pub window: Millis,
}

/// The progress of one transfer through the current window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    window_ends: Millis,
    moved: u64,
}

impl Progress {
    /// A transfer that begins at `now`.
    pub fn begin(now: Millis, rate: &MinimumRate) -> Self {
        Self { window_ends: now + rate.window, moved: 0 }
    }

    /// Counts bytes that moved.
    pub fn add(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
    }

    /// Whether the transfer is still fast enough at `now`; begins the next window when one is over.
    pub fn holds(&mut self, now: Millis, rate: &MinimumRate) -> bool {
        if now < self.window_ends {
            return true;
        }
        let least = (rate.bytes_per_second.saturating_mul(rate.window) / 1000).max(1);
        let enough = self.moved >= least;
        *self = Self::begin(now, rate);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: MinimumRate = MinimumRate { bytes_per_second: 100, window: 10_000 };

    #[test]
    fn a_transfer_is_judged_at_the_end_of_each_window() {
        let mut progress = Progress::begin(0, &RATE);
        assert!(progress.holds(9_999, &RATE), "not before the window is over");
        progress.add(1000);
        assert!(progress.holds(10_000, &RATE));
        progress.add(999);
        assert!(progress.holds(19_999, &RATE));
        assert!(!progress.holds(20_000, &RATE), "one byte short, and the last window does not help");
    }

    #[test]
    fn no_rate_still_asks_for_a_byte() {
        let rate = MinimumRate { bytes_per_second: 0, window: 10 };
        assert!(!Progress::begin(0, &rate).holds(10, &rate));
        let mut progress = Progress::begin(0, &rate);
        progress.add(1);
        assert!(progress.holds(10, &rate));
    }
}
