//! Bodies at the real gate: how they are framed, how they move, and what happens when they are shorter, longer or other
//! than they were said to be.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::cmd::Cmd;
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::image::sha256;
use crate::support::packages::{PYTHON, REGISTRY};
use crate::support::pki::Authority;
use crate::support::raw::{Raw, read_all, read_head, read_until, reset, say};
use crate::support::registry::Registry;
use crate::support::secure::Client;
use crate::support::{Gate, Serve, Service, free_address, htpasswd, misses, program, refused, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

struct Front {
    gate: Gate,
    admin: SocketAddr,
}

fn front(backend: &str, kind: &str) -> Front {
    front_of(program(), backend, kind)
}

fn front_of(program: &Path, backend: &str, kind: &str) -> Front {
    let (dir, admin) = (scratch("bodies").unwrap(), free_address().unwrap());
    let serve = Serve::new(program).unwrap().flag("--backend", backend).flag("--kind", kind).admin(admin);
    Front { gate: serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap(), admin }
}

impl Front {
    /// Response body bytes that were copied, and that were spliced.
    fn moved(&self) -> (u64, u64) {
        let text = get(self.admin, "/metrics", None).unwrap().text();
        let value = |path: &str| {
            let name = format!("portcullis_response_bytes_total{{path=\"{path}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse::<u64>().unwrap()
        };
        (value("copy"), value("splice"))
    }

    /// The same once so many bytes are counted: that is done after the last of them is out.
    fn moved_at_least(&self, bytes: u64) -> (u64, u64) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let (copied, spliced) = self.moved();
            if copied + spliced >= bytes || Instant::now() > end {
                return (copied, spliced);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn ask(method: &str, target: &str, version: &str) -> String {
    format!("{method} {target} HTTP/{version}\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(CREDS))
}

fn all(addr: SocketAddr, request: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let (got, reset) = read_all(&mut stream);
    (String::from_utf8_lossy(&got).into_owned(), reset)
}

/// Whether a client can tell that the message is not whole: by the length it was told, by the last chunk that is missing,
/// or, where the end of the connection is the only end, by a reset.
fn shows_a_cut(got: &str, reset: bool) -> bool {
    let Some((head, body)) = got.split_once("\r\n\r\n") else { return true };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() < length,
        None if head.contains("\r\ntransfer-encoding: chunked") => !body.ends_with("0\r\n\r\n"),
        None => reset,
    }
}

#[test]
fn a_blob_crosses_the_gate_without_one_byte_of_it_in_user_space() {
    if misses(&[REGISTRY]) {
        return;
    }
    let registry = Registry::start().unwrap();
    let front = front(&registry.url(), "registry");
    let addr = front.gate.addr();
    let blob: Vec<u8> = (0..9_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let digest = format!("sha256:{}", sha256(&blob));
    let mut connection = Connection::open(addr).unwrap();
    let started = connection.exchange(ask("POST", "/v2/a/blobs/uploads/", "1.1")).unwrap();
    assert_eq!(started.status, 202, "{}", started.text());
    let place = started.field("location").unwrap();
    let head = ask("PUT", &format!("{place}&digest={digest}"), "1.1");
    let mut put = head.replace("\r\n\r\n", &format!("\r\nContent-Length: {}\r\n\r\n", blob.len())).into_bytes();
    put.extend_from_slice(&blob);
    assert_eq!(connection.exchange(&put).unwrap().status, 201);
    let (copied, spliced) = front.moved();
    // Over fresh connections and kept ones.
    for n in 0..20_u64 {
        let got = connection.exchange(ask("GET", &format!("/v2/a/blobs/{digest}"), "1.1")).unwrap();
        assert!(got.status == 200 && got.body == blob, "{n}");
        let wanted = (copied, spliced + (n + 1) * blob.len() as u64);
        assert_eq!(front.moved_at_least(wanted.0 + wanted.1), wanted, "{n}");
    }
    // distribution answers with the length of the whole blob and a short text: the gate must neither hang nor mend it.
    let range =
        ask("GET", &format!("/v2/a/blobs/{digest}"), "1.1").replace("\r\n\r\n", "\r\nRange: bytes=9999999-\r\n\r\n");
    let (got, reset) = all(addr, &range);
    assert!(got.starts_with("HTTP/1.1 416 ") && shows_a_cut(&got, reset), "{got}");
    assert!(front.gate.says("\"status\":416"), "{}", front.gate.log());
    assert_eq!(get(addr, "/v2/", Some(CREDS)).unwrap().status, 200, "a healthy request afterwards");
}

#[test]
fn a_body_that_ends_with_its_connection_is_chunked_for_those_who_know_chunks() {
    let body = "0123456789abcdef".repeat(200_000);
    let upstream = {
        let body = body.clone();
        Raw::start(move |_, mut stream| {
            if !read_head(&mut stream).is_empty() {
                say(&mut stream, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n");
                say(&mut stream, &body);
            }
        })
    };
    let front = front(&upstream.url(), "http");
    let mut connection = Connection::open(front.gate.addr()).unwrap();
    for _ in 0..3 {
        let got = connection.exchange(ask("GET", "/", "1.1")).unwrap();
        assert_eq!(got.field("transfer-encoding"), Some("chunked"));
        assert!(got.text() == body, "{} bytes", got.body.len());
    }
    let (copied, spliced) = front.moved_at_least(3 * body.len() as u64);
    assert_eq!(copied + spliced, 3 * body.len() as u64);
    assert!(copied <= 3 * 16_384, "all but what came with the head is spliced: {copied}");
    let (got, reset) = all(front.gate.addr(), &ask("GET", "/", "1.0"));
    let (head, got) = got.split_once("\r\n\r\n").unwrap();
    assert!(!reset && got == body && head.contains("Connection: close") && !head.contains("chunked"), "{head}");
}

#[test]
fn a_cut_shows_whatever_the_framing_and_the_size() {
    let large = "x".repeat(3_000_000);
    for (fields, before, after) in [
        ("", "", ""),
        ("Content-Length: 9000000\r\n", "", ""),
        ("Transfer-Encoding: chunked\r\n", "2dc6c0\r\n", "\r\n"),
    ] {
        for body in ["x", &large] {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n{before}{body}{after}");
            let upstream = Raw::start(move |_, mut stream| {
                if !read_head(&mut stream).is_empty() {
                    say(&mut stream, &text);
                    // What is on its way already must have arrived, or the reset would take it back.
                    thread::sleep(Duration::from_millis(200));
                    reset(stream);
                }
            });
            let front = front(&upstream.url(), "http");
            for version in ["1.1", "1.0"] {
                let (got, reset) = all(front.gate.addr(), &ask("GET", "/", version));
                assert!(got.starts_with("HTTP/1.1 200 ") || got.is_empty(), "{fields}: {}", &got[..got.len().min(200)]);
                assert!(shows_a_cut(&got, reset), "{fields:?} {version} {}: looks whole", body.len());
            }
            assert!(front.gate.says("reading the body: "), "{}", front.gate.log());
        }
    }
}

#[test]
fn a_killed_upstream_is_a_cut() {
    if misses(&[PYTHON]) {
        return;
    }
    for framing in ["length", "chunked"] {
        let (dir, addr) = (scratch("killed").unwrap(), free_address().unwrap());
        let script = dir.path().join("endless.py");
        std::fs::write(&script, include_str!("peers/endless.py")).unwrap();
        let serve = Cmd::new("python3").arg(&script).arg(addr.port().to_string()).arg(framing);
        let mut upstream = Service::start("endless", serve, dir.path()).unwrap();
        upstream.wait_listening(addr).unwrap();
        let front = front(&format!("http://{addr}"), "http");
        let streams = ["1.1", "1.0"].map(|version| {
            let mut stream = TcpStream::connect(front.gate.addr()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(ask("GET", "/", version).as_bytes()).unwrap();
            let mut body = vec![0; 3_000_000];
            stream.read_exact(&mut body).unwrap();
            assert!(body.starts_with(b"HTTP/1.1 200 "));
            (stream, body)
        });
        Cmd::new("kill").args(["-KILL", &upstream.pid().to_string()]).run().unwrap();
        for (mut stream, mut got) in streams {
            let (rest, reset) = read_all(&mut stream);
            got.extend_from_slice(&rest);
            assert!(shows_a_cut(&String::from_utf8_lossy(&got), reset), "{framing}: {} more bytes", rest.len());
        }
        assert_eq!(get(front.gate.addr(), "/", Some(CREDS)).unwrap().status, 502);
    }
}

#[test]
fn who_sends_more_than_it_said_is_not_listened_to_again() {
    for (method, answer, body) in [
        ("GET", "200 OK\r\nContent-Length: 3", "abc"),
        ("HEAD", "200 OK\r\nContent-Length: 3", ""),
        ("GET", "204 No Content", ""),
        ("GET", "304 Not Modified\r\nContent-Length: 3", ""),
    ] {
        let text = format!("HTTP/1.1 {answer}\r\n\r\n{body}HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled");
        let upstream = Raw::start(move |_, mut stream| {
            while !read_head(&mut stream).is_empty() {
                say(&mut stream, &text);
            }
        });
        let front = front(&upstream.url(), "http");
        let mut connection = Connection::open(front.gate.addr()).unwrap();
        let got = connection.exchange(ask(method, "/", "1.1")).unwrap();
        assert_eq!(got.text(), body, "{method} {answer}");
        assert!(connection.is_closed(), "{method} {answer}");
        assert!(front.gate.says("more than its response has"), "{}", front.gate.log());
        let before = upstream.connections();
        assert_eq!(
            Connection::open(front.gate.addr()).unwrap().exchange(ask(method, "/", "1.1")).unwrap().text(),
            body
        );
        assert_eq!(upstream.connections(), before + 1, "{method} {answer}: on a connection of its own");
    }
}

#[test]
fn a_flood_of_interim_answers_ends() {
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").is_ok() {}
        }
    });
    let front = front(&upstream.url(), "http");
    assert_eq!(get(front.gate.addr(), "/", Some(CREDS)).unwrap().status, 502);
}

/// An answer that comes while the request is on its way, for both framings of the request.
#[test]
fn an_early_answer_ends_an_endless_request() {
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            // It goes on reading, as Go's server does for a while.
            let mut piece = [0; 65536];
            while matches!(stream.read(&mut piece), Ok(1..)) {}
        }
    });
    let front = front(&upstream.url(), "http");
    let addr = front.gate.addr();
    let early = |framing: &str| {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request = ask("PUT", "/", "1.1").replace("\r\n\r\n", &format!("\r\n{framing}\r\n\r\n"));
        stream.write_all(request.as_bytes()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let sending = thread::spawn(move || {
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(65536));
            while writer.write_all(chunk.as_bytes()).is_ok() {}
        });
        let got = String::from_utf8(read_until(&mut stream, b"\r\n\r\nno")).unwrap();
        assert!(got.starts_with("HTTP/1.1 403 ") && got.contains("\r\nConnection: close\r\n"), "{framing}: {got}");
        // The gate stops reading in the end, or the writer would never come back.
        sending.join().unwrap();
    };
    thread::scope(|scope| {
        scope.spawn(|| early("Content-Length: 1000000000000"));
        scope.spawn(|| early("Transfer-Encoding: chunked"));
    });
}

#[test]
fn an_echo_of_chunks_and_of_lengths_passes_both_ways_at_once() {
    let upstream = Raw::start(|_, mut stream| {
        let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
        if head.is_empty() {
            return;
        }
        let framing = head.lines().find(|line| line.starts_with("Content-Length") || line.starts_with("Transfer"));
        say(&mut stream, &format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing.unwrap()));
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut piece) {
            if stream.write_all(&piece[..n]).is_err() {
                return;
            }
        }
    });
    let front = front(&upstream.url(), "http");
    let body = "0123456789abcdef".repeat(1_000_000);
    for (framing, sent) in [
        (format!("Content-Length: {}", body.len()), body.clone()),
        ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
    ] {
        let mut connection = Connection::open(front.gate.addr()).unwrap();
        let head = ask("POST", "/", "1.1").replace("\r\n\r\n", &format!("\r\n{framing}\r\n\r\n"));
        let mut writer = connection.socket().try_clone().unwrap();
        let sending = thread::spawn(move || {
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(sent.as_bytes())).unwrap();
        });
        assert!(connection.receive(false).unwrap().text() == body, "{framing}");
        sending.join().unwrap();
    }
}

