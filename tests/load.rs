//! Many clients, slow clients and clients that stay: the gate holds, and serves the others.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::cmd::Cmd;
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::raw::{Raw, read_all, read_head, say};
use crate::support::{Gate, Serve, free_address, htpasswd, is_root, program, scratch, skips};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn serve(backend: &str, limits: &str) -> Serve {
    serve_by(program(), backend, limits)
}

fn serve_by(program: &Path, backend: &str, limits: &str) -> Serve {
    let dir = scratch("load").unwrap();
    let config = dir.path().join("gate.toml");
    std::fs::write(&config, format!("[limits]\n{limits}\n")).unwrap();
    let serve = Serve::new(program).unwrap().flag("--config", &config).flag("--backend", backend);
    let serve = serve.flag("--kind", "http").flag("--htpasswd", htpasswd(dir.path(), LINE));
    // The files are read at the start, which is over when this returns.
    std::mem::forget(dir);
    serve
}

fn ask(method: &str, fields: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n{fields}\r\n", basic(CREDS))
}

/// A connection from a loopback address of its own choice.
fn from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    // Not for the gates that other tests start meanwhile: those have to do with the files that they may open.
    let fd = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&fd, &SocketAddrV4::new(source, 0)).unwrap();
    connect(&fd, &to).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let asked = stream.write_all(ask("GET", "").as_bytes()).is_ok();
    asked
        && read_head(stream).starts_with(b"HTTP/1.1 200 ")
        && "Hello world".bytes().all(|wanted| stream.read_exact(&mut byte).is_ok() && byte[0] == wanted)
}

/// Waits for what has to come.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}

fn metric(admin: SocketAddr, name: &str) -> u64 {
    let text = get(admin, "/metrics", None).unwrap().text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
}

/// Makes room for so many open files and some thousands more, for the tests beside this one.
fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(20_000, |most| most.max(files + 4_000));
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum.map(|_| most) }).is_ok()
}

#[test]
fn ten_thousand_idle_connections_cost_less_than_40_mib() {
    const MANY: usize = 10_000;
    if !may_open(MANY as u64) {
        return skips::skip("10,000 connections need more open files than this user may have");
    }
    let hello = Stub::hello().unwrap();
    let gate = serve(&hello.url(), "connections = 11000\nidle_timeout = \"10m\"").start().unwrap();
    let empty = gate.usage().unwrap().rss;
    let mut held: Vec<TcpStream> = Vec::with_capacity(MANY);
    for n in 0..MANY {
        // Ten sources: no single one may have so many, and none has so many ports.
        let mut stream = from(Ipv4Addr::new(127, 0, 1, (n % 10) as u8 + 1), gate.addr());
        assert!(exchange(&mut stream), "connection {n}");
        held.push(stream);
    }
    let rss = gate.usage().unwrap().rss;
    eprintln!("{MANY} idle connections: {rss} bytes in all, {} each", (rss - empty) / MANY as u64);
    assert!(rss < 40 << 20, "{rss} bytes, {empty} of them without a connection");
    for n in [0, MANY / 2, MANY - 1] {
        assert!(exchange(&mut held[n]), "connection {n} afterwards");
    }
}

/// So many clients of one worker ask at once, twice: how many connections to the upstream the second time took.
fn opened_by_a_second_burst(clients: usize, program: &Path) -> usize {
    // It answers once all have asked: each request needs a connection of its own.
    let all_have_asked = Barrier::new(clients);
    let upstream = Raw::start(move |_, mut stream| {
        while !read_head(&mut stream).is_empty() {
            all_have_asked.wait();
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nHello world");
        }
    });
    let gate = serve_by(program, &upstream.url(), "").flag("--workers", "1").start().unwrap();
    let mut held: Vec<TcpStream> = (0..clients).map(|_| from(Ipv4Addr::LOCALHOST, gate.addr())).collect();
    let [first, both] = ["first", "second"].map(|burst| {
        for stream in &mut held {
            stream.write_all(ask("GET", "").as_bytes()).unwrap();
        }
        for stream in &mut held {
            let (mut body, head) = ([0; 11], read_head(stream));
            assert!(head.starts_with(b"HTTP/1.1 200 "), "{burst}: {}", gate.log());
            stream.read_exact(&mut body).unwrap();
        }
        upstream.connections()
    });
    assert!(first >= clients, "{first}");
    both - first
}

#[test]
fn connections_of_a_burst_are_kept_for_the_next_one() {
    const MANY: usize = 1_100;
    if !may_open(2 * MANY as u64) {
        return skips::skip("1,100 connections on either side need more open files than this user may have");
    }
    assert_eq!(opened_by_a_second_burst(MANY, program()), 0);
}

