//! Several upstreams, of which some fail: requests go where they can be served, nothing is sent twice that must not be, and
//! whoever comes back is used again.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, Response, basic, get};
use crate::support::raw::{Raw, read_head, read_until, say};
use crate::support::{Gate, Serve, free_address, htpasswd, program, scratch};

mod checks;
mod names;
mod pools;
mod registries;

pub(super) const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
pub(super) const CREDS: &str = "testuser:testpassword";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// No checks.
const LIMITS: &str = "health_interval = \"0s\"\n";
/// The same for upstreams that say nothing.
const QUICK: &str = "health_interval = \"0s\"\nresponse_timeout = \"1s\"\nconnect_timeout = \"1s\"\n";

/// A gate of one worker before these upstreams, with its admin listener.
pub(super) struct Front {
    pub(super) gate: Gate,
    admin: SocketAddr,
}

pub(super) fn front(kind: &str, upstreams: &[String], limits: &str) -> Front {
    let dir = scratch("upstreams").unwrap();
    let config = dir.path().join("gate.toml");
    let text = format!(
        "workers = 1\n[[site]]\nkind = {kind:?}\nupstreams = {upstreams:?}\n[limits]\nfailed_logins = 0\n{limits}"
    );
    std::fs::write(&config, text).unwrap();
    let admin = free_address().unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).admin(admin);
    Front { gate: serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap(), admin }
}

impl Front {
    pub(super) fn send(&self, method: &str, target: &str, body: Option<&str>) -> Response {
        let body = body.map(|body| format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n{}",
            basic(CREDS),
            body.unwrap_or_else(|| "\r\n".to_owned())
        );
        Connection::open(self.gate.addr()).unwrap().exchange(request).unwrap()
    }

    pub(super) fn get(&self) -> Response {
        get(self.gate.addr(), "/v2/a/tags/list", Some(CREDS)).unwrap()
    }

    /// The value of the one sample whose line holds all of these.
    pub(super) fn metric(&self, marks: &[&str]) -> Option<u64> {
        let text = get(self.admin, "/metrics", None).unwrap().text();
        let mut lines =
            text.lines().filter(|line| !line.starts_with('#') && marks.iter().all(|mark| line.contains(mark)));
        let value = lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok());
        assert!(lines.next().is_none(), "{marks:?} fit more than one line");
        value
    }
}

/// Waits until it holds; a generous time, for a loaded machine.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A service whose status can be changed while it runs.
fn switchable() -> (Stub, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let says = Arc::clone(&status);
    let stub = Stub::start(move |_| {
        let status = says.load(Ordering::SeqCst);
        Reply::text(status, format!("a {status}"))
    });
    (stub.unwrap(), status)
}

/// What an upstream can do wrong before its answer is in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Closes,
    Silent,
    Nonsense,
    Says(u16),
}

/// An upstream with this fault; it remembers whole requests.
fn faulty(fault: Fault) -> (Raw, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let raw = Raw::start(move |_, mut stream| {
        let mut head = String::from_utf8(read_head(&mut stream)).unwrap();
        if head.is_empty() {
            return;
        }
        if head.contains("Content-Length: 5") {
            head += &String::from_utf8(read_until(&mut stream, b"hello")).unwrap();
        }
        log.lock().unwrap().push(head);
        match fault {
            Fault::Closes => {}
            Fault::Silent => drop(read_head(&mut stream)),
            Fault::Nonsense => say(&mut stream, "SSH-2.0-OpenSSH_9.2\r\n"),
            Fault::Says(status) => {
                say(&mut stream, &format!("HTTP/1.1 {status} Bad\r\nX-Own: yes\r\nContent-Length: 4\r\n\r\nmine"));
            }
        }
    });
    (raw, seen)
}

/// An address where nobody listens.
fn nobody() -> String {
    format!("http://{}", free_address().unwrap())
}

#[test]
fn equal_upstreams_take_turns_and_the_least_busy_one_comes_first() {
    let [a, b, c] = [(); 3].map(|()| Stub::hello().unwrap());
    let gate = front("registry", &[a.url(), b.url(), c.url()], LIMITS);
    for _ in 0..12 {
        assert_eq!(gate.get().status, 200);
    }
    assert_eq!([a.seen().len(), b.seen().len(), c.seen().len()], [4, 4, 4]);

    let held = Arc::new(AtomicBool::new(true));
    let (holds, waiting) = (Arc::clone(&held), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&waiting);
    let slow = Stub::start(move |_| {
        counts.fetch_add(1, Ordering::SeqCst);
        until("let go", || !holds.load(Ordering::SeqCst));
        Reply::text(200, "slow")
    });
    let (slow, fast) = (slow.unwrap(), Stub::hello().unwrap());
    let gate = front("registry", &[slow.url(), fast.url()], LIMITS);
    let addr = gate.gate.addr();
    let slow_ones = thread::spawn(move || get(addr, "/v2/a/tags/list", Some(CREDS)).unwrap());
    until("the slow one is busy", || waiting.load(Ordering::SeqCst) == 1);
    for _ in 0..10 {
        assert_eq!(gate.get().text(), "Hello world", "the other one is busy");
    }
    assert_eq!(gate.metric(&["upstream_connections{", "busy", &slow.url()]), Some(1));
    held.store(false, Ordering::SeqCst);
    assert_eq!(slow_ones.join().unwrap().text(), "slow");
    until("none is busy", || gate.metric(&["upstream_connections{", "busy", &slow.url()]) == Some(0));
}

