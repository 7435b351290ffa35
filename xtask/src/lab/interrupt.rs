//! Ctrl-C and SIGTERM as a flag: commands look at it while they wait, so that every guard on the stack is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP ask for a clean end instead of ending the process.
///
/// # Errors
/// When a handler is already installed.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| REQUESTED.store(true, Ordering::SeqCst)).context("cannot handle Ctrl-C and SIGTERM")
}

/// Whether a signal has asked for the end.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// An error once a signal has asked for the end.
///
/// # Errors
/// When the end was asked for.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!requested(), "interrupted");
    Ok(())
}

/// Sleeps, but not past a signal.
pub fn sleep(time: Duration) {
    let end = Instant::now() + time;
    while !requested() && Instant::now() < end {
        thread::sleep(Duration::from_millis(50).min(end - Instant::now()));
    }
}
