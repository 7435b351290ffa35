//! Verdicts from answers and policies, and flights with lost leaders.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::flight::{Arrival, Flights, Role, Wait};
use super::*;
use crate::registry::access::Action;
use crate::registry::name::RepositoryName;

mod simulation;

fn access(action: Action) -> Access {
    Access::on(&RepositoryName::parse("team/app").expect("a name"), action)
}

fn user(name: &str) -> Principal {
    Principal::User(name.into())
}

#[test]
fn without_rules_every_known_user_may_do_everything_and_nobody_else_anything() {
    let policy = Policy::default();
    let permit = decide(&Answer::Known(user("alice").into()), &policy, &[access(Action::Push)]).expect("a permit");
    assert_eq!((permit.principal(), permit.rule()), (&user("alice"), None));
    assert!(decide(&Answer::Known(user("alice").into()), &policy, &[]).is_ok());
    assert_eq!(anonymous(&policy, &[access(Action::Pull)]), None);
    assert_eq!(anonymous(&policy, &[]), None);
}

#[test]
fn whatever_is_not_a_clear_yes_is_a_refusal() {
    let policy = Policy::default();
    for (answer, refusal) in [
        (Answer::Unknown { challenge: None }, Refusal::Unauthenticated { challenge: None }),
        (Answer::Throttled { retry_after: 3 }, Refusal::Throttled { retry_after: 3 }),
        (Answer::Unavailable { why: "x" }, Refusal::Unavailable { why: "x" }),
    ] {
        assert_eq!(decide(&answer, &policy, &[access(Action::Pull)]), Err(refusal));
    }
    assert!(matches!(decide(&Answer::Forbidden, &policy, &[]), Err(Refusal::Forbidden { .. })));
}

/// bob may pull, builders may pull and push, anybody may pull what is open.
fn rules() -> Policy {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let rule = |who: &str, repositories: &str, actions: &str| crate::policy::RuleText {
        who: words(who),
        repositories: words(repositories),
        actions: words(actions),
    };
    let rules =
        [rule("anonymous", "open/**", "pull"), rule("bob @ci", "team/**", "pull"), rule("@ci", "team/**", "push")];
    Policy::new(&rules, &[("ci".to_owned(), words("builder"))].into()).expect("rules")
}

#[test]
fn all_accesses_have_to_be_granted_and_the_first_rule_is_named() {
    let ask = |name: &str, actions: &[Action]| {
        let accesses: Vec<Access> = actions.iter().map(|action| access(*action)).collect();
        decide(&Answer::Known(user(name).into()), &rules(), &accesses)
    };
    let permit = ask("builder", &[Action::Pull, Action::Push]).expect("a permit");
    assert_eq!((permit.principal(), permit.rule(), permit.fields().len()), (&user("builder"), Some(2), 0));
    assert_eq!(ask("bob", &[Action::Pull]).expect("a permit").rule(), Some(2));
    for (name, actions, missing) in [
        ("bob", &[Action::Pull, Action::Push][..], "push team/app"),
        ("bob", &[Action::Delete], "delete team/app"),
        ("eve", &[Action::Pull], "pull team/app"),
    ] {
        let Err(Refusal::Forbidden { message }) = ask(name, actions) else { panic!("{name} may {actions:?}") };
        assert!(message.contains(name) && message.contains(missing), "{message}");
    }
}

#[test]
fn anybody_gets_what_a_rule_gives_to_anybody() {
    let open = Access::on(&RepositoryName::parse("open/app").expect("a name"), Action::Pull);
    let permit = anonymous(&rules(), std::slice::from_ref(&open)).expect("a permit");
    assert_eq!((permit.principal(), permit.rule()), (&Principal::Anonymous, Some(1)));
    assert_eq!(anonymous(&rules(), &[open, access(Action::Pull)]), None, "all of it or nothing");
    assert_eq!(anonymous(&rules(), &[]), None, "the root is where people log in");
}

#[test]
fn two_targets_are_open_to_those_who_read_them() {
    for method in ["GET", "HEAD"] {
        for target in ["/_ping", "/v1/_ping"] {
            assert_eq!(open(method, target).expect("a permit").principal(), &Principal::Anonymous);
        }
    }
    for (method, target) in [
        ("POST", "/_ping"),
        ("get", "/_ping"),
        ("GET", "/_ping/"),
        ("GET", "/_ping?"),
        ("GET", "/v2/_ping"),
        ("GET", "/v2/"),
    ] {
        assert_eq!(open(method, target), None, "{method} {target}");
    }
}

#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll<'f>(wait: &mut Wait<'f>, waker: &Arc<Counter>) -> Poll<Arrival<'f>> {
    let waker = Waker::from(Arc::clone(waker));
    std::pin::Pin::new(wait).poll(&mut Context::from_waker(&waker))
}

fn two<'f>(flights: &'f Flights) -> (flight::Lead<'f>, Wait<'f>) {
    match (flights.join([1; 16]), flights.join([1; 16])) {
        (Role::Lead(lead), Role::Wait(wait)) => (lead, wait),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_who_wait_get_the_leaders_answer() {
    let flights = Flights::default();
    let (lead, mut wait) = two(&flights);
    let waker = Arc::new(Counter::default());
    assert!(poll(&mut wait, &waker).is_pending());
    assert!(poll(&mut wait, &waker).is_pending());
    lead.land(Answer::Forbidden);
    assert_eq!(waker.0.load(Ordering::Relaxed), 1);
    assert!(matches!(poll(&mut wait, &waker), Poll::Ready(Arrival::Answer(Answer::Forbidden))));
    assert!(flights.is_empty());
    assert!(matches!(flights.join([1; 16]), Role::Lead(_)), "a landed flight is over");
}

#[test]
fn a_lost_leader_hands_over() {
    let flights = Flights::default();
    let (lead, mut first) = two(&flights);
    let Role::Wait(mut second) = flights.join([1; 16]) else { panic!("a second leader") };
    let waker = Arc::new(Counter::default());
    assert!(poll(&mut first, &waker).is_pending());
    assert!(poll(&mut second, &waker).is_pending());
    drop(lead);
    drop(first);
    let Poll::Ready(Arrival::Lead(heir)) = poll(&mut second, &waker) else { panic!("nobody leads") };
    assert!(matches!(flights.join([1; 16]), Role::Wait(_)), "still one flight");
    heir.land(Answer::Forbidden);
    assert!(flights.is_empty());
}

#[test]
fn when_all_are_lost_the_board_is_clean() {
    let flights = Flights::default();
    let (lead, mut wait) = two(&flights);
    let waker = Arc::new(Counter::default());
    assert!(poll(&mut wait, &waker).is_pending());
    drop(lead);
    drop(wait);
    assert!(flights.is_empty());
    let (lead, wait) = two(&flights);
    drop(wait);
    drop(lead);
    assert!(flights.is_empty());
}
