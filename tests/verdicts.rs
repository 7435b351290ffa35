//! The verdict cache of the real gate before a scripted auth backend that is counted.

use std::fs;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::cmd::Cmd;
use crate::support::curl::Curl;
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::pki::Authority;
use crate::support::{Gate, Serve, Service, free_address, misses, packages, program, scratch};

const TAGS: &str = "/v2/a/tags/list";
const ALICE: &str = "alice:secret";

/// An auth backend whose answer can be changed while it runs.
struct Backend {
    stub: Stub,
    status: Arc<AtomicU16>,
    caching: Arc<Mutex<Option<&'static str>>>,
    delay: Arc<AtomicU64>,
}

impl Backend {
    fn start() -> Self {
        let (status, caching, delay) =
            (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(None)), Arc::new(AtomicU64::new(0)));
        let (now, word, wait) = (Arc::clone(&status), Arc::clone(&caching), Arc::clone(&delay));
        let stub = Stub::start(move |_| {
            thread::sleep(Duration::from_millis(wait.load(Ordering::SeqCst)));
            let reply = Reply::text(now.load(Ordering::SeqCst), "");
            match *word.lock().unwrap() {
                Some(value) => reply.with("Cache-Control", value),
                None => reply,
            }
        });
        Self { stub: stub.unwrap(), status, caching, delay }
    }

    fn say(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.stub.seen().len()
    }
}

fn gate(hello: &Stub, backend: &Backend, config: &str) -> Gate {
    let dir = scratch("verdicts").unwrap();
    let file = dir.path().join("gate.toml");
    fs::write(&file, config).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &file).flag("--workers", "2");
    let serve = if config.contains("[[site]]") { serve } else { serve.flag("--backend", hello.url()) };
    serve.flag("--auth-backend", backend.stub.url()).start().unwrap()
}

fn status(gate: &Gate, target: &str, user: &str) -> u16 {
    get(gate.addr(), target, Some(user)).unwrap().status
}

/// Whether the log names this source of a verdict; its writer has a thread of its own and may be a moment behind.
fn logged(gate: &Gate, source: &str) -> bool {
    let word = format!("\"verdict\":\"{source}\"");
    (0..100).any(|_| {
        thread::sleep(Duration::from_millis(50));
        gate.log().contains(&word)
    })
}

#[test]
fn two_hundred_cold_equal_requests_cost_one_subrequest() {
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    backend.delay.store(500, Ordering::SeqCst);
    let gate = gate(&hello, &backend, "");
    let addr = gate.addr();
    let mut connections: Vec<Connection> = (0..200).map(|_| Connection::open(addr).unwrap()).collect();
    for connection in &mut connections {
        let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(ALICE));
        connection.send(request).unwrap();
    }
    for mut connection in connections {
        assert_eq!(connection.receive(false).unwrap().status, 200);
    }
    assert_eq!(backend.asked(), 1);
    assert!(logged(&gate, "flight"), "they waited for one another");
}

#[test]
fn a_cold_pull_of_forty_layers_costs_one_subrequest() {
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    let gate = gate(&hello, &backend, "");
    let addr = gate.addr();
    let pulls: Vec<_> = (0..40)
        .map(|n| {
            let target = format!("/v2/team/app/blobs/sha256:{n:064x}");
            thread::spawn(move || get(addr, &target, Some(ALICE)).unwrap().status)
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.join().unwrap(), 200);
    }
    assert_eq!((backend.asked(), hello.seen().len()), (1, 40));
}

#[test]
fn nobody_gets_the_verdict_of_another() {
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    let sites = format!(
        "[[site]]\nhosts = [\"one\"]\nupstreams = [\"{0}\"]\n[[site]]\nhosts = [\"two\"]\nupstreams = [\"{0}\"]\n",
        hello.url()
    );
    let gate = gate(&hello, &backend, &sites);
    let ask = |method: &str, target: &str, host: &str, authorization: &str| {
        let auth = if authorization.is_empty() { String::new() } else { format!("Authorization: {authorization}\r\n") };
        let length = if method == "PUT" { "Content-Length: 0\r\n" } else { "" };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{auth}{length}\r\n");
        Connection::open(gate.addr()).unwrap().exchange(request).unwrap().status
    };
    assert_eq!(ask("GET", TAGS, "one", &basic(ALICE)), 200);
    backend.say(403);
    for (method, target, host, authorization) in [
        ("GET", TAGS, "one", basic("bob:secret")),
        ("GET", TAGS, "one", basic("alice:other")),
        ("GET", TAGS, "one", basic("alice:secretx")),
        ("GET", TAGS, "one", basic("alice:")),
        ("GET", TAGS, "one", basic("Alice:secret")),
        ("GET", TAGS, "one", basic("alice:Secret")),
        ("GET", TAGS, "one", basic(ALICE).replace("Basic", "Bearer")),
        ("GET", TAGS, "one", basic(ALICE).to_lowercase()),
        ("GET", TAGS, "one", String::new()),
        ("GET", "/v2/b/tags/list", "one", basic(ALICE)),
        ("GET", "/v2/a/a/tags/list", "one", basic(ALICE)),
        ("GET", "/v2/", "one", basic(ALICE)),
        ("GET", "/v2/_catalog", "one", basic(ALICE)),
        ("PUT", "/v2/a/manifests/latest", "one", basic(ALICE)),
        ("DELETE", "/v2/a/manifests/latest", "one", basic(ALICE)),
        ("GET", TAGS, "two", basic(ALICE)),
    ] {
        let before = backend.asked();
        assert_eq!(ask(method, target, host, &authorization), 403, "{method} {target} {host} {authorization}");
        assert_eq!(backend.asked(), before + 1, "{method} {target} {host} {authorization}");
    }
    let before = backend.asked();
    assert_eq!(ask("GET", TAGS, "one", &basic(ALICE)), 200);
    assert_eq!(ask("HEAD", "/v2/a/manifests/latest", "one", &basic(ALICE)), 200, "a pull like the other");
    assert_eq!(backend.asked(), before);
}