#[test]
fn idle_connections_leave_files_to_those_in_use() {
    // On both sides, with what a gate always has open, these are nearly all of its files.
    const MANY: usize = 995;
    if !may_open(2 * MANY as u64) {
        return skips::skip("995 connections on either side need more open files than this user may have");
    }
    let dir = scratch("files").unwrap();
    let limited = dir.path().join("limited");
    let script = format!("#!/bin/sh\nulimit -n 2048 && exec {:?} \"$@\"\n", program());
    std::fs::write(&limited, script).unwrap();
    std::fs::set_permissions(&limited, Permissions::from_mode(0o755)).unwrap();
    let opened = opened_by_a_second_burst(MANY, &limited);
    assert!((1..MANY / 10).contains(&opened), "{opened}");
}

#[test]
fn one_peer_cannot_take_the_places_of_all() {
    let hello = Stub::hello().unwrap();
    let admin = free_address().unwrap();
    let gate = serve(&hello.url(), "connections_per_peer = 5").admin(admin).start().unwrap();
    let (greedy, modest) = (Ipv4Addr::new(127, 0, 2, 1), Ipv4Addr::new(127, 0, 2, 2));
    let mut held: Vec<TcpStream> = (0..5).map(|_| from(greedy, gate.addr())).collect();
    assert!(held.iter_mut().all(exchange));
    for _ in 0..3 {
        let mut sixth = from(greedy, gate.addr());
        assert!(!exchange(&mut sixth));
    }
    assert_eq!(metric(admin, "portcullis_connections_refused_total{limit=\"connections_per_peer\"}"), 3);
    assert!(exchange(&mut from(modest, gate.addr())));
    held.pop();
    until("the place is free again", || exchange(&mut from(greedy, gate.addr())));
}

#[test]
fn above_the_limit_for_all_connections_are_closed_at_once() {
    let hello = Stub::hello().unwrap();
    let admin = free_address().unwrap();
    let gate = serve(&hello.url(), "connections = 5").admin(admin).start().unwrap();
    let mut held: Vec<TcpStream> = Vec::new();
    until("five places", || {
        let mut stream = from(Ipv4Addr::LOCALHOST, gate.addr());
        let serves = exchange(&mut stream);
        held.extend(serves.then_some(stream));
        held.len() == 5
    });
    assert!(!exchange(&mut from(Ipv4Addr::LOCALHOST, gate.addr())));
    assert!(metric(admin, "portcullis_connections_refused_total{limit=\"connections\"}") >= 1);
    drop(held);
    until("the places are free again", || exchange(&mut from(Ipv4Addr::LOCALHOST, gate.addr())));
}

#[test]
fn out_of_files_it_waits_without_spinning_and_serves_again() {
    if !is_root() {
        return skips::skip("needs root, to see how many files a gate has open");
    }
    let hello = Stub::hello().unwrap();
    let gate = serve(&hello.url(), "").start().unwrap();
    let pid = gate.pid().to_string();
    let mut kept = from(Ipv4Addr::LOCALHOST, gate.addr());
    assert!(exchange(&mut kept));
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    Cmd::new("prlimit").args(["--pid", &pid, &format!("--nofile={}:", open + 20)]).run().unwrap();
    let mut crowd: Vec<TcpStream> = (0..100).map(|_| from(Ipv4Addr::LOCALHOST, gate.addr())).collect();
    until("no descriptor is left", || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() >= open + 19);
    assert!(exchange(&mut kept), "who is in is served");
    let before = gate.usage().unwrap().cpu;
    thread::sleep(Duration::from_secs(2));
    let burnt = gate.usage().unwrap().cpu - before;
    // A worker that spins takes all of a core; two that look 20 times a second take next to nothing.
    assert!(burnt < 1.0, "{burnt} s of processor time in 2 s with nothing to do");
    crowd.truncate(90);
    drop(crowd.drain(..80));
    assert!(crowd.iter_mut().all(exchange), "those who waited in the queue come in");
    assert!(exchange(&mut from(Ipv4Addr::LOCALHOST, gate.addr())));
}

#[test]
fn a_thousand_slow_heads_disturb_nobody_and_end() {
    let hello = Stub::hello().unwrap();
    let gate = serve(&hello.url(), "head_timeout = \"3s\"").start().unwrap();
    let mut slow: Vec<TcpStream> = (0..1000)
        .map(|n| {
            let mut stream = from(Ipv4Addr::new(127, 0, 3, (n % 4) as u8 + 1), gate.addr());
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").unwrap();
            stream
        })
        .collect();
    let mut ended = false;
    until("every slow head is given up", || {
        // One more field now and then: that wins no time.
        for stream in &mut slow {
            let _ = stream.write_all(b"X: y\r\n");
        }
        assert_eq!(get(gate.addr(), "/", Some(CREDS)).unwrap().text(), "Hello world");
        ended = gate.log().matches("\"status\":408").count() == slow.len();
        ended
    });
    let (got, _) = read_all(&mut slow[0]);
    assert!(got.starts_with(b"HTTP/1.1 408 ") || got.is_empty(), "{:?}", String::from_utf8_lossy(&got));
}

