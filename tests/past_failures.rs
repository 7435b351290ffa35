//! What went wrong in other gates, tried on this one: those tests of the table in SECURITY.md that have no other home, and
//! that every test it names is there.

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::raw::{Raw, read_all, read_head, read_until, say};
use crate::support::{Gate, Serve, htpasswd, program, root, scratch, text_files};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

fn gate(backend: &str, kind: &str, config: &str) -> Gate {
    let dir = scratch("past").unwrap();
    let file = dir.path().join("gate.toml");
    std::fs::write(&file, config).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &file).flag("--backend", backend).flag("--kind", kind);
    serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

fn auth() -> String {
    format!("Authorization: {}\r\n", basic(CREDS))
}

/// pingora answered from its cache while a body was still unread, and took the body for the next request.
#[test]
fn an_early_answer_leaves_no_half_read_connection_in_the_pool() {
    let (sender, received) = channel();
    let upstream = Raw::start(move |_, mut stream| {
        // Answers before the body, promises to stay, and then reads on: whatever comes is told.
        loop {
            let head = read_head(&mut stream);
            if head.is_empty() {
                return;
            }
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if head.starts_with(b"POST ") {
                let (behind, _) = read_all(&mut stream);
                let _ = sender.send(String::from_utf8_lossy(&behind).into_owned());
                return;
            }
        }
    });
    let gate = gate(&upstream.url(), "http", "");
    let mut client = TcpStream::connect(gate.addr()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!("POST /a HTTP/1.1\r\nHost: a\r\n{}Content-Length: 1000\r\n\r\n", auth());
    client.write_all(head.as_bytes()).unwrap();
    assert!(read_until(&mut client, b"ok").ends_with(b"ok"));
    // The body comes late, and looks like a request with somebody else's rights.
    let body = format!("GET /smuggled HTTP/1.1\r\nHost: a\r\n{}\r\n", auth());
    let _ = client.write_all(body.as_bytes());
    drop(client);
    for _ in 0..3 {
        assert_eq!(get(gate.addr(), "/next", Some(CREDS)).unwrap().text(), "ok");
    }
    let behind = received.recv().unwrap();
    assert!(body.starts_with(&behind), "a request behind an unread body: {behind:?}");
}

/// HAProxy cut a name's length to eight bits, and read a field that nobody else saw.
#[test]
fn an_overlong_field_name_hides_no_length() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "http", "");
    for long in [255, 256, 257, 270, 4096] {
        let name = format!("Content-Length{}", "0".repeat(long - 14));
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{}{name}: 0\r\nContent-Length: {}\r\n\r\n{smuggled}",
            auth(),
            smuggled.len()
        );
        assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&request).unwrap().status, 200);
        let seen = hello.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.body.len()), ("POST", smuggled.len()), "{long}");
    }
    assert!(hello.seen().iter().all(|seen| seen.target != "/smuggled"));
}

/// Traefik, Envoy, Caddy and nginx each judged one spelling of a path and sent on another.
#[test]
fn no_spelling_of_a_path_gets_past_a_rule() {
    let registry = Stub::start(|_| Reply::text(200, "ok")).unwrap();
    let rules = "[[rule]]\nwho = [\"testuser\"]\nrepositories = [\"open/**\"]\nactions = [\"pull\"]\n";
    let gate = gate(&registry.url(), "registry", rules);
    assert_eq!(get(gate.addr(), "/v2/open/app/tags/list", Some(CREDS)).unwrap().status, 200);
    let before = registry.seen().len();
    for target in [
        "/v2/secret/app/tags/list",
        "/v2/open/../secret/app/tags/list",
        "/v2/open/%2e%2e/secret/app/tags/list",
        "/v2/open/%2E./secret/app/tags/list",
        "/v2/open%2f..%2fsecret/app/tags/list",
        "/v2/open/..%2fsecret/app/tags/list",
        "/v2/open/%252e%252e/secret/app/tags/list",
        "/v2/open/..;/secret/app/tags/list",
        "/v2/open//../secret/app/tags/list",
        "/v2//secret/app/tags/list",
        "/v2/./secret/app/tags/list",
        "//v2/secret/app/tags/list",
        "/v2/%73ecret/app/tags/list",
        "/v2/SECRET/app/tags/list",
        "/v2/secret/app/tags/list?/v2/open/app/tags/list",
        "/_ping/../v2/secret/app/tags/list",
        "/v2/open/app/../../secret/app/tags/list",
        "/v2/open/%c0%ae%c0%ae/secret/app/tags/list",
        "/v2/secret/app/tags/list%00",
    ] {
        let status = get(gate.addr(), target, Some(CREDS)).unwrap().status;
        assert!([400, 403, 404].contains(&status), "{target}: {status}");
        assert_eq!(registry.seen().len(), before, "{target}");
    }
}

