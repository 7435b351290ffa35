//! A change of protocol at the real gate: only what was asked for and agreed to opens a tunnel, and nothing goes through
//! it before.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::cmd::Cmd;
use crate::support::hello::Stub;
use crate::support::http::{Connection, basic, get};
use crate::support::packages::PYTHON;
use crate::support::raw::{Raw, read_all, read_head, read_until, say};
use crate::support::{Gate, Serve, Service, free_address, htpasswd, misses, pki, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
/// What the service says before it goes on listening, and hangs: nothing of it may be waited for in vain.
const LIMIT: Duration = Duration::from_secs(20);

fn gate(backend: &str, kind: &str, limits: &str) -> Gate {
    let dir = scratch("upgrade").unwrap();
    let config = dir.path().join("gate.toml");
    std::fs::write(&config, format!("[limits]\n{limits}\n")).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", backend);
    serve.flag("--kind", kind).flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

fn request(fields: &str) -> String {
    format!("GET /chat HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n{fields}\r\n", basic(CREDS))
}

fn websocket() -> String {
    request("Connection: Upgrade\r\nUpgrade: websocket\r\n")
}

fn open(gate: &Gate) -> TcpStream {
    let stream = TcpStream::connect(gate.addr()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[test]
fn a_tunnel_opens_when_both_want_it_and_ends_half_by_half() {
    let upstream = Raw::start(|_, mut stream| {
        let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
        if head.is_empty() {
            return;
        }
        assert!(head.contains("\r\nConnection: Upgrade\r\n") && head.contains("\r\nUpgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nX-Portcullis-User: testuser\r\n") && !head.contains("Authorization"), "{head}");
        // The head and the first bytes in one piece; then all that comes is sent back until the client's half ends.
        say(&mut stream, &format!("{}early", AGREED.replace("\r\n\r\n", "\r\nContent-Length: 9\r\nX-A: b\r\n\r\n")));
        let mut piece = [0; 65536];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..n]).unwrap();
        }
        say(&mut stream, "late");
    });
    let gate = gate(&upstream.url(), "http", "");
    let mut stream = open(&gate);
    stream.write_all(websocket().as_bytes()).unwrap();
    let head = String::from_utf8(read_head(&mut stream)).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nX-A: b\r\n") && !head.contains("Content-Length"), "{head}");
    assert_eq!(read_until(&mut stream, b"early"), b"early");
    // Looks like a request, and is none.
    let sent = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20_000);
    let mut writer = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(bytes.as_bytes()).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (got, reset) = read_all(&mut stream);
    writing.join().unwrap();
    assert!(!reset && got == format!("{sent}late").as_bytes(), "{} bytes, reset: {reset}", got.len());
    let (received, back) = (sent.len(), sent.len() + "earlylate".len());
    assert!(gate.says(&format!("\"received\":{received}")), "{}", gate.log());
    assert!(
        gate.log().contains(&format!("\"sent\":{back}")) && gate.log().contains("\"status\":101"),
        "{}",
        gate.log()
    );
    assert!(gate.log().contains("\"relay\":\"splice\""), "{}", gate.log());
}

#[test]
fn what_comes_before_the_answer_waits_for_it() {
    let (asked, was_asked) = channel();
    let (answer, may_answer) = channel::<()>();
    let (asked, may_answer) = (Mutex::new(asked), Mutex::new(may_answer));
    let upstream = Raw::start(move |_, mut stream| {
        if read_head(&mut stream).is_empty() {
            return;
        }
        asked.lock().unwrap().send(()).unwrap();
        may_answer.lock().unwrap().recv().unwrap();
        // Nothing may have come behind the request until now.
        stream.set_nonblocking(true).unwrap();
        let early = stream.read(&mut [0; 100]);
        stream.set_nonblocking(false).unwrap();
        let text = if early.is_err() { "held" } else { "EARLY" };
        say(&mut stream, &format!("{AGREED}{text}"));
        let got = read_until(&mut stream, b"frame");
        stream.write_all(&got).unwrap();
    });
    let gate = gate(&upstream.url(), "http", "");
    let mut stream = open(&gate);
    stream.write_all(format!("{}one ", websocket()).as_bytes()).unwrap();
    was_asked.recv_timeout(LIMIT).unwrap();
    stream.write_all(b"more frame").unwrap();
    answer.send(()).unwrap();
    read_head(&mut stream);
    assert_eq!(String::from_utf8_lossy(&read_all(&mut stream).0), "heldone more frame");
}

#[test]
fn any_other_answer_is_an_ordinary_one_and_the_next_request_a_request() {
    let upstream = Stub::hello().unwrap();
    let gate = gate(&upstream.url(), "http", "");
    let mut connection = Connection::open(gate.addr()).unwrap();
    // The second is sent before the first is answered: with a 101 it would have been the tunnel's.
    connection.send(format!("{}{}", websocket(), request("").replace("/chat", "/next"))).unwrap();
    assert_eq!(connection.receive(false).unwrap().text(), "Hello world");
    assert_eq!(connection.receive(false).unwrap().text(), "Hello world");
    let seen = upstream.seen();
    assert_eq!(seen.iter().map(|request| request.target.as_str()).collect::<Vec<_>>(), ["/chat", "/next"]);
    assert_eq!((seen[0].field("upgrade"), seen[1].field("upgrade")), (Some("websocket"), None));
}

