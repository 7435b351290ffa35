use super::health::{Change, Health, Standing, Terms};
use super::idle::{Idle, MOMENT, Need};
use super::*;
use crate::limit::Millis;

mod simulation;

const TERMS: Terms = Terms { failures: 3, successes: 2, pause: 1_000, longest: 4_000 };
const GET: Wish<'_> = Wish { tried: &[], repeatable: true };
const UPLOAD: Wish<'_> = Wish { tried: &[], repeatable: false };
const DUE: Standing = Standing::Due { overdue: false };
const OVERDUE: Standing = Standing::Due { overdue: true };

/// What `wish` chooses, eight times, when nothing is under way.
fn choices(standings: &[Standing], wish: &Wish<'_>) -> Vec<usize> {
    let mut balance = Balance::new(standings.len());
    (0..8).filter_map(|_| balance.choose(wish, |index| standings[index])).map(|(index, _)| index).collect()
}

#[test]
fn equal_ones_take_turns() {
    assert_eq!(choices(&[Standing::Up; 3], &GET), [0, 1, 2, 0, 1, 2, 0, 1]);
    assert_eq!(choices(&[Standing::Up; 1], &GET), [0; 8]);
    assert_eq!(choices(&[], &GET), [] as [usize; 0]);
}

#[test]
fn the_least_busy_one_comes_first() {
    let mut balance = Balance::new(3);
    for index in [0, 0, 1, 2] {
        balance.begin(index);
    }
    let mut next = || {
        let (chosen, _) = balance.choose(&GET, |_| Standing::Up).unwrap();
        balance.begin(chosen);
        chosen
    };
    assert_eq!((0..5).map(|_| next()).collect::<Vec<_>>(), [1, 2, 0, 1, 2]);
    balance.end(0);
    balance.end(0);
    assert_eq!(balance.choose(&GET, |_| Standing::Up), Some((0, Standing::Up)));
    assert_eq!(balance.outstanding(0), 1);
}

#[test]
fn one_that_is_out_gets_nothing_while_another_is_not() {
    use Standing::{Out, Up};
    assert_eq!(choices(&[Out, Up, Out], &GET), [1; 8]);
    assert_eq!(choices(&[Out, Out, Out], &GET), [0, 1, 2, 0, 1, 2, 0, 1], "all are out: any may have come back");
    assert_eq!(choices(&[Up, DUE, Up], &GET)[0], 1, "a trial comes first");
    assert_eq!(choices(&[Up, DUE], &UPLOAD), [0; 8], "but not by what cannot be repeated");
    assert_eq!(choices(&[Up, OVERDUE], &UPLOAD)[0], 1, "unless nothing else comes");
}

#[test]
fn none_is_tried_twice_and_an_error_in_hand_is_no_worse_than_one_that_is_out() {
    use Standing::{Out, Up};
    let mut balance = Balance::new(3);
    let wish = Wish { tried: &[0, 1], ..GET };
    assert_eq!(balance.choose(&wish, |_| Up), Some((2, Up)));
    assert!(balance.has_better(&wish, |_| Up) && !balance.has_better(&wish, |_| Out));
    assert_eq!(balance.choose(&wish, |_| Out), Some((2, Out)));
    let wish = Wish { tried: &[0, 1, 2], ..GET };
    assert!(balance.choose(&wish, |_| Up).is_none() && !balance.has_better(&wish, |_| Up));
}

fn fail(health: &mut Health, now: Millis) -> Option<Change> {
    let ticket = health.begin(health.standing(now), now)?;
    health.failed(ticket, now)
}

fn succeed(health: &mut Health, now: Millis) -> Option<Change> {
    let ticket = health.begin(health.standing(now), now)?;
    health.succeeded(ticket)
}