#[test]
fn what_changes_nothing_goes_to_the_next_upstream() {
    let faults = [500, 502, 503, 504].map(Fault::Says);
    for fault in faults.into_iter().chain([Fault::Closes, Fault::Silent, Fault::Nonsense]) {
        let (bad, good) = (faulty(fault), Stub::hello().unwrap());
        let gate = front("registry", &[bad.0.url(), good.url()], &format!("{LIMITS}retry_timeout = \"2s\"\n"));
        for method in ["GET", "HEAD", "GET", "GET"] {
            assert_eq!(
                gate.send(method, "/v2/a/tags/list", None).status,
                200,
                "{fault:?} {method}: {}",
                gate.gate.log()
            );
        }
        assert!(!bad.1.lock().unwrap().is_empty(), "{fault:?}: the bad one was asked");
    }
}

#[test]
fn an_answer_that_is_no_server_error_stays() {
    for status in [400, 404, 416, 429, 501, 505] {
        let (first, second) = (faulty(Fault::Says(status)), faulty(Fault::Says(status)));
        let gate = front("registry", &[first.0.url(), second.0.url()], LIMITS);
        assert_eq!(gate.get().status, status);
        let asked = first.1.lock().unwrap().len() + second.1.lock().unwrap().len();
        assert_eq!(asked, 1, "{status}");
    }
}

#[test]
fn an_upload_is_sent_once_whatever_happens() {
    let faults = [Fault::Closes, Fault::Silent, Fault::Nonsense, Fault::Says(500), Fault::Says(503)];
    let requests =
        [("PUT", Some("hello")), ("POST", None), ("POST", Some("hello")), ("DELETE", None), ("GET", Some("hello"))];
    for fault in faults {
        // Each silent one takes its time.
        let some = if fault == Fault::Silent { 2 } else { requests.len() };
        for (method, body) in requests.into_iter().take(some) {
            let (one, two) = (faulty(fault), faulty(fault));
            let gate = front("http", &[one.0.url(), two.0.url()], if fault == Fault::Silent { QUICK } else { LIMITS });
            let got = gate.send(method, "/upload", body);
            let expected = match fault {
                Fault::Silent => 504,
                Fault::Says(status) => status,
                _ => 502,
            };
            assert_eq!(got.status, expected, "{fault:?} {method}");
            assert_eq!(
                got.field("x-own").is_some(),
                matches!(fault, Fault::Says(_)),
                "the answer is the upstream's own"
            );
            let seen: Vec<String> = one.1.lock().unwrap().iter().chain(two.1.lock().unwrap().iter()).cloned().collect();
            assert_eq!(seen.len(), 1, "{fault:?} {method}: {seen:?}");
            assert_eq!(seen[0].ends_with("hello"), body.is_some());
        }
    }
}

#[test]
fn an_upload_goes_to_the_next_upstream_while_no_byte_is_written() {
    let good = Stub::hello().unwrap();
    let gate = front("http", &[nobody(), good.url()], LIMITS);
    for n in 0..6 {
        assert_eq!(gate.send("PUT", &format!("/{n}"), Some("hello")).status, 200, "{}", gate.gate.log());
        assert_eq!(gate.send("POST", &format!("/{n}"), None).status, 200);
    }
    assert_eq!(good.seen().len(), 12, "each once");
}

#[test]
fn the_last_error_is_the_upstreams_own() {
    let alone = faulty(Fault::Says(503));
    let gate = front("registry", &[alone.0.url()], LIMITS);
    for n in 1..=8 {
        let got = gate.get();
        assert_eq!((got.status, got.text().as_str(), got.field("x-own")), (503, "mine", Some("yes")));
        assert_eq!(alone.1.lock().unwrap().len(), n, "the only one is always asked, and once");
    }
    let (one, two) = (faulty(Fault::Says(503)), faulty(Fault::Says(500)));
    let gate = front("registry", &[one.0.url(), two.0.url()], LIMITS);
    let mut seen = Vec::new();
    for _ in 0..8 {
        let got = gate.get();
        assert_eq!((got.text().as_str(), got.field("x-own")), ("mine", Some("yes")), "{}", gate.gate.log());
        seen.push(got.status);
    }
    assert!(seen.iter().all(|status| [500, 503].contains(status)), "{seen:?}");
}

