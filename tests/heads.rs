//! Heads at the real gate: however they are cut, whatever their version, and which fields cross.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::raw::{Raw, read_all, read_head, say};
use crate::support::{Gate, Serve, htpasswd, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

fn gate(backend: &str) -> Gate {
    let dir = scratch("heads").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--backend", backend).flag("--kind", "http");
    serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

fn auth() -> String {
    format!("Authorization: {}\r\n", basic(CREDS))
}

fn open(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn all(stream: &mut TcpStream) -> String {
    String::from_utf8(read_all(stream).0).unwrap()
}

#[test]
fn requests_mean_the_same_however_they_are_cut() {
    let echo = Stub::start(|request| {
        Reply::text(200, format!("[{} {} {}]", request.method, request.target, String::from_utf8_lossy(&request.body)))
    });
    let echo = echo.unwrap();
    let gate = gate(&echo.url());
    let auth = auth();
    let bytes = format!(
        "PATCH /one HTTP/1.1\r\nHost: a\r\n{auth}Transfer-Encoding: chunked\r\n\r\n\
         5;x=\"y\"\r\nhello\r\n0c\r\n and more...\r\n0\r\nX-T: t\r\n\r\n\
         PUT /two HTTP/1.1\r\nHost: a\r\n{auth}Content-Length: 7\r\n\r\nGET / H\
         GET /three HTTP/1.1\r\nHost: a\r\n{auth}Connection: close\r\n\r\n"
    );
    let right = |text: &str| {
        let found: Vec<&str> = text.split('[').skip(1).map(|rest| rest.split(']').next().unwrap()).collect();
        assert_eq!(found, ["PATCH /one hello and more...", "PUT /two GET / H", "GET /three "], "{text}");
    };
    // Whole, byte by byte, and cut once at each place: the first part has arrived before the second is sent, since the
    // gate has its own thread to read it, or it has not; both must be the same.
    let mut whole = open(gate.addr());
    whole.write_all(bytes.as_bytes()).unwrap();
    right(&all(&mut whole));
    let mut single = open(gate.addr());
    bytes.as_bytes().iter().for_each(|byte| single.write_all(&[*byte]).unwrap());
    right(&all(&mut single));
    let mut cut: Vec<TcpStream> = (1..bytes.len())
        .map(|at| {
            let mut stream = open(gate.addr());
            stream.write_all(&bytes.as_bytes()[..at]).unwrap();
            stream
        })
        .collect();
    // One exchange on another connection is time enough for the first parts to be read.
    assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().status, 200);
    for (at, stream) in (1..).zip(&mut cut) {
        stream.write_all(&bytes.as_bytes()[at..]).unwrap();
    }
    cut.iter_mut().for_each(|stream| right(&all(stream)));
}

#[test]
fn clients_of_http_1_0_are_served_in_their_way() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url());
    let mut plain = open(gate.addr());
    // Without a Host, which came later.
    plain.write_all(format!("GET / HTTP/1.0\r\n{}\r\n", auth()).as_bytes()).unwrap();
    let got = all(&mut plain);
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("\r\nConnection: close\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nHello world"), "{got}");
    assert_eq!(hello.seen()[0].field("host"), Some(hello.addr().to_string().as_str()));
    let mut kept = Connection::open(gate.addr()).unwrap();
    for _ in 0..2 {
        let request = format!("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n{}\r\n", auth());
        let got = kept.exchange(request).unwrap();
        assert_eq!((got.status, got.field("connection")), (200, Some("keep-alive")));
    }
}

#[test]
fn fields_cross_as_they_came_and_hops_do_not() {
    let answer = "HTTP/1.1 201 Made By Hand\r\nDate: Thu, 01 Jan 2015 00:00:00 GMT\r\nServer: old/1\r\nSet-Cookie: a\r\n\
                  Set-Cookie: b\r\nLocation: http://@/v2/a?b=c\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\n\
                  Connection: keep-alive, X-Hop\r\nX-Hop: secret\r\nKeep-Alive: timeout=9\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Raw::start(move |_, mut stream| {
        let head = String::from_utf8(read_head(&mut stream)).unwrap();
        if head.is_empty() {
            return;
        }
        let wanted = "GET /x?b=2&a=1 HTTP/1.1\r\nHost: registry.example:5000\r\nAccept: one\r\naccept: two\r\n\
                      Accept-Encoding: gzip, br\r\nRange: bytes=1-\r\nX-Forwarded-For: ";
        let right = head.starts_with(wanted) && !head.contains("Hop") && !head.contains("TE:");
        let own = stream.local_addr().unwrap().to_string();
        say(&mut stream, &if right { answer.replace('@', &own) } else { "HTTP/1.1 418 No\r\n\r\n".to_owned() });
    });
    let gate = gate(&upstream.url());
    let request = format!(
        "GET /x?b=2&a=1 HTTP/1.1\r\nHost: registry.example:5000\r\nAccept: one\r\naccept: two\r\nAccept-Encoding: gzip, br\r\n\
         TE: trailers\r\nConnection: TE, keep-alive\r\nKeep-Alive: 5\r\nRange: bytes=1-\r\n{}\r\n",
        auth()
    );
    let mut stream = open(gate.addr());
    stream.write_all(request.as_bytes()).unwrap();
    let got = String::from_utf8(read_head(&mut stream)).unwrap();
    assert_eq!(
        got,
        "HTTP/1.1 201 Made By Hand\r\nDate: Thu, 01 Jan 2015 00:00:00 GMT\r\nServer: old/1\r\nSet-Cookie: a\r\n\
         Set-Cookie: b\r\nLocation: /v2/a?b=c\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\nContent-Length: 2\r\n\r\n"
    );
}

#[test]
fn a_refused_request_reaches_nobody_and_the_next_client_is_served() {
    let hello = Stub::hello().unwrap();
    let gate = gate(&hello.url());
    let auth = auth();
    for (status, fields) in [
        ("400", "Content-Length: +3\r\n"),
        ("400", "Content-Length: 0x3\r\n"),
        ("400", "Content-Length: 3, 3\r\n"),
        ("400", "Content-Length: 99999999999999999999\r\n"),
        ("400", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("400", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        ("501", "Transfer-Encoding: chunked, identity\r\n"),
        ("501", "Transfer-Encoding: xchunked\r\n"),
        ("400", "Transfer-Encoding : chunked\r\n"),
        ("400", "Connection: Host\r\n"),
        ("400", "Connection: X-Forwarded-For\r\n"),
        ("400", "X: a\0b\r\n"),
        ("400", "X: a\rb\r\n"),
        ("400", ": nameless\r\n"),
        ("400", "Expect: 100-continue\r\nExpect: 100-continue\r\n"),
    ] {
        let before = hello.seen().len();
        let mut stream = open(gate.addr());
        let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: a\r\n{auth}\r\n");
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{auth}{fields}\r\n{smuggled}");
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let got = all(&mut stream);
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{fields:?}: {got}");
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{fields:?}: one answer, and the end: {got}");
        assert_eq!(hello.seen().len(), before, "{fields:?} reached the service");
        assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().status, 200, "{fields:?}: a healthy request afterwards");
    }
}
