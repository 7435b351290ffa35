//! Raw bytes at the real gate: what is refused reaches nobody, what is relayed is whole or visibly cut, and whatever one
//! client does, the next one's healthy request works.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::raw::{Raw, read_all, read_head, read_until, say};
use crate::support::{Gate, Serve, htpasswd, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

/// A gate before `backend`, with the one user of 2014.
fn gate(backend: &str, kind: &str) -> Gate {
    let dir = scratch("data-plane").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--backend", backend).flag("--kind", kind);
    serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

fn auth() -> String {
    format!("Authorization: {}\r\n", basic(CREDS))
}

fn open(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// All that the gate answers to these bytes, until it closes.
fn answer(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = open(addr);
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    String::from_utf8_lossy(&read_all(&mut stream).0).into_owned()
}

#[test]
fn what_is_ambiguous_is_refused_and_reaches_nobody() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "http");
    let before = hello.seen().len();
    let auth = auth();
    let cases: Vec<(&str, String)> = vec![
        ("400", format!("\r\nGET / HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
        ("400", format!("GET / HTTP/1.1\nHost: a\n{auth}\n")),
        ("400", format!("GET / HTTP/1.1\r\n{auth}\r\n")),
        ("400", format!("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n{auth}\r\n")),
        ("400", format!("POST / HTTP/1.1\r\nHost: a\r\n{auth}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc")),
        (
            "400",
            format!(
                "POST / HTTP/1.1\r\nHost: a\r\n{auth}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        ("400", format!("POST / HTTP/1.0\r\nHost: a\r\n{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("501", format!("POST / HTTP/1.1\r\nHost: a\r\n{auth}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        ("400", format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}X: a\r\n b\r\n\r\n")),
        ("400", format!("GET http://a/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
        ("400", format!("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
        ("400", format!("GET /a#b HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
        ("400", format!("GET /a\\b HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
        ("400", format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}Connection: Authorization\r\n\r\n")),
        ("400", format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}{auth}\r\n")),
        ("414", format!("GET /{} HTTP/1.1\r\nHost: a\r\n{auth}\r\n", "x".repeat(9000))),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}X: {}\r\n\r\n", "x".repeat(20_000))),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}{}\r\n", "X: y\r\n".repeat(120))),
        ("417", format!("POST / HTTP/1.1\r\nHost: a\r\n{auth}Expect: cookies\r\nContent-Length: 1\r\n\r\na")),
        ("505", format!("GET / HTTP/2.0\r\nHost: a\r\n{auth}\r\n")),
    ];
    for (status, bytes) in cases {
        let got = answer(gate.addr(), bytes.as_bytes());
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:?}: {got}");
        assert!(got.contains("\r\nConnection: close\r\n"), "{bytes:?}: {got}");
        assert_eq!(hello.seen().len(), before, "{bytes:?} reached the service");
    }
    assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().status, 200, "a healthy request afterwards");
}

#[test]
fn a_tls_handshake_on_a_plain_port_gets_a_hint() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "http");
    let got = answer(gate.addr(), &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    assert!(got.starts_with("HTTP/1.1 400 ") && got.contains("TLS"), "{got}");
}

#[test]
fn outside_the_registrys_grammar_nothing_is_forwarded() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "registry");
    for target in ["/", "/v1/", "/v2/../x", "/v2/%2e%2e/", "/v2//a/tags/list", "/v2/A/tags/list", "/_pingx", "/_ping/"]
    {
        let got = get(gate.addr(), target, Some(CREDS)).unwrap();
        assert_eq!(got.status, 404, "{target}: {}", got.text());
        assert!(got.text().starts_with("{\"errors\":[{\"code\":"), "{target}: {}", got.text());
    }
    assert!(hello.seen().is_empty(), "{:?}", hello.seen());
    let form = format!(
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n{}Content-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: 5\r\n\r\na=b&c",
        auth()
    );
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&form).unwrap().status, 415);
    assert!(hello.seen().is_empty());
    // As in 2014, and without a login.
    assert_eq!(get(gate.addr(), "/_ping", None).unwrap().status, 200);
    assert_eq!(get(gate.addr(), "/v1/_ping", None).unwrap().status, 200);
}

/// Registries keep a manifest in memory (distribution CVE-2017-11468).
#[test]
fn a_manifest_has_a_size_that_it_may_have() {
    let registry = Stub::start(|_| Reply::text(201, "")).unwrap();
    let gate = gate(&registry.url(), "registry");
    let before = registry.seen().len();
    let put = |framing: &str, body: &[u8]| {
        let target = "/v2/a/manifests/latest";
        let head = format!("PUT {target} HTTP/1.1\r\nHost: a\r\n{}{framing}\r\n\r\n", auth());
        Connection::open(gate.addr()).unwrap().exchange([head.as_bytes(), body].concat()).unwrap()
    };
    let most = 4 << 20;
    assert_eq!(put(&format!("Content-Length: {most}"), &vec![b' '; most]).status, 201);
    let chunked =
        |length: usize| [format!("{length:x}\r\n").as_bytes(), &vec![b' '; length], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(put("Transfer-Encoding: chunked", &chunked(most)).status, 201);
    let taken = registry.seen().len();
    assert_eq!(taken - before, 2);
    for (framing, body) in [
        (format!("Content-Length: {}", most + 1), Vec::new()),
        ("Transfer-Encoding: chunked".to_owned(), chunked(most + 1)),
    ] {
        let answer = put(&framing, &body);
        assert_eq!(answer.status, 413, "{framing}");
        assert!(answer.text().contains("MANIFEST_INVALID"), "{}", answer.text());
    }
    // What does not end is no request to the registry.
    assert_eq!(registry.seen().len(), taken);
    let blob = format!("PUT /v2/a/blobs/uploads/1?digest=sha256:{} HTTP/1.1\r\nHost: a\r\n{}", "a".repeat(64), auth());
    let blob = format!("{blob}Content-Length: {}\r\n\r\n", most + 1);
    let body = vec![0; most + 1];
    let answer = Connection::open(gate.addr()).unwrap().exchange([blob.as_bytes(), &body].concat()).unwrap();
    assert_eq!(answer.status, 201, "a blob has no such limit");
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let echo = Stub::start(|request| Reply::text(200, request.target.clone())).unwrap();
    let gate = gate(&echo.url(), "http");
    let mut connection = Connection::open(gate.addr()).unwrap();
    let auth = auth();
    let mut all = String::new();
    for n in 0..20 {
        let body = "x".repeat(n);
        all += &format!("POST /{n} HTTP/1.1\r\nHost: a\r\n{auth}Content-Length: {n}\r\n\r\n{body}");
    }
    connection.send(&all).unwrap();
    for n in 0..20 {
        assert_eq!(connection.receive(false).unwrap().text(), format!("/{n}"));
    }
    let bodies: Vec<usize> = echo.seen().iter().map(|request| request.body.len()).collect();
    assert_eq!(bodies, (0..20).collect::<Vec<_>>());
}

#[test]
fn chunks_are_written_anew() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let upstream = Raw::start(move |_, mut stream| {
        let tell = |got| sender.lock().unwrap().send(String::from_utf8(got).unwrap()).unwrap();
        let begun = read_until(&mut stream, b"hello\r\n");
        if begun.is_empty() {
            return;
        }
        tell(begun);
        let rest = read_until(&mut stream, b"0\r\n\r\n");
        // It says that it takes no other request, which would be lost here.
        say(&mut stream, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        tell(rest);
    });
    let heard = || receiver.recv_timeout(Duration::from_secs(20)).expect("the request reaches the upstream");
    let gate = gate(&upstream.url(), "http");
    let head = format!("PATCH / HTTP/1.1\r\nHost: a\r\n{}Transfer-Encoding: chunked\r\n\r\n", auth());
    let request = format!("{head}005;ext=\"1\"\r\nhello\r\n6\r\n world\r\n0\r\nX-Forwarded-For: trailer\r\n\r\n");
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&request).unwrap().status, 201);
    let seen = heard() + &heard();
    let (fields, body) = seen.split_once("\r\n\r\n").unwrap();
    assert!(fields.contains("\r\nTransfer-Encoding: chunked") && !fields.contains("Content-Length"), "{fields}");
    assert_eq!(body, "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");

    // Malformed in the middle: the gate says so, and the upstream never sees an end.
    let mut stream = open(gate.addr());
    stream.write_all(format!("{head}5\r\nhello\r\n").as_bytes()).unwrap();
    assert!(heard().ends_with("\r\n\r\n5\r\nhello\r\n"));
    stream.write_all(b"6\n world\r\n0\r\n\r\n").unwrap();
    let (got, _) = read_all(&mut stream);
    assert!(got.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&got));
    assert_eq!(heard(), "");
}

#[test]
fn the_gate_answers_expect_and_only_after_the_verdict() {
    let echo = Stub::start(|request| Reply::text(200, format!("{} bytes", request.body.len()))).unwrap();
    let gate = gate(&echo.url(), "http");
    let put =
        |auth: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{auth}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let mut connection = Connection::open(gate.addr()).unwrap();
    connection.send(put(&auth())).unwrap();
    assert_eq!(connection.receive(false).unwrap().status, 100);
    connection.send("hello").unwrap();
    assert_eq!(connection.receive(false).unwrap().text(), "5 bytes");
    assert_eq!(echo.seen()[0].field("expect"), None);

    let mut stranger = Connection::open(gate.addr()).unwrap();
    stranger.send(put("")).unwrap();
    assert_eq!(stranger.receive(false).unwrap().status, 401, "no 100 before the refusal");
    assert!(stranger.is_closed(), "a body that never came must not be taken for the next request");
}

#[test]
fn a_refused_body_is_never_the_next_request() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "http");
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: a\r\n{}\r\n", auth());
    let request = format!("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    let mut connection = Connection::open(gate.addr()).unwrap();
    assert_eq!(connection.exchange(&request).unwrap().status, 401);
    let next = format!("GET /next HTTP/1.1\r\nHost: a\r\n{}\r\n", auth());
    assert_eq!(connection.exchange(&next).unwrap().status, 200, "a small refused body is read past");
    let targets: Vec<String> = hello.seen().iter().map(|request| request.target.clone()).collect();
    assert_eq!(targets, ["/next"]);
}

#[test]
fn an_upstream_that_dies_with_the_body_leaves_no_byte_behind() {
    let upstream = Raw::start(|_, mut stream| {
        if read_until(&mut stream, b"hello").ends_with(b"hello") {
            // Read it all, say nothing, go.
        }
    });
    let gate = gate(&upstream.url(), "http");
    let mut connection = Connection::open(gate.addr()).unwrap();
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{}Content-Length: 5\r\n\r\nhello", auth());
    assert_eq!(connection.exchange(&request).unwrap().status, 502);
    assert!(connection.is_closed(), "nobody can say what comes next on this connection");
    assert_eq!(upstream.connections(), 2, "one at the start, one upload: never replayed");
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let upstream = Raw::start(|_, mut stream| {
        read_head(&mut stream);
        say(&mut stream, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
    });
    let gate = gate(&upstream.url(), "http");
    let mut stream = open(gate.addr());
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{}Content-Length: 100000000\r\n\r\n", auth());
    stream.write_all(head.as_bytes()).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        // Until the gate has had enough.
        let piece = vec![0; 1 << 16];
        while writer.write_all(&piece).is_ok() {}
    });
    let got = read_until(&mut stream, b"big");
    let got = String::from_utf8_lossy(&got).into_owned();
    assert!(got.starts_with("HTTP/1.1 413 ") && got.contains("Connection: close"), "{got}");
    drop(stream);
    sending.join().unwrap();
    assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().status, 413);
}

