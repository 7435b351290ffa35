//! Faults at the real gate, one a row: what the client sees while it lasts, that nobody is let in by it, that no answer is
//! another one's or changed, that nothing is left behind in descriptors, pipes, connections or memory, and that service is
//! back when it ends.

mod machine;
mod peers;
mod world;

use std::time::Duration;

use peers::Fault;
use world::{Seen, World};

use crate::support::wait_for;

/// Deadlines that a test can wait for.
const LIMITS: &str = "[limits]\nupstream_idle = \"300ms\"\nresponse_timeout = \"1s\"\nauth_timeout = \"1s\"\n\
                      connect_timeout = \"1s\"\nretry_timeout = \"2s\"\nrate_window = \"1s\"\nmin_rate = \"1KiB\"\n\
                      [verdicts]\nallow_ttl = \"0s\"\ndeny_ttl = \"0s\"\n";

/// A reset may overtake the head before it.
const BROKEN_OFF: &[Seen] = &[Seen::Cut, Seen::Nothing];

/// What an upstream does wrong, and what the client may see of it.
const UPSTREAM: [(Fault, &[Seen]); 15] = [
    (Fault::Closes, &[Seen::Status(502)]),
    (Fault::Resets, &[Seen::Status(502)]),
    (Fault::Silent, &[Seen::Status(504)]),
    (Fault::Garbage, &[Seen::Status(502)]),
    (Fault::InterimFlood, &[Seen::Status(502)]),
    (Fault::FieldFlood, &[Seen::Status(502)]),
    (Fault::EndlessField, &[Seen::Status(502)]),
    (Fault::HalfAHead, &[Seen::Status(502), Seen::Status(504)]),
    (Fault::Drips, BROKEN_OFF),
    (Fault::HalfABody, BROKEN_OFF),
    (Fault::HalfABodyThenResets, BROKEN_OFF),
    (Fault::HalfAChunk, BROKEN_OFF),
    (Fault::BadChunk, BROKEN_OFF),
    (Fault::TooMuch, &[Seen::Whole]),
    (Fault::AnswersEarly, &[Seen::Status(413)]),
];

/// The same for an auth backend: whatever it does, that is neither a yes nor a no.
const AUTH: [Fault; 13] = [
    Fault::Closes,
    Fault::Resets,
    Fault::Silent,
    Fault::Garbage,
    Fault::InterimFlood,
    Fault::FieldFlood,
    Fault::EndlessField,
    Fault::HalfAHead,
    Fault::Drips,
    Fault::HalfABody,
    Fault::HalfABodyThenResets,
    Fault::HalfAChunk,
    Fault::BadChunk,
];

/// The same for uploads, which are never sent twice.
const UPLOADS: [(Fault, &[Seen]); 8] = [
    (Fault::Closes, &[Seen::Status(502)]),
    (Fault::Resets, &[Seen::Status(502)]),
    (Fault::Silent, &[Seen::Status(504)]),
    (Fault::Garbage, &[Seen::Status(502)]),
    (Fault::InterimFlood, &[Seen::Status(502)]),
    (Fault::FieldFlood, &[Seen::Status(502)]),
    (Fault::HalfAHead, &[Seen::Status(502), Seen::Status(504)]),
    (Fault::AnswersEarly, &[Seen::Status(413)]),
];

#[test]
fn of_the_upstream() {
    let world = World::start(LIMITS);
    let before = world.held();
    for (fault, expected) in UPSTREAM {
        world.upstream.begin(fault);
        let seen = world.crowd();
        for one in &seen {
            assert!(expected.contains(one), "{fault:?}: {one:?}; the gate wrote:\n{}", world.last_words());
        }
        world.strangers_stay_out(fault, &[401]);
        world.upstream.end();
        world.is_well(&format!("{fault:?}"));
        world.is_at_rest(&format!("{fault:?}"), &["busy"]);
    }
    world.gave_back(&before, "all of them");
}

#[test]
fn of_the_upstream_during_uploads() {
    let world = World::start(LIMITS);
    assert!(world.uploads().iter().all(|seen| *seen == Seen::Whole));
    let before = world.held();
    for (fault, expected) in UPLOADS {
        let sent = world.upstream.requests();
        world.upstream.begin(fault);
        let seen = world.uploads();
        for one in &seen {
            assert!(expected.contains(one), "{fault:?}: {one:?}; the gate wrote:\n{}", world.last_words());
        }
        assert_eq!(world.upstream.requests(), sent + seen.len(), "{fault:?}: an upload was sent twice");
        world.strangers_stay_out(fault, &[401]);
        world.upstream.end();
        wait_for("uploads go through", || world.uploads().iter().all(|seen| *seen == Seen::Whole));
        world.is_well(&format!("{fault:?}"));
        world.is_at_rest(&format!("{fault:?}"), &["busy"]);
    }
    world.gave_back(&before, "all of them");
}

#[test]
fn of_the_auth_backend() {
    let world = World::start(LIMITS);
    let before = world.held();
    for fault in AUTH {
        world.auth.begin(fault);
        let reached = world.upstream.requests();
        for one in world.crowd() {
            assert_eq!(one, Seen::Status(503), "{fault:?}; the gate wrote:\n{}", world.last_words());
        }
        // Who says nothing is told so by the gate itself, or by the backend.
        world.strangers_stay_out(fault, &[401, 503]);
        assert_eq!(world.upstream.requests(), reached, "{fault:?}: let in without a permit");
        world.auth.end();
        world.is_well(&format!("{fault:?}"));
        world.is_at_rest(&format!("{fault:?}"), &["busy"]);
    }
    world.gave_back(&before, "all of them");
}

#[test]
fn of_the_client() {
    let world = World::start(LIMITS);
    let before = world.held();
    for (name, cut) in peers::CLIENTS {
        for n in 0..12 {
            cut(world.gate.addr(), n);
        }
        world.is_well(name);
        world.is_at_rest(name, &["busy"]);
    }
    world.gave_back(&before, "all of them");
}

/// Longer than any time above.
const PATIENCE: Duration = Duration::from_secs(30);