/// oauth2-proxy let through what its pattern found anywhere in the target, the query included.
#[test]
fn nothing_but_the_ping_itself_is_open() {
    let service = Stub::hello().unwrap();
    for kind in ["registry", "http"] {
        let gate = gate(&service.url(), kind, "");
        assert_eq!(get(gate.addr(), "/_ping", None).unwrap().status, 200);
        let before = service.seen().len();
        for target in [
            "/_ping/",
            "/_ping?a=b",
            "/_ping;a",
            "/_ping%20",
            "/_Ping",
            "//_ping",
            "/v2/_ping",
            "/v1/_ping/x",
            "/x?/_ping",
            "/v2/?x=/_ping",
            "/v2/a/tags/list?last=/_ping",
            "/_ping/../v2/",
            "/_ping%2f..%2fv2%2f",
        ] {
            let status = get(gate.addr(), target, None).unwrap().status;
            assert!([400, 401, 404].contains(&status), "{kind} {target}: {status}");
        }
        let post = Connection::open(gate.addr()).unwrap().exchange("POST /_ping HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!([401, 405].contains(&post.status), "{}", post.status);
        assert_eq!(service.seen().len(), before, "{kind}");
    }
}

/// distribution believed the key that a token brought along.
#[test]
fn a_token_of_the_clients_own_making_is_no_login() {
    let registry = Stub::start(|_| Reply::text(200, "ok")).unwrap();
    let gate = gate(&registry.url(), "registry", "");
    let part = |json: &str| basic(json).split_once(' ').unwrap().1.replace(['=', '+', '/'], "");
    let claims = part(r#"{"sub":"testuser","access":[{"type":"repository","name":"a","actions":["*"]}]}"#);
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"HS256","kid":"../../dev/null"}"#,
        r#"{"alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}"#,
        r#"{"alg":"RS256","jku":"http://127.0.0.1:1/keys"}"#,
        r#"{"alg":"RS256","x5c":["AA"]}"#,
    ] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{claims}.{signature}", part(header));
            let request = format!("GET /v2/a/tags/list HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
            let got = Connection::open(gate.addr()).unwrap().exchange(request).unwrap();
            assert_eq!(got.status, 401, "{header}: {}", got.text());
        }
    }
    assert!(registry.seen().is_empty());
}

/// HAProxy's splice lost the last kilobyte of some bodies.
#[test]
fn a_body_of_any_length_arrives_to_its_last_byte() {
    const LENGTHS: [usize; 12] =
        [1, 1023, 4096, 32_767, 32_768, 32_769, 65_537, 262_145, 1_048_575, 1_048_576, 1_048_577, 3_146_751];
    let pattern = |length: usize| -> Vec<u8> { (0..length).map(|at| (at * 31 + at / 251) as u8).collect() };
    let upstream = Raw::start(move |_, mut stream| {
        loop {
            let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
            let Some(length) = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()) else { return };
            let length = length.parse().unwrap_or(0);
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
            answer.extend_from_slice(&pattern(length));
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    let gate = gate(&upstream.url(), "http", "");
    let mut client = Connection::open(gate.addr()).unwrap();
    for length in LENGTHS {
        let got = client.exchange(format!("GET /{length} HTTP/1.1\r\nHost: a\r\n{}\r\n", auth())).unwrap();
        assert!(got.body == pattern(length), "{length}: {} bytes, or others", got.body.len());
    }
    let (sender, received) = channel();
    let sender = std::sync::Mutex::new(sender);
    let sink = Stub::start(move |request| {
        let _ = sender.lock().unwrap().send(request.body.clone());
        Reply::text(200, "")
    });
    let sink = sink.unwrap();
    let gate = self::gate(&sink.url(), "http", "");
    let mut client = Connection::open(gate.addr()).unwrap();
    for length in LENGTHS {
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{}Content-Length: {length}\r\n\r\n", auth());
        let request = [head.into_bytes(), pattern(length)].concat();
        assert_eq!(client.exchange(request).unwrap().status, 200);
        assert!(received.recv().unwrap() == pattern(length), "{length} bytes up");
    }
}

/// pingora passed bytes through before anybody had agreed to an upgrade; others opened h2c tunnels past their own rules.
#[test]
fn an_upgrade_that_nobody_granted_opens_no_tunnel() {
    let registry = Stub::start(|_| Reply::text(200, "ok")).unwrap();
    let gate = gate(&registry.url(), "registry", "");
    for upgrade in ["h2c", "websocket", "TLS/1.3", "foo"] {
        let request = format!(
            "GET /v2/a/tags/list HTTP/1.1\r\nHost: a\r\n{}Connection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n\
             GET /v2/smuggled/tags/list HTTP/1.1\r\nHost: a\r\n\r\n",
            auth()
        );
        let mut client = Connection::open(gate.addr()).unwrap();
        assert_eq!(client.exchange(&request).unwrap().status, 400, "{upgrade}");
    }
    assert!(registry.seen().is_empty(), "{:?}", registry.seen());
}

/// The rows of a table of past failures: its cells.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(|line| line.trim_start_matches("//!").trim());
    let table = lines.skip_while(|line| !line.starts_with("| what happened |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn every_test_in_the_table_exists() {
    let document = std::fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let rows = rows(&document);
    assert!(rows.len() >= 30, "{} rows", rows.len());
    let sources: Vec<(String, String)> = text_files().into_iter().filter(|(path, _)| path.ends_with(".rs")).collect();
    let mut missing = Vec::new();
    for row in &rows {
        assert_eq!(row.len(), 3, "{row:?}");
        let names: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {}", row[0]);
        for name in names {
            let (module, test) = name.rsplit_once("::").unwrap();
            let file = module.rsplit("::").next().unwrap();
            let holds = |path: &str| path.split(['/', '.']).any(|part| part == file);
            let found = sources.iter().any(|(path, text)| holds(path) && text.contains(&format!("fn {test}(")));
            if !found {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "no such test: {missing:#?}");
}

#[test]
fn the_table_is_the_same_in_both_places() {
    let read = |path: &str| rows(&std::fs::read_to_string(root().join(path)).unwrap());
    assert_eq!(read("SECURITY.md"), read("proxy/src/past_failures.rs"));
}
