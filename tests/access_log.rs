//! The access log as its readers see it: a line for each exchange, whatever a client sends, with all that happened.

use std::fs;

use serde_json::{Value, json};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, Response, basic, get};
use crate::support::packages::OPENSSL;
use crate::support::pki::Authority;
use crate::support::secure::Client;
use crate::support::{Gate, Serve, misses, program, scratch};

const KEYS: [&str; 19] = [
    "access",
    "endpoint",
    "error",
    "method",
    "peer",
    "received",
    "relay",
    "rule",
    "seconds",
    "sent",
    "status",
    "target",
    "time",
    "tls",
    "upstream",
    "upstream_seconds",
    "user",
    "verdict",
    "verdict_seconds",
];
const RULES: &str = "[[rule]]\nwho = [\"nobody\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]\n\
     [[rule]]\nwho = [\"alice\"]\nrepositories = [\"team-a/**\"]\nactions = [\"pull\", \"push\"]\n";

/// A gate that believes everybody, and its registry.
fn gate(rules: &str, more: impl FnOnce(Serve) -> Serve) -> (Gate, [Stub; 2]) {
    let dir = scratch("access-log").unwrap();
    let config = dir.path().join("gate.toml");
    fs::write(&config, rules).unwrap();
    let stubs = [Stub::hello().unwrap(), Stub::start(|_| Reply::text(200, "")).unwrap()];
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", stubs[0].url());
    let gate = more(serve.flag("--auth-backend", stubs[1].url())).start().unwrap();
    (gate, stubs)
}

/// The lines of the log, once there are so many.
fn lines(gate: &Gate, count: usize) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let log = gate.log();
        let own = log.lines().filter(|line| !line.starts_with("portcullis: "));
        own.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    };
    crate::support::wait_for("the lines are written", || read().len() >= count);
    read()
}

#[test]
fn a_line_tells_all_of_an_exchange() {
    if misses(&[OPENSSL]) {
        return;
    }
    let dir = scratch("access-log").unwrap();
    let ca = Authority::create(dir.path(), "ca").unwrap();
    let identity = ca.issue("gate", &["localhost"]).unwrap();
    let (gate, [hello, _auth]) = gate(RULES, |serve| serve.tls(&identity));
    let addr = gate.addr();
    let authorization = basic("alice:open sesame");
    let mut stream = Client::new(&ca, None).connect(addr).unwrap();
    let body = "x".repeat(300);
    let request = format!(
        "PATCH /v2/team-a/app/blobs/uploads/1?_state=secret HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\n\
         Content-Length: 300\r\nConnection: close\r\n\r\n{body}"
    );
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
    let line = lines(&gate, 1).remove(0);
    let keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, KEYS);
    let upstream = hello.url().trim_start_matches("http://").trim_end_matches('/').to_owned();
    for (key, value) in [
        ("tls", json!("1.3")),
        ("method", json!("PATCH")),
        ("target", json!("/v2/team-a/app/blobs/uploads/1?_state=…")),
        ("endpoint", json!("upload")),
        ("user", json!("alice")),
        ("access", json!("repository:team-a/app:push")),
        ("rule", json!(2)),
        ("verdict", json!("asked")),
        ("status", json!(200)),
        ("received", json!(300)),
        ("sent", json!("Hello world".len())),
        ("relay", json!("copy")),
        ("upstream", json!(upstream)),
        ("error", json!(null)),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    assert!(line["time"].as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{line}");
    let seconds = ["seconds", "verdict_seconds", "upstream_seconds"].map(|key| line[key].as_f64().unwrap());
    assert!(seconds[0] >= seconds[1] + seconds[2] && seconds.iter().all(|s| *s > 0.0), "{line}");
}

#[test]
fn what_was_not_reached_is_null() {
    let (gate, _stubs) = gate(RULES, |serve| serve);
    let statuses = [
        get(gate.addr(), "/v2/team-b/app/tags/list", Some("alice:x")).unwrap().status,
        get(gate.addr(), "/v2/team-b/../x", None).unwrap().status,
        Connection::open(gate.addr()).unwrap().exchange("GET / HTTP/1.1\r\n\r\n").unwrap().status,
    ];
    assert_eq!(statuses, [403, 404, 400]);
    // Of three connections: which worker writes first is left to chance.
    let mut lines = lines(&gate, 3);
    lines.sort_by_key(|line| statuses.iter().position(|status| line["status"] == *status));
    let empty = |line: &Value| KEYS.into_iter().filter(|key| line[key].is_null()).collect::<Vec<_>>().join(" ");
    assert_eq!(empty(&lines[0]), "error rule tls upstream upstream_seconds user");
    assert_eq!(lines[0]["access"], "repository:team-b/app:pull");
    let unknown = "access endpoint error rule tls upstream upstream_seconds user verdict verdict_seconds";
    assert_eq!(empty(&lines[1]), unknown);
    assert!(lines[2]["error"].is_string() && lines[2]["method"] == "", "{}", lines[2]);
}

/// Names and targets that would begin a line or a field of their own, if they could.
#[test]
fn nothing_that_a_client_sends_begins_a_line_or_a_field() {
    let (gate, _stubs) = gate("", |serve| serve.flag("--kind", "http"));
    let forged = "{\"time\":\"2020-01-01T00:00:00.000Z\",\"status\":200,\"user\":\"admin\"}";
    let users = [
        format!("a\",\"status\":999,\"user\":\"admin\":{forged}"),
        format!("zoë\u{2028}\u{85}{forged}"),
        "\u{1b}[2K\u{202e}x".to_owned(),
        format!("a\n{forged}"),
        format!("a\r\n{forged}\r\n"),
    ];
    let ask = |user: &str, target: &str| -> Option<Response> {
        let authorization = basic(&format!("{user}:secret words"));
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\nConnection: close\r\n\r\n");
        Connection::open(gate.addr()).unwrap().exchange(head).ok()
    };
    let targets =
        ["/a?x=\",\"status\":999,\"y=\"", "/a%0a%7B%22status%22:999%7D", "/{\"status\":999}", "/\\u000a\\\"}"];
    let mut sent = 0;
    for user in &users {
        ask(&user.replace(':', ";"), "/x").unwrap();
        sent += 1;
    }
    for target in targets {
        ask("alice", target).unwrap();
        sent += 1;
    }
    let mut raw = Connection::open(gate.addr()).unwrap();
    raw.exchange(b"GET /\n{\"status\":999}\n HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    sent += 1;
    let lines = lines(&gate, sent);
    assert_eq!(lines.len(), sent, "{}", gate.log());
    for line in &lines {
        assert_ne!(line["status"], 999, "{line}");
        assert_ne!(line["user"], "admin", "{line}");
        assert_eq!(line.as_object().unwrap().len(), KEYS.len(), "{line}");
        assert!(line["peer"].is_string(), "{line}");
    }
    // Nothing that a terminal obeys, either.
    assert!(gate.log().bytes().all(|byte| byte == b'\n' || byte >= b' '), "{}", gate.log());
    assert!(!gate.log().contains(['\u{85}', '\u{202e}', '\u{2028}']), "{}", gate.log());
}
