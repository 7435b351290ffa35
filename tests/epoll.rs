//! The same gate where io_uring is refused, as in a container: everything that waits for a socket, once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::dist::{artefact, cannot};
use crate::support::docker::Docker;
use crate::support::http::{Connection, basic};
use crate::support::packages::{CONTAINERD, DOCKER, DOCKERD, PYTHON};
use crate::support::raw::{Raw, read_all, read_head, read_until, say};
use crate::support::{
    Gate, Serve, den::Den, free_address, hello::Stub, htpasswd, metric, misses, refused, root, scratch, skips, wait_for,
};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
/// The image's own.
const ADMIN: &str = "127.0.0.1:9180";
const SIZE: usize = 7_000_001;

/// Answers by target: a body by length, in chunks, or to the end of the connection; or an echo through a tunnel.
fn service() -> Raw {
    Raw::start(|_, mut stream| {
        loop {
            let head = String::from_utf8_lossy(&read_head(&mut stream)).into_owned();
            let body = "0123456".repeat(SIZE / 7 + 1);
            let body = &body[..SIZE];
            match head.split(' ').nth(1) {
                Some("/length") => {
                    say(&mut stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n{body}"));
                }
                Some("/chunks") => {
                    let fields = "Transfer-Encoding: chunked";
                    say(&mut stream, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{SIZE:x}\r\n{body}\r\n0\r\n\r\n"));
                }
                Some("/close") => return say(&mut stream, &format!("HTTP/1.1 200 OK\r\n\r\n{body}")),
                Some("/upload") => {
                    let mut got = vec![0; SIZE];
                    let whole = stream.read_exact(&mut got).is_ok() && got == body.as_bytes();
                    let status = if whole { "200 OK" } else { "400 No" };
                    say(&mut stream, &format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
                }
                Some("/tunnel") => {
                    say(&mut stream, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
                    let mut piece = [0; 65536];
                    while let Ok(n @ 1..) = stream.read(&mut piece) {
                        stream.write_all(&piece[..n]).unwrap();
                    }
                    return;
                }
                _ => return,
            }
        }
    })
}

fn gate(backend: &str) -> Gate {
    let dir = scratch("epoll").unwrap();
    let serve = Serve::new(&refused("ring", dir.path())).unwrap().flag("--backend", backend).flag("--kind", "http");
    let admin = free_address().unwrap();
    let gate = serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).admin(admin).start().unwrap();
    assert!(gate.says("workers on epoll"), "{}", gate.log());
    assert_eq!(metric(admin, "portcullis_driver_info{driver=\"epoll\"}"), 1);
    gate
}

fn ask(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n{fields}\r\n", basic(CREDS))
}

#[test]
fn on_epoll_bodies_tunnels_and_drains_are_the_same() {
    if misses(&[PYTHON]) {
        return;
    }
    let service = service();
    let gate = gate(&service.url());
    let addr = gate.addr();
    let body = &"0123456".repeat(SIZE / 7 + 1)[..SIZE];
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut connection = Connection::open(addr).unwrap();
                for target in ["/length", "/chunks", "/close", "/length"] {
                    assert!(connection.exchange(ask("GET", target, "")).unwrap().text() == body, "{target}");
                }
                let put = ask("PUT", "/upload", &format!("Content-Length: {SIZE}\r\n"));
                assert_eq!(connection.exchange([put.as_str(), body].concat()).unwrap().status, 200);
            });
        }
    });
    let mut tunnel = TcpStream::connect(addr).unwrap();
    tunnel.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    tunnel.write_all(ask("GET", "/tunnel", "Connection: Upgrade\r\nUpgrade: echo\r\n").as_bytes()).unwrap();
    read_until(&mut tunnel, b"\r\n\r\n");
    for n in 0..50 {
        // One after the other: each must wake up both sides.
        let line = format!("line {n}\n");
        tunnel.write_all(line.as_bytes()).unwrap();
        assert_eq!(read_until(&mut tunnel, b"\n"), line.as_bytes());
    }
    tunnel.shutdown(Shutdown::Write).unwrap();
    assert!(read_all(&mut tunnel).0.is_empty());
    let mut idle = Connection::open(addr).unwrap();
    assert_eq!(gate.stop(Duration::from_secs(30)).unwrap().code(), Some(0));
    assert!(idle.is_closed());
}

/// docker's default profile refuses io_uring since version 25; ours is that profile, and io_uring.
#[test]
fn dockers_profile_decides_and_the_gate_says_what_runs() {
    let image = artefact(".oci.tar");
    if cannot(&[DOCKERD, DOCKER, CONTAINERD], image.as_ref()) {
        return;
    }
    if let Some(reason) = Den::why_not() {
        return skips::skip(&reason);
    }
    let den = Den::start().unwrap();
    let docker = Docker::start(&den).unwrap();
    let run = |words: &[&str]| docker.client().args(words).run().unwrap();
    let loaded = run(&["load", "--input", image.unwrap().to_str().unwrap()]);
    let name = loaded.trim().rsplit(' ').next().unwrap().to_owned();

    let ours = root().join("xtask/packaging/seccomp-io_uring.json");
    let mut profile: serde_json::Value = serde_json::from_slice(&std::fs::read(&ours).unwrap()).unwrap();
    let last = profile["syscalls"].as_array_mut().unwrap().pop().unwrap();
    assert!(last.to_string().contains("io_uring_setup"), "{last}");
    let dir = scratch("profile").unwrap();
    let default = dir.path().join("default.json");
    std::fs::write(&default, profile.to_string()).unwrap();

    let hello = den.within(|| Stub::hello().unwrap()).unwrap();
    for (profile, driver) in [(&default, "epoll"), (&ours, "io_uring")] {
        let option = format!("seccomp={}", profile.display());
        let (backend, auth) = (format!("BACKEND={}", hello.url()), format!("AUTH_BACKEND={}", hello.url()));
        let words =
            ["run", "--detach", "--network", "host", "--security-opt", &option, "--env", &backend, "--env", &auth];
        let container = run(&[&words[..], &[&name]].concat()).trim().to_owned();
        let log = || docker.client().args(["logs", &container]).output().map(|output| output.everything()).unwrap();
        wait_for("the container is ready", || log().contains("portcullis: ready: "));
        assert!(log().contains(&format!("workers on {driver}")), "{}", log());
        assert!(log().contains("portcullis: confined: "), "{}", log());
        let told =
            den.within(|| metric(ADMIN.parse().unwrap(), &format!("portcullis_driver_info{{driver=\"{driver}\"}}")));
        assert_eq!(told.unwrap(), 1);
        run(&["rm", "--force", &container]);
    }
}
