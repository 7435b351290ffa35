//! The throttle against what attackers and owners do, and against a model of its delays.

use proptest::prelude::*;

use super::*;

fn source(text: &str) -> Source {
    Source::from(text.parse::<IpAddr>().unwrap())
}

fn name(n: u64) -> Name {
    // Spread over the sets as a hash would be.
    u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(0xdead_beef_cafe_f00d_1234_5678_9abc_def1)
        .to_le_bytes()
}

fn attempt(place: u64, credential: u64) -> Attempt {
    Attempt {
        source: source(&format!("192.0.2.{}", place % 200)),
        place: name(place),
        credential: name(credential << 20 | place),
    }
}

/// A wrong guess from beginning to end.
fn guess(throttle: &Throttle, place: u64, credential: u64, now: Millis) -> Result<(), Millis> {
    let attempt = attempt(place, credential);
    throttle.begin(&attempt, now)?;
    throttle.end(&attempt, Outcome::Wrong, now);
    Ok(())
}

#[test]
fn a_source_is_an_address_or_a_64() {
    assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
    assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::9"));
    assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
}

#[test]
fn after_the_free_failures_the_delay_doubles_up_to_its_longest() {
    let throttle = Throttle::new(3, 1000);
    let mut now = 0;
    for n in 0..4 {
        assert_eq!(guess(&throttle, 1, n, now), Ok(()), "three are free, the fourth starts the delay");
    }
    for (n, delay) in [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000].into_iter().enumerate() {
        let n = 10 + n as u64;
        assert_eq!(guess(&throttle, 1, n, now), Err(delay));
        assert_eq!(guess(&throttle, 1, n, now + delay - 1), Err(1));
        now += delay;
        assert_eq!(guess(&throttle, 1, n, now), Ok(()), "{delay}");
    }
    assert_eq!(guess(&throttle, 2, 99, now), Ok(()), "other places know nothing of it");
}

#[test]
fn failures_are_forgotten_in_bounded_time() {
    let throttle = Throttle::new(2, 1000);
    let mut now = 0;
    for n in 0..1000 {
        now += guess(&throttle, 1, n, now).err().unwrap_or(0);
    }
    // Two free, seven until the delay is the longest.
    now += 9 * FORGET + LONGEST;
    for n in 2000..2003 {
        assert_eq!(guess(&throttle, 1, n, now), Ok(()), "as good as new");
    }
    assert!(guess(&throttle, 1, 2003, now).is_err());
}

#[test]
fn a_credential_that_was_right_here_always_passes_from_here() {
    let throttle = Throttle::new(1, 1000);
    let right = attempt(1, 7);
    throttle.begin(&right, 0).unwrap();
    throttle.end(&right, Outcome::Right, 0);
    for now in 0..10_000 {
        let _ = guess(&throttle, 1, 100 + now, now);
        assert_eq!(throttle.begin(&right, now), Ok(()), "{now}");
        throttle.end(&right, Outcome::Right, now);
        assert_eq!(throttle.pass(&right, now), Ok(()));
    }
    // Not any more once it has become wrong.
    throttle.begin(&right, 10_000).unwrap();
    throttle.end(&right, Outcome::Wrong, 10_000);
    assert!(throttle.begin(&right, 10_001).is_err());
}

#[test]
fn a_right_credential_from_a_guessing_source_waits_and_then_passes() {
    let throttle = Throttle::new(1, 1000);
    for n in 0..2 {
        guess(&throttle, 1, n, 0).unwrap();
    }
    let right = attempt(1, 7);
    assert_eq!(throttle.begin(&right, 500), Err(500));
    assert_eq!(throttle.begin(&right, 1000), Ok(()));
    throttle.end(&right, Outcome::Right, 1000);
    assert_eq!(throttle.begin(&right, 1001), Ok(()));
}

#[test]
fn what_is_remembered_from_elsewhere_is_refused_like_a_wrong_guess() {
    let throttle = Throttle::new(1, 1000);
    let stolen = attempt(1, 7);
    assert!(throttle.is_quiet(stolen.source, 0));
    assert_eq!(throttle.pass(&stolen, 0), Ok(()));
    for n in 0..2 {
        guess(&throttle, 1, n, 0).unwrap();
    }
    assert!(!throttle.is_quiet(stolen.source, 59_999));
    let other = attempt(1, 8);
    assert_eq!(throttle.pass(&other, 10), Err(990));
    assert_eq!(throttle.begin(&attempt(1, 9), 10), Err(990), "the same words for a wrong one");
    assert_eq!(throttle.pass(&other, 1000), Ok(()));
    assert_eq!(throttle.pass(&attempt(2, 8), 10), Ok(()), "and nobody else is refused");
}

