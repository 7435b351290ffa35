//! Health checks and what is counted: one that is sick is left alone before a request finds out.

use super::*;

#[test]
fn checks_take_a_sick_upstream_out_before_a_request_does() {
    let healthy = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&healthy);
    let sick = Stub::start(move |request| match request.target.as_str() {
        "/v2/" if asked.load(Ordering::SeqCst) => Reply::text(401, "who are you?"),
        "/v2/" => Reply::text(503, "the store is gone"),
        _ => Reply::text(200, "sick"),
    });
    let (sick, good) = (sick.unwrap(), Stub::hello().unwrap());
    let limits = "health_interval = \"50ms\"\nhealth_failures = 2\nhealth_successes = 2\n";
    let gate = front("registry", &[sick.url(), good.url()], limits);
    let up = ["portcullis_upstream_up{", &sick.url()];
    let checks = || sick.seen().iter().filter(|request| request.target == "/v2/").count();
    until("it is checked", || checks() > 3);
    assert_eq!(gate.metric(&up), Some(1), "401 is a registry's healthy answer");
    let check = sick.seen().into_iter().find(|request| request.target == "/v2/").unwrap();
    assert_eq!((check.method.as_str(), check.field("authorization")), ("GET", None));
    healthy.store(false, Ordering::SeqCst);
    until("it is out", || gate.metric(&up) == Some(0));
    for _ in 0..6 {
        assert_eq!(gate.get().text(), "Hello world");
    }
    assert!(gate.gate.says("fails its checks"), "{}", gate.gate.log());
    healthy.store(true, Ordering::SeqCst);
    until("it is back", || gate.metric(&up) == Some(1));
    assert!((0..2).any(|_| gate.get().text() == "sick"));
}

#[test]
fn a_service_that_is_no_registry_is_checked_by_a_connection() {
    let (one, two) = (Stub::hello().unwrap(), Stub::hello().unwrap());
    let (url, before) = (one.url(), one.seen().len());
    let gate = front("http", &[one.url(), two.url()], "health_interval = \"50ms\"\nhealth_failures = 2\n");
    let up = ["portcullis_upstream_up{", url.as_str()];
    thread::sleep(Duration::from_millis(300));
    assert_eq!((gate.metric(&up), one.seen().len()), (Some(1), before), "and is sent nothing");
    drop(one);
    until("it is out", || gate.metric(&up) == Some(0));
}

#[test]
fn the_only_upstream_is_not_checked() {
    let alone = Stub::hello().unwrap();
    let gate = front("registry", &[alone.url()], "health_interval = \"50ms\"\n");
    thread::sleep(Duration::from_millis(300));
    assert!(alone.seen().is_empty(), "{:?}", alone.seen());
    assert_eq!(gate.get().status, 200);
    assert_eq!(gate.metric(&["portcullis_upstream_requests_total{", &alone.url()]), Some(1));
    until("its connection rests", || gate.metric(&["upstream_connections{", "idle", &alone.url()]) == Some(1));
    assert_eq!(gate.metric(&["portcullis_upstream_connections_opened_total{", &alone.url()]), Some(1));
}
