//! No password is ever written anywhere: a session of good, bad and malformed logins, and then a look through all that
//! the gate wrote.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{basic, get};
use crate::support::raw::read_all;
use crate::support::{AuthService, Gate, Serve, htpasswd, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const RIGHT: &str = "testuser:testpassword";
const WRONG: &str = "testuser:n0t-The-passw0rd";
const STRANGER: &str = "mallory:gu3ssed+elsewhere";
const TOKEN: &str = "0paque.t0ken.value";
const PLAIN: &str = "wr1tten-in-plain";

/// What must appear nowhere: each password, with its user and alone, as it is and in base64.
fn secrets() -> Vec<String> {
    let mut found = vec![TOKEN.to_owned(), PLAIN.to_owned()];
    for pair in [RIGHT, WRONG, STRANGER] {
        let password = pair.split_once(':').unwrap().1;
        for text in [pair, password] {
            found.push(text.to_owned());
            for mut encoded in [STANDARD_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(text)] {
                // The end depends on what follows.
                encoded.truncate(encoded.len() - 2);
                found.push(encoded);
            }
        }
    }
    found
}

fn session(addr: SocketAddr) {
    for target in ["/v2/", "/v2/team/app/manifests/1", "/v2/_catalog", "/_ping", "/nowhere"] {
        for credentials in [None, Some(RIGHT), Some(WRONG), Some(STRANGER)] {
            get(addr, target, credentials).unwrap();
        }
    }
    // Enough for the throttle to speak as well.
    for n in 0..20 {
        get(addr, "/v2/", Some(&format!("{WRONG}{n}"))).unwrap();
    }
    let (right, wrong) = (basic(RIGHT), basic(WRONG));
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: {right}\r\n");
    for bytes in [
        format!("{head}Authorization: {wrong}\r\n\r\n"),
        format!("{head} folded\r\n\r\n"),
        format!("{head}{right}\r\n\r\n"),
        format!("{head}X: \0\r\n\r\n"),
        format!("{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: {RIGHT}@a\r\nAuthorization: {right}\r\n\r\n"),
        format!("GET http://{RIGHT}@a/v2/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("Authorization: {right}\r\n\r\n"),
        format!("{right} /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: {right} x\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: {RIGHT}\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"),
        format!("GET /v2/?token={TOKEN} HTTP/1.1\r\nHost: a\r\nAuthorization: {right}\r\n\r\n"),
        format!("GET /v2/?access_token={TOKEN}&password=testpassword HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!(
            "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nAuthorization: {wrong}\r\nContent-Length: 3\r\n\r\nab"
        ),
        head,
    ] {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_all(&mut stream);
    }
}

/// Waits until the gate has written `mark`, so that all before it is there too.
fn wait_for(mark: &str, written: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !written().contains(mark) {
        assert!(Instant::now() < deadline, "no {mark:?} in\n{}", written());
        thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn holds_no_secret(what: &str, text: &str) {
    for secret in secrets() {
        assert!(!text.contains(&secret), "{what} holds {secret:?}:\n{text}");
    }
}

fn start(dir: &Path, configure: impl FnOnce(Serve) -> Serve) -> Gate {
    let config = dir.join("gate.toml");
    std::fs::write(&config, "[limits]\nfailed_logins = 2\n[verdicts]\ndeny_ttl = \"0s\"\n").unwrap();
    configure(Serve::new(program()).unwrap().flag("--config", &config)).start().unwrap()
}

#[test]
fn no_password_is_written_over_a_htpasswd_file() {
    let hello = Stub::hello().unwrap();
    let dir = scratch("secrets-file").unwrap();
    let users = htpasswd(dir.path(), LINE);
    let gate = start(dir.path(), |serve| serve.flag("--backend", hello.url()).flag("--htpasswd", &users));
    session(gate.addr());
    // Somebody puts a password into the file as it is: the line is named, not repeated.
    std::fs::write(&users, format!("{LINE}\nbob:{PLAIN}\n")).unwrap();
    wait_for("the last good file stay", || gate.log());
    get(gate.addr(), "/_ping?", None).unwrap();
    wait_for("\"status\":429", || gate.log());
    holds_no_secret("the output", &gate.log());
    assert!(gate.says("\"status\":401") && gate.says("\"status\":400"), "{}", gate.log());
}

#[test]
fn no_password_is_written_over_a_backend() {
    let hello = Stub::hello().unwrap();
    let dir = scratch("secrets-backend").unwrap();
    let service = AuthService::start(program(), &htpasswd(dir.path(), LINE)).unwrap();
    let log = dir.path().join("access.log");
    let gate = start(dir.path(), |serve| {
        serve.flag("--backend", hello.url()).flag("--auth-backend", service.url()).flag("--access-log", &log)
    });
    session(gate.addr());
    get(gate.addr(), "/v2/the-end/tags/list", Some(RIGHT)).unwrap();
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("the-end", read);
    holds_no_secret("the access log", &read());
    holds_no_secret("the output", &gate.log());
    assert!(read().contains("\"status\":429") && read().contains("\"user\":\"testuser\""), "{}", read());

    // One that answers with what it was told.
    let chatty = Stub::start(|request| {
        let told = request.field("authorization").unwrap_or_default();
        Reply::text(500, told).with("Set-Cookie", told).with("X-Auth-User", told)
    });
    let chatty = chatty.unwrap();
    let gate = start(dir.path(), |serve| serve.flag("--backend", hello.url()).flag("--auth-backend", chatty.url()));
    session(gate.addr());
    wait_for("\"status\":503", || gate.log());
    holds_no_secret("the output", &gate.log());
}
