//! More questions than the auth backend takes at once: they queue, up to a length and a time, and are never a 401.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Response, get};
use crate::support::{Gate, Serve, program, scratch};

/// A backend that takes its time, and how many questions it has had at once.
fn slow(takes: Duration) -> (Stub, Arc<AtomicUsize>) {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let stub = Stub::start(move |_| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(takes);
        now.fetch_sub(1, Ordering::SeqCst);
        Reply::text(200, "yes")
    });
    (stub.unwrap(), most)
}

fn gate(upstream: &Stub, auth: &Stub, limits: &str) -> Gate {
    let dir = scratch("queue").unwrap();
    let config = dir.path().join("gate.toml");
    std::fs::write(&config, format!("workers = 2\n[limits]\n{limits}")).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config);
    serve.flag("--backend", upstream.url()).flag("--auth-backend", auth.url()).start().unwrap()
}

/// The answers to as many users at once.
fn users(addr: SocketAddr, count: usize) -> Vec<Response> {
    let asking: Vec<_> =
        (0..count).map(|n| thread::spawn(move || get(addr, "/v2/", Some(&format!("user{n}:x"))).unwrap())).collect();
    asking.into_iter().map(|asking| asking.join().unwrap()).collect()
}

fn with(answers: &[Response], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

#[test]
fn more_users_than_turns_all_get_theirs() {
    let (hello, (auth, most)) = (Stub::hello().unwrap(), slow(Duration::from_millis(100)));
    let gate = gate(&hello, &auth, "auth_concurrency = 2\nauth_queue = 64\nauth_timeout = \"20s\"\n");
    let answers = users(gate.addr(), 20);
    assert_eq!(with(&answers, 200), 20, "{answers:?}");
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert_eq!(auth.seen().len(), 20);
}

#[test]
fn over_the_queue_is_503_and_never_401() {
    let (hello, (auth, most)) = (Stub::hello().unwrap(), slow(Duration::from_millis(1000)));
    let gate = gate(&hello, &auth, "auth_concurrency = 1\nauth_queue = 2\nauth_timeout = \"20s\"\n");
    let answers = users(gate.addr(), 10);
    assert_eq!((with(&answers, 200), with(&answers, 503)), (3, 7), "{answers:?}");
    for refused in answers.iter().filter(|answer| answer.status == 503) {
        assert!(refused.field("retry-after").is_some(), "{refused:?}");
        assert!(refused.text().starts_with("{\"errors\":[{\"code\":\"UNAVAILABLE\""), "{refused:?}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(with(&users(gate.addr(), 1), 200), 1, "and afterwards all is well");
}

#[test]
fn the_wait_counts_against_the_timeout() {
    let (hello, (auth, _)) = (Stub::hello().unwrap(), slow(Duration::from_millis(700)));
    let gate = gate(&hello, &auth, "auth_concurrency = 1\nauth_timeout = \"1s\"\n");
    let began = Instant::now();
    let answers = users(gate.addr(), 8);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!((with(&answers, 200), with(&answers, 503)), (1, 7), "{answers:?}");
}
