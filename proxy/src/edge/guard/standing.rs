//! What the gate may know of the guard once it is nobody: mode and last `verify`, in a record whose descriptor it keeps.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_ebpf::Mode;

use super::loader;
use super::pins::Pins;
use super::store::Store;

pub(super) const LEN: usize = 16;

/// There is no guard any more.
pub(super) const ABSENT: u8 = 0;
const AUDIT: u8 = 1;
const ENFORCE: u8 = 2;

const FAILED: u8 = 1;
const PROVEN: u8 = 2;

/// The record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) mode: u8,
    verified: u8,
    at: u64,
}

impl Standing {
    fn from_bytes(bytes: [u8; LEN]) -> Self {
        let [mode, verified, _, _, _, _, _, _, at @ ..] = bytes;
        Self { mode, verified, at: u64::from_ne_bytes(at) }
    }

    fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = self.mode;
        bytes[1] = self.verified;
        bytes[8..].copy_from_slice(&self.at.to_ne_bytes());
        bytes
    }

    pub(super) fn read(store: &Store<LEN>) -> io::Result<Self> {
        store.read().map(Self::from_bytes)
    }

    /// In words.
    pub(super) fn mode(self) -> &'static str {
        match self.mode {
            ENFORCE => "enforce",
            AUDIT => "audit",
            _ => "absent",
        }
    }

    /// When `verify` last ran, in seconds since 1970, and whether it found everything shut.
    pub(super) fn verified(self) -> Option<(u64, bool)> {
        matches!(self.verified, FAILED | PROVEN).then_some((self.at, self.verified == PROVEN))
    }

    /// Notes the result of a `verify` that has just ended.
    pub(super) fn note(&mut self, proven: bool) {
        self.verified = if proven { PROVEN } else { FAILED };
        self.at = SystemTime::now().duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs);
    }
}

/// How long ago a time of [`Standing::verified`] was.
pub(super) fn age(at: u64) -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(at))
        .map_or(Duration::ZERO, |age| Duration::from_secs(age.as_secs()))
}

/// The record of a guard; `None` where it has none yet.
pub(super) fn read(pins: &Pins) -> io::Result<Option<Standing>> {
    Store::<LEN>::open(&pins.standing())?.as_ref().map(Standing::read).transpose()
}

/// Changes the record.
pub(super) fn change(pins: &Pins, change: impl FnOnce(&mut Standing)) -> io::Result<()> {
    let mut store = Store::<LEN>::make(&pins.standing())?;
    let mut standing = Standing::read(&store)?;
    change(&mut standing);
    store.write(standing.to_bytes())
}

/// Takes the mode over from the policy that holds; what was verified of another policy counts no longer.
pub(super) fn refresh(pins: &Pins) -> io::Result<()> {
    let Some(newest) = pins.newest()? else { return Ok(()) };
    let mode = match loader::header(pins, newest)?.mode {
        Mode::Audit => AUDIT,
        Mode::Enforce | Mode::Trial => ENFORCE,
    };
    change(pins, |standing| *standing = Standing { mode, ..Standing::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut standing = Standing { mode: ENFORCE, ..Standing::default() };
        assert_eq!(Standing::from_bytes([0; LEN]).verified(), None);
        standing.note(true);
        let read = Standing::from_bytes(standing.to_bytes());
        assert_eq!((read, read.mode()), (standing, "enforce"));
        assert!(read.verified().is_some_and(|(at, proven)| proven && at > 1_600_000_000));
    }
}