#[test]
fn one_that_fails_is_left_alone_for_a_while_and_comes_back() {
    let ((bad, status), good) = (switchable(), Stub::hello().unwrap());
    let gate = front("registry", &[bad.url(), good.url()], LIMITS);
    let up = ["portcullis_upstream_up{", &bad.url()];
    assert_eq!(gate.metric(&up), Some(1));
    status.store(503, Ordering::SeqCst);
    until("it is out", || gate.get().status == 200 && gate.metric(&up) == Some(0));
    assert!(gate.gate.says("is out"), "{}", gate.gate.log());
    let asked = bad.seen().len();
    assert_eq!(asked, 3, "failures in a row");
    assert_eq!(gate.metric(&["portcullis_upstream_failures_total{", &bad.url()]), Some(3));
    // For some pauses: far more requests than trials.
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(gate.get().status, 200);
        sent += 1;
    }
    let trials = bad.seen().len() - asked;
    assert!(trials <= 2 && sent > 2 * trials, "{trials} trials, {sent} requests");
    status.store(200, Ordering::SeqCst);
    until("it is back", || gate.get().status == 200 && gate.metric(&up) == Some(1));
    assert!(gate.gate.says("is back"), "{}", gate.gate.log());
}

#[test]
fn when_all_are_out_they_are_asked_all_the_same() {
    let ((one, first), (two, second)) = (switchable(), switchable());
    let gate = front("registry", &[one.url(), two.url()], LIMITS);
    for status in [&first, &second] {
        status.store(503, Ordering::SeqCst);
    }
    let out = |url: &str| gate.metric(&["portcullis_upstream_up{", url]) == Some(0);
    until("both are out", || gate.get().status == 503 && out(&one.url()) && out(&two.url()));
    for status in [&first, &second] {
        status.store(200, Ordering::SeqCst);
    }
    assert_eq!(gate.get().status, 200, "at once, not after the pause: {}", gate.gate.log());

    let gate = front("registry", &[one.url(), two.url()], LIMITS);
    drop((one, two));
    until("nobody is there", || {
        let got = gate.get();
        let told = got.text().contains("administrator") && got.field("retry-after").is_some();
        // A stub that is going may still take a connection.
        assert!(got.status == 200 || got.status == 502 && told, "{got:?}");
        got.text().contains("cannot be reached")
    });
}

#[test]
fn attempts_are_bounded_in_number_and_in_time() {
    let many: Vec<_> = (0..9).map(|_| faulty(Fault::Closes)).collect();
    let urls: Vec<String> = many.iter().map(|(raw, _)| raw.url()).collect();
    let gate = front("registry", &urls, LIMITS);
    assert_eq!(gate.get().status, 502);
    let asked: usize = many.iter().map(|(_, seen)| seen.lock().unwrap().len()).sum();
    assert_eq!(asked, 4);

    let silent: Vec<_> = (0..9).map(|_| faulty(Fault::Silent)).collect();
    let urls: Vec<String> = silent.iter().map(|(raw, _)| raw.url()).collect();
    let gate = front("registry", &urls, &format!("{QUICK}retry_timeout = \"200ms\"\n"));
    assert_eq!(gate.get().status, 504);
    let asked: usize = silent.iter().map(|(_, seen)| seen.lock().unwrap().len()).sum();
    assert!((1..4).contains(&asked), "{asked}: the first ones took all the time there was");
}

/// A listener that completes no connection any more: its queue is full, and the kernel drops what else comes.
struct Hole {
    addr: SocketAddr,
    _listener: std::os::fd::OwnedFd,
    kept: Vec<TcpStream>,
}

impl Hole {
    fn dig() -> Self {
        let listener =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&listener, 2).unwrap();
        let addr = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        Self { addr, _listener: listener, kept: Vec::new() }
    }

    fn fill(&mut self) {
        while let Ok(stream) = TcpStream::connect_timeout(&self.addr, Duration::from_millis(300)) {
            self.kept.push(stream);
        }
    }
}

#[test]
fn a_connection_that_is_never_made_has_its_deadline() {
    let mut hole = Hole::dig();
    let url = format!("http://{}", hole.addr);
    let alone = front("registry", std::slice::from_ref(&url), QUICK);
    let good = Stub::hello().unwrap();
    let both = front("registry", &[url, good.url()], QUICK);
    hole.fill();
    assert_eq!(alone.get().status, 504, "{}", alone.gate.log());
    for _ in 0..2 {
        assert_eq!(both.get().status, 200, "{}", both.gate.log());
        assert_eq!(both.send("POST", "/v2/a/blobs/uploads/", None).status, 200, "nothing was written");
    }
}