/// Who is too slow is cut, in each direction; who keeps the rate is not.
#[test]
fn a_body_must_keep_up_in_both_directions() {
    let upstream = Stub::start(|request| match request.method.as_str() {
        "GET" => Reply::zeros(300_000_000),
        _ => Reply::text(200, "thanks"),
    });
    let upstream = upstream.unwrap();
    let gate = serve(&upstream.url(), "min_rate = \"1KiB\"\nrate_window = \"1s\"").start().unwrap();
    let mut stalled = from(Ipv4Addr::LOCALHOST, gate.addr());
    stalled.write_all(ask("GET", "").as_bytes()).unwrap();
    let mut upload = from(Ipv4Addr::LOCALHOST, gate.addr());
    upload.write_all(ask("PUT", "Content-Length: 1000000\r\n").as_bytes()).unwrap();
    // 50 KiB a second in small steps.
    let mut steady = from(Ipv4Addr::LOCALHOST, gate.addr());
    steady.write_all(ask("PUT", "Content-Length: 204800\r\n").as_bytes()).unwrap();
    for _ in 0..40 {
        steady.write_all(&[0; 5120]).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    assert!(read_head(&mut steady).starts_with(b"HTTP/1.1 200 "), "{}", gate.log());
    // The log tells both before anybody reads on.
    assert!(gate.says("the request body came too slowly"), "{}", gate.log());
    assert!(read_all(&mut upload).0.is_empty(), "no answer to half a request");
    until("the stalled download is cut", || gate.log().contains("\"method\":\"GET\""));
    let mut total = 0;
    let mut piece = vec![0; 1 << 20];
    let end = loop {
        match stalled.read(&mut piece) {
            Ok(0) => break "the end",
            Ok(n) => total += n,
            Err(_) => break "a reset",
        }
    };
    assert!(total < 300_000_000, "{total} bytes, then {end}");
}

#[test]
fn a_slow_service_holds_up_the_uploader_and_not_the_gate() {
    let (done, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Raw::start(move |_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            // Open, and not read from, until the end of the test.
            let _ = wait.lock().unwrap().recv();
        }
    });
    for framing in ["Content-Length: 10000000000", "Transfer-Encoding: chunked"] {
        let gate = serve(&upstream.url(), "").start().unwrap();
        let before = gate.usage().unwrap().rss;
        let mut stream = from(Ipv4Addr::LOCALHOST, gate.addr());
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(ask("PUT", &format!("{framing}\r\n")).as_bytes()).unwrap();
        let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
        let mut sent = 0_u64;
        while stream.write_all(chunk.as_bytes()).is_ok() {
            sent += 1 << 20;
            assert!(sent < 256 << 20, "{framing}: it takes everything");
        }
        let grown = gate.usage().unwrap().rss.saturating_sub(before);
        assert!(grown < 16 << 20, "{framing}: {grown} bytes for an upload that nobody reads");
        let _ = stream.shutdown(Shutdown::Both);
    }
    drop(done);
}

/// An upstream whose answer to a GET never ends, and who tells when it has begun.
fn endless() -> Raw {
    Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx");
            while stream.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(50));
            }
        }
    })
}

fn begun(gate: &Gate) -> TcpStream {
    let mut stream = from(Ipv4Addr::LOCALHOST, gate.addr());
    stream.write_all(ask("GET", "").as_bytes()).unwrap();
    assert!(read_head(&mut stream).starts_with(b"HTTP/1.1 200 "));
    stream
}

#[test]
fn a_drain_ends_in_time_whatever_still_runs() {
    let upstream = endless();
    let gate = serve(&upstream.url(), "drain_timeout = \"1s\"").start().unwrap();
    let mut running = begun(&gate);
    assert_eq!(gate.stop(PATIENCE).unwrap().code(), Some(0));
    let (got, _) = read_all(&mut running);
    assert!(got.len() < 1_000_000, "cut, and seen to be cut by its length");
}

#[test]
fn a_second_word_to_stop_is_obeyed_at_once() {
    let upstream = endless();
    let gate = serve(&upstream.url(), "drain_timeout = \"10m\"").start().unwrap();
    let _running = begun(&gate);
    let pid = gate.pid().to_string();
    Cmd::new("kill").args(["-TERM", &pid]).run().unwrap();
    assert!(gate.says("stopping: finishing what runs"), "{}", gate.log());
    until("nobody new is let in", || TcpStream::connect(gate.addr()).is_err());
    let status = gate.stop(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn an_accepted_client_without_a_request_does_not_hold_up_a_drain() {
    let hello = Stub::hello().unwrap();
    let gate = serve(&hello.url(), "drain_timeout = \"10m\"").start().unwrap();
    let mut idle = from(Ipv4Addr::LOCALHOST, gate.addr());
    let mut kept = Connection::open(gate.addr()).unwrap();
    assert_eq!(kept.exchange(ask("GET", "")).unwrap().status, 200);
    let stopping = thread::spawn(move || gate.stop(PATIENCE).unwrap());
    assert!(kept.is_closed() && read_all(&mut idle).0.is_empty());
    assert_eq!(stopping.join().unwrap().code(), Some(0));
}