/// The upstream answers early and waits for the rest of a request that will never come: it has to be told, or all three
/// wait for each other.
#[test]
fn a_client_that_breaks_off_after_an_early_answer_ends_the_exchange() {
    let (told, ended) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let upstream = Raw::start(move |_, mut stream| {
        if read_head(&mut stream).is_empty() {
            return;
        }
        say(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        let (body, _) = read_all(&mut stream);
        told.lock().unwrap().send(body).unwrap();
    });
    let gate = gate(&upstream.url(), "http");
    let mut stream = open(gate.addr());
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{}Content-Length: 10\r\n\r\n01234", auth());
    stream.write_all(head.as_bytes()).unwrap();
    read_until(&mut stream, b"abc");
    drop(stream);
    let body = ended.recv_timeout(Duration::from_secs(10)).expect("the upstream sees the end of the request");
    assert_eq!(body, b"01234");
}

/// Closed with bytes of the client still unread, a connection is reset, and what is on its way in it is lost.
#[test]
fn the_last_answer_arrives_whole_though_the_client_goes_on_sending() {
    const LENGTH: usize = 8 << 20;
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            let _ = stream.write_all(&vec![b'x'; LENGTH]);
        }
    });
    let gate = gate(&upstream.url(), "http");
    let mut stream = open(gate.addr());
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n", auth()).as_bytes()).unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n");
    stream.write_all(b"what nobody asked for").unwrap();
    // The gate is done with all but what fits into the sockets, and closes, before this reads on.
    let mut got = vec![0; LENGTH / 2];
    stream.read_exact(&mut got).unwrap();
    thread::sleep(Duration::from_millis(300));
    let (rest, reset) = read_all(&mut stream);
    let body = String::from_utf8_lossy(&head).split_once("\r\n\r\n").unwrap().1.len() + got.len() + rest.len();
    assert_eq!((body, reset), (LENGTH, false));
}