/// What the other end of a connection has got so far, told after each read.
type Arrived = Receiver<usize>;

const FAST: usize = 8 << 20;
const PAUSES: usize = 5;
/// So much that what comes behind each pause is not the end.
const LENGTH: usize = PAUSES * (FAST + 1) + 20_000_000;

/// Sends a body that comes fast, pauses until all of it has arrived, goes on with one byte, and pauses again.
fn send_with_pauses(to: &mut impl Write, arrived: &Arrived) {
    let fast = vec![b'x'; FAST];
    let mut sent = 0;
    for _ in 0..PAUSES {
        for piece in [&fast[..], b"y"] {
            to.write_all(piece).unwrap();
            sent += piece.len();
            while arrived.recv_timeout(Duration::from_secs(20)).expect("what was sent arrives") < sent {}
        }
    }
    to.write_all(&vec![b'x'; LENGTH - sent]).unwrap();
}

fn receive_and_tell(from: &mut impl Read, tell: &Sender<usize>) {
    let (mut total, mut piece) = (0, vec![0; 65536]);
    while total < LENGTH {
        let n = from.read(&mut piece).unwrap();
        assert!(n > 0, "cut after {total}");
        total += n;
        let _ = tell.send(total);
    }
    assert_eq!(total, LENGTH);
}