#[test]
fn failures_in_a_row_put_it_out_for_a_growing_while() {
    let mut health = Health::new(TERMS);
    assert_eq!((fail(&mut health, 0), fail(&mut health, 0)), (None, None));
    assert_eq!(succeed(&mut health, 0), None, "the row is broken");
    assert_eq!((fail(&mut health, 0), fail(&mut health, 0)), (None, None));
    assert!(health.is_up() && !health.is_calm());
    assert_eq!(fail(&mut health, 0), Some(Change::Out(1_000)));
    let mut now = 0;
    for (pause, next) in [(1_000, 2_000), (2_000, 4_000), (4_000, 4_000)] {
        assert_eq!(health.standing(now + pause - 1), Standing::Out);
        now += pause;
        assert_eq!(health.standing(now), DUE);
        assert_eq!(health.standing(now + pause), OVERDUE);
        assert_eq!(fail(&mut health, now), Some(Change::Out(next)));
    }
    now += 4_000;
    assert_eq!(succeed(&mut health, now), Some(Change::Back));
    assert!(health.is_calm());
    for _ in 0..2 {
        fail(&mut health, now);
    }
    assert_eq!(fail(&mut health, now), Some(Change::Out(1_000)), "the next time begins small");
}

#[test]
fn there_is_one_trial_at_a_time() {
    let mut health = Health::new(Terms { failures: 1, ..TERMS });
    fail(&mut health, 0);
    let trial = health.begin(DUE, 1_000).expect("due");
    assert_eq!(health.standing(9_000), Standing::Out);
    assert_eq!(health.begin(DUE, 1_000), None, "somebody else was quicker");
    let forced = health.begin(Standing::Out, 1_000).expect("all are out");
    assert_eq!(health.failed(forced, 1_000), None, "which tells nothing new");
    health.abandoned(trial);
    assert_eq!(health.standing(1_000), DUE, "the client of the trial went away");
    let trial = health.begin(DUE, 1_000).expect("due again");
    let forced = health.begin(Standing::Out, 1_000).expect("all are out");
    assert_eq!(health.succeeded(forced), Some(Change::Back));
    assert_eq!(health.failed(trial, 1_000), None, "older than the news");
    assert!(health.is_calm());
}

#[test]
fn what_began_before_says_nothing_about_now() {
    let mut health = Health::new(Terms { failures: 1, ..TERMS });
    let (early, late) = (health.begin(Standing::Up, 0).unwrap(), health.begin(Standing::Up, 0).unwrap());
    fail(&mut health, 0);
    assert_eq!(health.succeeded(early), None);
    assert_eq!(health.failed(late, 900), None, "a hundred that fail together make one pause");
    assert_eq!(health.standing(1_000), DUE);
}

#[test]
fn what_checks_call_sick_they_have_to_call_well() {
    let mut health = Health::new(TERMS);
    let checks =
        [(false, None), (false, None), (true, None), (false, None), (false, None), (false, Some(Change::Sick))];
    for (well, change) in checks {
        assert_eq!(health.checked(well), change);
    }
    assert_eq!(health.standing(1 << 40), Standing::Out, "no trial: the checks are the trial");
    assert_eq!(succeed(&mut health, 0), None);
    assert!(!health.is_up());
    assert_eq!((health.checked(true), health.checked(false), health.checked(true)), (None, None, None));
    assert_eq!(health.checked(true), Some(Change::Well));
    assert!(health.is_calm());
}

#[test]
fn what_cannot_be_repeated_takes_no_old_connection() {
    let mut idle = Idle::new(3, 30_000);
    idle.put("a", 0);
    assert_eq!(idle.take(Need::Sure, MOMENT + 1, |_| true), None);
    assert_eq!(idle.len(), 1, "others may still have it");
    assert_eq!(idle.take(Need::Any, MOMENT + 1, |_| true), Some("a"));
    idle.put("b", 0);
    assert_eq!(idle.take(Need::Sure, MOMENT, |_| true), Some("b"));
    idle.put("c", 0);
    assert_eq!(idle.take(Need::Any, 30_001, |_| true), None, "too old for anybody");
}

#[test]
fn the_dead_the_old_and_the_too_many_go() {
    let mut idle = Idle::new(3, 10);
    for n in 0..5 {
        idle.put(n, n);
    }
    assert_eq!(idle.len(), 3, "2, 3 and 4");
    assert_eq!(idle.take(Need::Any, 5, |&n| n != 4), Some(3), "the newest that lives");
    idle.sweep(12, 9, |_| true);
    assert_eq!(idle.len(), 1);
    idle.sweep(12, 9, |_| false);
    assert!(idle.is_empty());
    for n in 20..23 {
        idle.put(n, n);
    }
    idle.sweep(31, 2, |_| false);
    assert_eq!(idle.take(Need::Any, 31, |_| true), Some(22), "20 is too old, 21 dead, and 22 is not looked at");
    assert!(idle.is_empty());
}