/// Upstream answers that break off, and the same broken off differently.
#[test]
fn a_cut_body_never_looks_whole() {
    for (version, cut) in [
        ("1.1", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc"),
        ("1.1", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
        ("1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        ("1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"),
        ("1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        ("1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nX"),
    ] {
        let upstream = Raw::start(move |_, mut stream| {
            if !read_head(&mut stream).is_empty() {
                say(&mut stream, cut);
            }
        });
        let gate = gate(&upstream.url(), "http");
        let mut stream = open(gate.addr());
        stream.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n{}\r\n", auth()).as_bytes()).unwrap();
        let (got, reset) = read_all(&mut stream);
        let got = String::from_utf8_lossy(&got).into_owned();
        assert!(!got.ends_with("0\r\n\r\n"), "{cut:?}: {got}");
        // A length or a last chunk that is missing shows by itself; the end of a connection alone has to be a reset.
        assert!(reset || version == "1.1", "{cut:?}: the connection ended as if the body were whole: {got}");
    }
}

#[test]
fn nonsense_from_upstream_is_a_502() {
    for nonsense in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "",
    ] {
        let upstream = Raw::start(move |_, mut stream| {
            if !read_head(&mut stream).is_empty() {
                say(&mut stream, nonsense);
            }
        });
        let gate = gate(&upstream.url(), "registry");
        let got = get(gate.addr(), "/v2/a/tags/list", Some(CREDS)).unwrap();
        assert_eq!(got.status, 502, "{nonsense:?}");
        assert!(got.text().starts_with("{\"errors\":"), "{nonsense:?}: {}", got.text());
    }
}

#[test]
fn interim_answers_are_skipped_and_not_taken_for_the_answer() {
    let upstream = Raw::start(|_, mut stream| {
        read_head(&mut stream);
        say(&mut stream, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let gate = gate(&upstream.url(), "http");
    assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().text(), "ok");
}

#[test]
fn a_kept_connection_that_died_is_replaced() {
    // Every connection answers once, promises to stay, and goes.
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gate = gate(&upstream.url(), "http");
    let mut connection = Connection::open(gate.addr()).unwrap();
    for _ in 0..20 {
        let got = connection.exchange(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", auth())).unwrap();
        assert_eq!((got.status, got.text().as_str()), (200, "ok"));
    }
}

#[test]
fn the_clients_word_about_itself_is_not_passed_on() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url(), "http");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}X-Forwarded-For: 1.2.3.4\r\nx_forwarded_for: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\
         X-Real-IP: 1.2.3.4\r\nX-Portcullis-User: root\r\nX_Portcullis_User: root\r\nProxy-Authorization: x\r\n\r\n",
        auth()
    );
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&request).unwrap().status, 200);
    let seen = hello.seen().pop().unwrap();
    assert_eq!(seen.field("x-real-ip"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-portcullis-user"), Some("testuser"));
    assert_eq!(seen.field("authorization"), None);
    let told: Vec<&(String, String)> =
        seen.fields.iter().filter(|(_, v)| v.contains("1.2.3.4") || v == "root").collect();
    assert!(told.is_empty(), "{told:?}");
    assert!(seen.field("proxy-authorization").is_none());
}

#[test]
fn large_bodies_pass_both_ways_byte_for_byte() {
    let echo = Stub::start(|request| {
        let sum = request.body.iter().fold(0_u64, |sum, &b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
        Reply::text(200, format!("{} {sum}", request.body.len()))
    })
    .unwrap();
    let blob = Stub::blob(20_000_000).unwrap();
    let (up, down) = (gate(&echo.url(), "http"), gate(&blob.url(), "http"));
    let body: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sum = body.iter().fold(0_u64, |sum, &b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut connection = Connection::open(up.addr()).unwrap();
    let mut request =
        format!("PUT / HTTP/1.1\r\nHost: a\r\n{}Content-Length: {}\r\n\r\n", auth(), body.len()).into_bytes();
    request.extend_from_slice(&body);
    assert_eq!(connection.exchange(&request).unwrap().text(), format!("{} {sum}", body.len()));
    let got = get(down.addr(), "/", Some(CREDS)).unwrap();
    assert_eq!(got.body.len(), 20_000_000);
    assert!(got.body.iter().all(|&b| b == 0));
}

#[test]
fn a_slow_head_is_given_up() {
    let hello = Stub::hello().unwrap();
    let dir = scratch("slow-head").unwrap();
    let config = dir.path().join("gate.toml");
    std::fs::write(&config, "[limits]\nhead_timeout = \"1s\"\nidle_timeout = \"2s\"\n").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--kind", "http");
    let gate = serve.flag("--backend", hello.url()).flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap();
    let mut stream = open(gate.addr());
    stream.write_all(b"GET / HTTP/1.1\r\nHos").unwrap();
    let (got, _) = read_all(&mut stream);
    assert!(got.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&got));
    let mut idle = open(gate.addr());
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed without a word");
}

#[test]
fn a_drain_finishes_what_runs_and_exits_0() {
    let upstream = Raw::start(|_, mut stream| {
        if read_head(&mut stream).is_empty() {
            return;
        }
        say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        for _ in 0..10 {
            thread::sleep(Duration::from_millis(100));
            say(&mut stream, "x");
        }
    });
    let gate = gate(&upstream.url(), "http");
    let addr = gate.addr();
    let mut idle = Connection::open(addr).unwrap();
    let running = thread::spawn(move || get(addr, "/", Some(CREDS)).unwrap());
    thread::sleep(Duration::from_millis(300));
    let stopping = thread::spawn(move || gate.stop(Duration::from_secs(10)).unwrap());
    assert_eq!(running.join().unwrap().text(), "xxxxxxxxxx");
    assert!(idle.is_closed());
    assert_eq!(stopping.join().unwrap().code(), Some(0));
    assert!(TcpStream::connect(addr).is_err());
}