/// Writes chunks as docker does: each in three parts, which arrive one by one.
struct Chunks<'c, W: Write>(&'c mut W);

impl<W: Write> Write for Chunks<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(32768)];
        let (first, rest) = data.split_at(data.len().min(4090));
        self.0.write_all(&[format!("{:x}\r\n", data.len()).as_bytes(), first].concat())?;
        self.0.write_all(rest)?;
        self.0.write_all(b"\r\n")?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Chunks<'_, W> {
    fn end(self) {
        self.0.write_all(b"0\r\n\r\n").unwrap();
    }
}

/// Reads what chunks hold.
struct Unchunked<'c> {
    from: BufReader<&'c TcpStream>,
    left: usize,
}

impl<'c> Unchunked<'c> {
    fn new(from: &'c TcpStream) -> Self {
        Self { from: BufReader::new(from), left: 0 }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n").expect("a whole line").to_owned()
    }

    fn end(mut self) {
        assert_eq!([self.line(), self.line()], ["0", ""]);
        assert_eq!(self.from.buffer(), b"");
    }
}

impl Read for Unchunked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.left = usize::from_str_radix(&self.line(), 16).expect("a size");
        }
        let most = buffer.len().min(self.left);
        let n = self.from.read(&mut buffer[..most])?;
        self.left -= n;
        if self.left == 0 {
            assert_eq!(self.line(), "");
        }
        Ok(n)
    }
}