#[test]
fn a_wish_that_could_bring_http_past_the_gate_is_not_passed_on() {
    let upstream = Stub::hello().unwrap();
    let gate = gate(&upstream.url(), "http", "");
    for fields in [
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Upgrade: websocket\r\n",
    ] {
        assert_eq!(Connection::open(gate.addr()).unwrap().exchange(request(fields)).unwrap().status, 200, "{fields}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.field("upgrade"), seen.field("connection")), (None, None), "{fields}");
    }
    let post = websocket().replacen("GET", "POST", 1).replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(post).unwrap().status, 200);
    assert_eq!(upstream.seen().pop().unwrap().field("upgrade"), None);
    // curl --http2: its second field would be one more to strip.
    let curl = request("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n");
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(curl).unwrap().status, 400);
}

#[test]
fn a_change_that_nobody_asked_for_is_a_502_and_the_end_of_both_connections() {
    let h2c = AGREED.replace("websocket", "h2c");
    for (fields, answer) in [
        ("", AGREED),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n", &h2c),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", &h2c),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        // Behind it stands what a gate that skips 101 as interim would take for the answer.
        ("", &format!("{AGREED}HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled")),
    ] {
        let (ended, end) = channel();
        let (ended, answer) = (Mutex::new(ended), answer.to_owned());
        let upstream = Raw::start(move |_, mut stream| {
            if !read_head(&mut stream).is_empty() {
                say(&mut stream, &answer);
                let _ = ended.lock().unwrap().send(read_all(&mut stream).0);
            }
        });
        let gate = gate(&upstream.url(), "http", "");
        let mut connection = Connection::open(gate.addr()).unwrap();
        connection.send(format!("{}{}", request(fields), request(""))).unwrap();
        let got = connection.receive(false).unwrap();
        assert_eq!(got.status, 502, "{fields}: {}", got.text());
        assert!(connection.is_closed(), "{fields}");
        assert_eq!(end.recv_timeout(LIMIT).unwrap(), b"", "{fields}: the upstream's connection ends without a byte");
    }
}

#[test]
fn a_registry_has_no_tunnels() {
    let upstream = Stub::hello().unwrap();
    let gate = gate(&upstream.url(), "registry", "");
    let before = upstream.seen().len();
    let wish = websocket().replace("/chat", "/v2/");
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(wish).unwrap().status, 400);
    assert_eq!(upstream.seen().len(), before);
    assert_eq!(get(gate.addr(), "/v2/", Some(CREDS)).unwrap().status, 200, "a healthy request afterwards");
}

#[test]
fn a_stranger_gets_no_tunnel() {
    let upstream = Stub::hello().unwrap();
    let gate = gate(&upstream.url(), "http", "");
    let wish = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(wish).unwrap().status, 401);
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_tunnel_lives_while_anything_moves_and_not_longer() {
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, AGREED);
            // Only the upstream speaks; that keeps the silent client's side alive, too.
            for _ in 0..8 {
                std::thread::sleep(Duration::from_millis(500));
                say(&mut stream, "x");
            }
            let _ = read_all(&mut stream);
        }
    });
    let gate = gate(&upstream.url(), "http", "tunnel_timeout = \"2s\"");
    let mut stream = open(&gate);
    stream.write_all(websocket().as_bytes()).unwrap();
    read_head(&mut stream);
    assert_eq!(read_all(&mut stream).0, b"xxxxxxxx", "four seconds of a beat, then nothing for two");
    assert!(gate.says("nothing moved through the tunnel for too long"), "{}", gate.log());
}

#[test]
fn a_real_websocket_talks_through_the_gate_over_tls_and_plain() {
    if misses(&[PYTHON]) {
        return;
    }
    let dir = scratch("websocket").unwrap();
    let script = dir.path().join("websocket.py");
    std::fs::write(&script, include_str!("peers/websocket.py")).unwrap();
    let addr = free_address().unwrap();
    let server = Cmd::new("python3").arg(&script).arg("serve").arg(addr.port().to_string());
    let mut server = Service::start("websocket", server, dir.path()).unwrap();
    server.wait_listening(addr).unwrap();
    let authority = pki::Authority::create(dir.path(), "test").unwrap();
    let identity = authority.issue("localhost", &["localhost", "127.0.0.1"]).unwrap();
    let users = htpasswd(dir.path(), LINE);
    for tls in [false, true] {
        let mut serve = Serve::new(program()).unwrap().flag("--backend", format!("http://{addr}"));
        serve = serve.flag("--kind", "http").flag("--htpasswd", &users);
        let gate = if tls { serve.tls(&identity) } else { serve }.start().unwrap();
        let mut client = Cmd::new("python3").arg(&script).arg("talk").arg(gate.addr().port().to_string());
        client = client.arg(basic(CREDS));
        if tls {
            client = client.arg(&authority.cert);
        }
        let talked = client.limit(Duration::from_secs(60)).output().unwrap().ok().unwrap().text();
        assert_eq!(talked.trim(), "200 messages", "tls: {tls}");
        assert!(gate.says("\"status\":101"), "{}", gate.log());
    }
}