#[test]
fn guesses_at_once_are_no_more_than_guesses_in_turn() {
    let throttle = Throttle::new(3, 1000);
    let begun = (0..1000).filter(|&n| throttle.begin(&attempt(1, n), 0).is_ok()).count();
    assert_eq!(begun, 4);
    // While wrong ones are refused unseen, a right one that is remembered is too.
    assert!(!throttle.is_quiet(attempt(1, 0).source, 1));
    assert!(throttle.pass(&attempt(1, 5000), 1).is_err());
    assert!(throttle.begin(&attempt(1, 2), 0).is_ok(), "the same credential again is no further guess");
    throttle.end(&attempt(1, 2), Outcome::Unknown, 0);
    for n in 0..4 {
        throttle.end(&attempt(1, n), Outcome::Unknown, 0);
    }
    assert!(throttle.is_empty(), "nobody said that they were wrong");
}

#[test]
fn a_machine_with_an_old_password_does_not_keep_the_new_one_out() {
    let throttle = Throttle::new(3, 1000);
    for now in (0..3_600_000).step_by(100) {
        let _ = guess(&throttle, 1, 1, now);
    }
    assert_eq!(throttle.begin(&attempt(1, 2), 3_600_000), Ok(()));
}

#[test]
fn memory_is_bounded_and_short_counts_do_not_wash_out_a_long_one() {
    let throttle = Throttle::new(3, 1000);
    for n in 0..4 {
        guess(&throttle, 1, n, 0).unwrap();
    }
    for place in 2..100_000 {
        let _ = guess(&throttle, place, 0, 1);
    }
    assert!(throttle.len() <= Throttle::CAPACITY && throttle.len() > Throttle::CAPACITY / 2, "{}", throttle.len());
    assert_eq!(guess(&throttle, 1, 9, 500), Err(500));
    for place in 0..100_000 {
        throttle.prove(name(place), 5);
    }
    assert!(throttle.proofs.iter().all(|set| lock_len(set) <= WAYS));
}

fn lock_len<T>(set: &Mutex<Vec<T>>) -> usize {
    set.lock().unwrap().len()
}

proptest! {
    // Whatever an attacker tries and when, he never sees more than the free guesses and one for each delay; and nobody who
    // is refused is told to wait longer than the longest delay.
    #[test]
    fn guesses_are_bounded_by_time(
        free in 1..20_u32,
        base in 1..5000_u64,
        steps in prop::collection::vec((0..5000_u64, 0..3_u8), 1..400),
    ) {
        let throttle = Throttle::new(free, base);
        let (mut now, mut seen, mut open): (Millis, u64, Vec<Attempt>) = (0, 0, Vec::new());
        for (n, (passes, what)) in steps.iter().enumerate() {
            now += passes;
            let attempt = attempt(1, n as u64);
            match throttle.begin(&attempt, now) {
                Ok(()) if *what == 0 => open.push(attempt),
                Ok(()) => {
                    throttle.end(&attempt, Outcome::Wrong, now);
                    seen += 1;
                }
                Err(wait) => prop_assert!((1..=LONGEST).contains(&wait)),
            }
            if *what == 2 {
                seen += open.len() as u64;
                open.drain(..).for_each(|attempt| throttle.end(&attempt, Outcome::Wrong, now));
            }
            let forgotten = now / FORGET;
            prop_assert!(seen <= u64::from(free) + 1 + forgotten + now / base, "{seen} after {now} ms");
        }
    }

    // Once every attempt has ended and every failure is forgotten, nothing is left behind.
    #[test]
    fn nothing_stays_open(steps in prop::collection::vec((0..5_u64, 0..5_u64, 0..3_u8), 0..200)) {
        let throttle = Throttle::new(2, 10);
        let mut open = Vec::new();
        for (place, credential, outcome) in steps {
            let attempt = attempt(place, credential);
            if throttle.begin(&attempt, 0).is_ok() {
                open.push((attempt, [Outcome::Right, Outcome::Wrong, Outcome::Unknown][usize::from(outcome)]));
            }
        }
        open.iter().for_each(|(attempt, outcome)| throttle.end(attempt, *outcome, 0));
        for set in &throttle.places {
            for place in set.lock().unwrap().iter_mut() {
                prop_assert!(place.open.is_empty() && place.failures > 0);
                place.settle(100 * FORGET);
                prop_assert!(place.is_idle());
            }
        }
    }
}
