//! The flights in every order that threads can take: `RUSTFLAGS="--cfg loom" cargo test` with what CONTRIBUTING.md says.
//!
//! loom fails a model by itself when a thread waits for ever.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::flight::{Arrival, Flights, Lead, Role};
use super::*;

const KEY: key::Key = [1; 16];

#[derive(Default)]
struct World {
    flights: Flights,
    /// Leaders who are asking right now.
    asking: AtomicUsize,
}

impl World {
    /// Leads to the end, or gives up before there is an answer.
    fn lead(&self, lead: Lead<'_>, gives_up: bool) {
        assert_eq!(self.asking.fetch_add(1, Ordering::SeqCst), 0, "two leaders at once");
        self.asking.fetch_sub(1, Ordering::SeqCst);
        if gives_up { drop(lead) } else { lead.land(Answer::Forbidden) }
    }

    fn ask(&self, gives_up: bool) {
        match self.flights.join(KEY) {
            Role::Lead(lead) => self.lead(lead, gives_up),
            Role::Wait(wait) => match block_on(wait) {
                Arrival::Answer(answer) => assert_eq!(answer, Answer::Forbidden),
                Arrival::Lead(lead) => self.lead(lead, gives_up),
            },
        }
    }

    /// Joins, looks once and goes away.
    fn look_and_leave(&self) {
        match self.flights.join(KEY) {
            Role::Lead(lead) => self.lead(lead, true),
            Role::Wait(mut wait) => {
                let polled = Pin::new(&mut wait).poll(&mut Context::from_waker(Waker::noop()));
                if let Poll::Ready(Arrival::Lead(lead)) = polled {
                    self.lead(lead, true);
                }
            }
        }
    }
}

fn explore(others: [fn(&World); 2], own: fn(&World)) {
    // Without a bound on forced switches three threads have more orders than a test has time for.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = Arc::new(World::default());
        let threads = others.map(|act| {
            let world = Arc::clone(&world);
            thread::spawn(move || act(&world))
        });
        own(&world);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(world.flights.is_empty(), "a flight stays on the board");
    });
}

#[test]
fn three_who_ask_all_get_an_answer() {
    explore([|w| w.ask(false), |w| w.ask(false)], |w| w.ask(false));
}

#[test]
fn a_leader_that_gives_up_leaves_nobody_behind() {
    explore([|w| w.ask(false), |w| w.ask(false)], |w| w.ask(true));
}

#[test]
fn leaders_that_give_up_one_after_the_other_are_never_two() {
    explore([|w| w.ask(true), |w| w.ask(true)], |w| w.ask(true));
}

#[test]
fn a_waiter_that_leaves_takes_no_wake_up_with_it() {
    explore([World::look_and_leave, |w| w.ask(false)], |w| w.ask(true));
}

#[test]
fn when_all_leave_the_board_is_empty() {
    explore([World::look_and_leave, World::look_and_leave], |w| w.ask(true));
}
