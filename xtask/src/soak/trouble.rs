//! A registry that is killed and comes back, or says nothing for a moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::clients::Dice;
use super::signal;
use super::tally::Tally;
use crate::lab::registry::Registry;

/// Makes trouble until the tally stops.
pub(super) fn start(mut registry: Registry, tally: Arc<Tally>, seed: u64) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut dice = Dice::new(seed ^ 0xdead);
        for round in 0.. {
            tally.sleep(Duration::from_millis(1_000 + dice.below(7_000)));
            if !tally.goes_on() {
                return;
            }
            if round > 0 && dice.below(3) == 0 {
                let pid = registry.service().pid();
                signal("STOP", pid);
                tally.sleep(Duration::from_millis(200 + dice.below(2_000)));
                signal("CONT", pid);
                tally.stops.fetch_add(1, Ordering::Relaxed);
            } else {
                signal("KILL", registry.service().pid());
                tally.sleep(Duration::from_millis(dice.below(1_000)));
                if let Err(error) = registry.restart() {
                    return tally.violated(format!("the registry does not come back: {error:#}"));
                }
                tally.kills.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}