/// Each of its connections takes many requests: a GET's body pauses, a PUT's is told of as it arrives, and a POST does both
/// in chunks; a PATCH's chunks are told of.
fn pausing(arrived: Arrived, tell: Sender<usize>) -> Raw {
    let (arrived, tell) = (Mutex::new(arrived), Mutex::new(tell));
    Raw::start(move |_, mut stream| {
        loop {
            let head = String::from_utf8(read_head(&mut stream)).unwrap();
            match head.split(' ').next() {
                Some("GET") => {
                    say(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
                    send_with_pauses(&mut stream, &arrived.lock().unwrap());
                }
                Some("PUT") => {
                    receive_and_tell(&mut stream, &tell.lock().unwrap());
                    say(&mut stream, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
                }
                Some("POST") => {
                    let mut body = Unchunked::new(&stream);
                    receive_and_tell(&mut body, &tell.lock().unwrap());
                    body.end();
                    say(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    let mut body = Chunks(&mut stream);
                    send_with_pauses(&mut body, &arrived.lock().unwrap());
                    body.end();
                }
                Some("PATCH") => {
                    let mut body = Unchunked::new(&stream);
                    receive_and_tell(&mut body, &tell.lock().unwrap());
                    body.end();
                    say(&mut stream, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n");
                }
                Some("HEAD") => say(&mut stream, "HTTP/1.1 204 No Content\r\n\r\n"),
                _ => return,
            }
        }
    })
}

/// A fast body is gathered; when it pauses, what has come goes on, to the last byte, and so do the short heads that follow on
/// the same two connections.
fn what_came_of_a_body_that_pauses_is_not_held_back(program: &Path) {
    let ((down, came_down), (up, came_up)) = (channel(), channel());
    let upstream = pausing(came_down, up);
    let front = front_of(program, &upstream.url(), "http");
    let at_start = upstream.connections();
    let mut client = TcpStream::connect(front.gate.addr()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for _ in 0..2 {
        say(&mut client, &ask("GET", "/", "1.1"));
        read_head(&mut client);
        receive_and_tell(&mut client, &down);
        let with = |method, field: &str| ask(method, "/", "1.1").replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
        let (short, put) = (ask("HEAD", "/", "1.1"), with("PUT", &format!("Content-Length: {LENGTH}")));
        let post = with("POST", "Transfer-Encoding: chunked");
        for (request, status) in [(&short, "204"), (&put, "201"), (&short, "204"), (&post, "200"), (&short, "204")] {
            say(&mut client, request);
            if status == "201" {
                send_with_pauses(&mut client, &came_up);
            } else if status == "200" {
                let mut body = Chunks(&mut client);
                send_with_pauses(&mut body, &came_up);
                body.end();
            }
            let head = String::from_utf8(read_head(&mut client)).unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}");
            if status == "200" {
                let mut body = Unchunked::new(&client);
                receive_and_tell(&mut body, &down);
                body.end();
            }
        }
    }
    assert_eq!(upstream.connections() - at_start, 1);
    let (wanted, in_chunks) = (4 * LENGTH as u64, 2 * LENGTH as u64);
    let (copied, spliced) = front.moved_at_least(wanted);
    assert!(copied + spliced == wanted && copied <= in_chunks + 2 * 16_384, "copied {copied}, spliced {spliced}");
}

#[test]
fn on_io_uring_what_came_of_a_body_that_pauses_is_not_held_back() {
    what_came_of_a_body_that_pauses_is_not_held_back(program());
}

#[test]
fn on_epoll_what_came_of_a_body_that_pauses_is_not_held_back() {
    if !misses(&[PYTHON]) {
        let dir = scratch("bodies").unwrap();
        what_came_of_a_body_that_pauses_is_not_held_back(&refused("ring", dir.path()));
    }
}

#[test]
fn what_came_of_chunks_over_tls_that_pause_is_not_held_back() {
    let dir = scratch("bodies").unwrap();
    let ca = Authority::create(dir.path(), "ca").unwrap();
    let identity = ca.issue("gate", &["localhost"]).unwrap();
    let ((_, nothing), (up, came_up)) = (channel(), channel());
    let upstream = pausing(nothing, up);
    let serve = Serve::new(program()).unwrap().tls(&identity).flag("--backend", upstream.url()).flag("--kind", "http");
    let gate = serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap();
    let mut client = Client::new(&ca, None).connect(gate.addr()).unwrap();
    for _ in 0..2 {
        say(&mut client, &ask("PATCH", "/", "1.1").replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n"));
        let mut body = Chunks(&mut client);
        send_with_pauses(&mut body, &came_up);
        body.end();
        let head = String::from_utf8(read_head(&mut client)).unwrap();
        assert!(head.starts_with("HTTP/1.1 202 "), "{head:?}");
    }
}

#[test]
fn where_no_pipe_is_to_be_had_bodies_are_copied() {
    const SIZE: u64 = 5_000_000;
    let upstream = Stub::start(|request| match request.target.as_str() {
        "/small" => Reply::text(200, "small"),
        _ => Reply::zeros(SIZE),
    });
    let upstream = upstream.unwrap();
    let front = front(&upstream.url(), "http");
    let mut connection = Connection::open(front.gate.addr()).unwrap();
    assert_eq!(connection.exchange(ask("GET", "/small", "1.1")).unwrap().text(), "small");
    // From here on it gets no further descriptor; both connections go on.
    let pid = front.gate.pid().to_string();
    Cmd::new("prlimit").args(["--pid", &pid, "--nofile=1:"]).run().unwrap();
    assert_eq!(connection.exchange(ask("GET", "/", "1.1")).unwrap().body.len() as u64, SIZE);
    Cmd::new("prlimit").args(["--pid", &pid, "--nofile=1024:"]).run().unwrap();
    assert_eq!(front.moved_at_least(SIZE + 5), (SIZE + 5, 0), "copied, not spliced");
    assert_eq!(connection.exchange(ask("GET", "/", "1.1")).unwrap().body.len() as u64, SIZE);
    assert!(front.moved_at_least(2 * SIZE + 5).1 > 0, "spliced again");
}

#[test]
fn a_slow_reader_holds_up_the_sender_and_not_the_gate() {
    let (progress, sent) = channel();
    let progress = Mutex::new(progress);
    let upstream = Raw::start(move |_, mut stream| {
        if read_head(&mut stream).is_empty() {
            return;
        }
        say(&mut stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
        let mut total = 0_u64;
        while stream.write_all(chunk.as_bytes()).is_ok() {
            total += 1 << 20;
        }
        let _ = progress.lock().unwrap().send(total);
    });
    let front = front(&upstream.url(), "http");
    let before = front.gate.usage().unwrap().rss;
    let mut stalled: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(front.gate.addr()).unwrap();
            stream.write_all(ask("GET", "/", "1.1").as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in &stalled {
        // The upstream could not send on for two seconds: everything between it and the client is full.
        let total = sent.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(total < 64 << 20, "{total} bytes for a client that reads none");
    }
    let grown = front.gate.usage().unwrap().rss.saturating_sub(before);
    assert!(grown < 32 << 20, "20 stalled clients cost {grown} bytes");
    let _ = stalled.pop().unwrap().read(&mut [0; 10]).unwrap();
}