#[test]
fn plain_and_encrypted_connections_share_no_verdict() {
    if misses(&[packages::CURL, packages::OPENSSL]) {
        return;
    }
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    let dir = scratch("schemes").unwrap();
    let authority = Authority::create(dir.path(), "Test CA").unwrap();
    let identity = authority.issue("gate", &["127.0.0.1"]).unwrap();
    let (plain, secure) = (free_address().unwrap(), free_address().unwrap());
    let config = format!(
        "admin = \"off\"\n[[listen]]\naddress = \"{plain}\"\n[[listen]]\naddress = \"{secure}\"\n\
         tls = [{{ cert = {:?}, key = {:?} }}]\n[[site]]\nupstreams = [\"{}\"]\n[auth]\nbackend = \"{}\"\n",
        identity.cert,
        identity.key,
        hello.url(),
        backend.stub.url()
    );
    let file = dir.path().join("gate.toml");
    fs::write(&file, config).unwrap();
    let cmd = Cmd::new(program()).args(["serve", "--config"]).arg(&file);
    let mut service = Service::start("schemes", cmd, dir.path()).unwrap();
    service.wait_listening(secure).unwrap();
    assert_eq!(get(plain, TAGS, Some(ALICE)).unwrap().status, 200);
    backend.say(403);
    let url = format!("https://{secure}{TAGS}");
    let curl = || Curl::get(&url).ca(&authority.cert).user(ALICE).send().unwrap();
    assert_eq!(curl().status(), Some(403));
    assert_eq!(get(plain, TAGS, Some(ALICE)).unwrap().status, 200);
    assert_eq!(backend.asked(), 2);
}

#[test]
fn the_backends_word_about_caching_is_obeyed() {
    for (caching, asked) in [
        (Some("no-store"), 3),
        (Some("max-age=0"), 3),
        (Some("private, no-cache"), 3),
        (Some("max-age=3600"), 1),
        (None, 1),
    ] {
        for said in [200, 401, 403] {
            let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
            *backend.caching.lock().unwrap() = caching;
            backend.say(said);
            let gate = gate(&hello, &backend, "");
            for _ in 0..3 {
                assert_eq!(status(&gate, TAGS, ALICE), said);
            }
            assert_eq!(backend.asked(), asked, "{caching:?} {said}");
        }
    }
}

#[test]
fn only_clear_words_are_remembered() {
    for (said, got, asked) in [
        (204, 200, 1),
        (401, 401, 1),
        (403, 403, 1),
        (429, 429, 3),
        (302, 503, 3),
        (404, 503, 3),
        (500, 503, 3),
        (503, 503, 3),
    ] {
        let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
        backend.say(said);
        let gate = gate(&hello, &backend, "");
        for _ in 0..3 {
            assert_eq!(status(&gate, TAGS, ALICE), got, "{said}");
        }
        assert_eq!(backend.asked(), asked, "{said}");
    }
}

#[test]
fn permits_and_refusals_live_their_own_times() {
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    let gate = gate(&hello, &backend, "[verdicts]\nallow_ttl = \"4s\"\ndeny_ttl = \"500ms\"\n");
    assert_eq!(status(&gate, TAGS, ALICE), 200);
    backend.say(403);
    assert_eq!(status(&gate, TAGS, "bob:x"), 403);
    backend.say(200);
    thread::sleep(Duration::from_millis(700));
    assert_eq!(status(&gate, TAGS, "bob:x"), 200, "the refusal's time is over");
    backend.say(403);
    assert_eq!(status(&gate, TAGS, ALICE), 200, "the permit's is not");
    thread::sleep(Duration::from_millis(4000));
    assert_eq!(status(&gate, TAGS, ALICE), 403);
}

#[test]
fn pulls_go_on_for_a_while_when_the_backend_dies() {
    let (hello, backend) = (Stub::hello().unwrap(), Backend::start());
    let gate = gate(&hello, &backend, "[verdicts]\nallow_ttl = \"300ms\"\nstale_if_error = \"6s\"\n");
    let push = |user: &str| {
        let auth = basic(user);
        let request = format!(
            "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nAuthorization: {auth}\r\nContent-Length: 0\r\n\r\n"
        );
        Connection::open(gate.addr()).unwrap().exchange(request).unwrap().status
    };
    for user in [ALICE, "bob:x", "carol:x"] {
        assert_eq!((status(&gate, TAGS, user), status(&gate, "/v2/b/tags/list", user), push(user)), (200, 200, 200));
    }
    thread::sleep(Duration::from_millis(400));
    backend.say(403);
    assert_eq!(status(&gate, TAGS, "bob:x"), 403);
    backend.say(401);
    assert_eq!(status(&gate, TAGS, "carol:x"), 401);
    backend.say(500);
    assert_eq!(status(&gate, TAGS, ALICE), 200);
    assert!(logged(&gate, "stale"), "{}", gate.log());
    assert_eq!(push(ALICE), 503, "a push waits for the backend");
    assert_eq!(status(&gate, TAGS, "alice:other"), 503, "nothing is known of this one");
    assert_eq!(status(&gate, "/v2/b/tags/list", "bob:x"), 200, "the 403 was about another repository");
    assert_eq!(status(&gate, "/v2/b/tags/list", "carol:x"), 503, "the 401 was about the credential");
    thread::sleep(Duration::from_millis(6500));
    assert_eq!(status(&gate, TAGS, ALICE), 503, "not for ever");
}
