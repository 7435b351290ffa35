//! Guessing passwords at the real gate: who guesses waits, and nobody else does.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic};
use crate::support::raw::read_all;
use crate::support::{Gate, Serve, htpasswd, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const RIGHT: &str = "testuser:testpassword";
const GUESSER: &str = "127.0.0.1";
const OWNER: &str = "127.0.0.2";

fn serve(dir: &Path, backend: &str, config: &str) -> Serve {
    let file = dir.join("gate.toml");
    std::fs::write(&file, config).unwrap();
    Serve::new(program()).unwrap().flag("--config", &file).flag("--backend", backend)
}

fn gate(backend: &Stub, config: &str) -> Gate {
    let dir = scratch("throttle").unwrap();
    serve(dir.path(), &backend.url(), config).flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

/// The whole answer to `GET /v2/` from an address of our choice.
fn login(addr: SocketAddr, source: &str, credentials: Option<&str>) -> String {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &format!("{source}:0").parse::<SocketAddr>().unwrap()).unwrap();
    connect(&fd, &addr).unwrap();
    let mut stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let authorization = credentials.map(|c| format!("Authorization: {}\r\n", basic(c))).unwrap_or_default();
    write!(stream, "GET /v2/ HTTP/1.1\r\nHost: a\r\n{authorization}Connection: close\r\n\r\n").unwrap();
    String::from_utf8(read_all(&mut stream).0).unwrap()
}

#[track_caller]
fn is(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "expected {status}: {answer}");
}

fn retry_after(answer: &str) -> u64 {
    let line = answer.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    line.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("no Retry-After: {answer}"))
}

#[test]
fn who_guesses_waits_and_the_owner_does_not() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello, "[limits]\nfailed_logins = 3\nfailed_login_delay = \"50s\"\n");
    for n in 0..4 {
        is(&login(gate.addr(), GUESSER, Some(&format!("testuser:guess{n}"))), 401);
    }
    for n in 4..60 {
        let answer = login(gate.addr(), GUESSER, Some(&format!("testuser:guess{n}")));
        is(&answer, 429);
        assert!((1..=50).contains(&retry_after(&answer)), "{answer}");
        assert!(answer.contains("{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\""), "{answer}");
        assert!(!answer.contains("WWW-Authenticate"), "{answer}");
    }
    let stranger = login(gate.addr(), GUESSER, None);
    is(&stranger, 401);
    assert!(stranger.contains("\r\nWWW-Authenticate: Basic realm="), "{stranger}");
    is(&login(gate.addr(), GUESSER, Some("someone-else:x")), 401);
    is(&login(gate.addr(), OWNER, Some(RIGHT)), 200);
    // The right one, though remembered by now, is not told apart from a wrong one where it is guessed.
    is(&login(gate.addr(), GUESSER, Some(RIGHT)), 429);
    is(&login(gate.addr(), OWNER, Some(RIGHT)), 200);
    assert!(gate.says("\"verdict\":\"throttle\""), "{}", gate.log());
}

#[test]
fn an_owner_who_shares_the_guessers_address_is_not_locked_out() {
    let hello = Stub::hello().unwrap();
    // Nothing is remembered, so that every login is checked anew.
    let gate = gate(
        &hello,
        "[limits]\nfailed_logins = 2\nfailed_login_delay = \"50s\"\n[verdicts]\nallow_ttl = \"0s\"\ndeny_ttl = \"0s\"\n",
    );
    is(&login(gate.addr(), GUESSER, Some(RIGHT)), 200);
    for n in 0..30 {
        is(&login(gate.addr(), GUESSER, Some(&format!("testuser:guess{n}"))), if n < 3 { 401 } else { 429 });
        is(&login(gate.addr(), GUESSER, Some(RIGHT)), 200);
    }
}

#[test]
fn after_the_delay_a_right_password_passes_from_anywhere() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello, "[limits]\nfailed_logins = 1\nfailed_login_delay = \"2s\"\n");
    for n in 0..2 {
        is(&login(gate.addr(), GUESSER, Some(&format!("testuser:guess{n}"))), 401);
    }
    let answer = login(gate.addr(), GUESSER, Some(RIGHT));
    is(&answer, 429);
    thread::sleep(Duration::from_secs(retry_after(&answer)));
    is(&login(gate.addr(), GUESSER, Some(RIGHT)), 200);
}

#[test]
fn a_flood_of_users_takes_no_more_than_its_memory() {
    let (hello, auth) = (Stub::hello().unwrap(), Stub::start(|_| Reply::text(401, "no")).unwrap());
    let dir = scratch("throttle-memory").unwrap();
    let config = "[limits]\nfailed_logins = 1\n[verdicts]\ncapacity = 10\n";
    let serve = serve(dir.path(), &hello.url(), config).flag("--auth-backend", auth.url()).flag("--access-log", "off");
    let gate = serve.start().unwrap();
    let (addr, host) = (gate.addr(), "a");
    let flood = |from: usize| {
        thread::scope(|scope| {
            for part in 0..4 {
                scope.spawn(move || {
                    let mut connection = Connection::open(addr).unwrap();
                    for n in 0..2000 {
                        let user = basic(&format!("user{from}-{part}-{n}:x"));
                        let request = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nAuthorization: {user}\r\n\r\n");
                        assert_eq!(connection.exchange(request).unwrap().status, 401);
                    }
                });
            }
        });
        gate.usage().unwrap().rss
    };
    let (before, after) = (flood(0), flood(1));
    assert!(after < before + (8 << 20), "{before} → {after}");
}
