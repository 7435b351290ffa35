//! Upstreams and auth backends behind TLS: trusted only with a certificate that the given roots vouch for. The upstream here
//! is a second gate, which lets anybody pull.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::support::hello::{Reply, Stub};
use crate::support::http::{basic, get};
use crate::support::pki::{Authority, Identity};
use crate::support::raw::read_all;
use crate::support::{Gate, Serve, free_address, htpasswd, program, scratch, secure};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
const TARGET: &str = "/v2/team/app/tags/list";
const RULE: &str = "[[rule]]\nwho = [\"anonymous\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]\n";

/// A CA in a directory of its own.
fn authority(dir: &Path, name: &str) -> Authority {
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    Authority::create(&dir, name).unwrap()
}

/// A gate on TLS that lets anybody pull from `backend`.
fn open_gate(dir: &Path, identity: &Identity, backend: &Stub) -> Gate {
    let config = dir.join("open.toml");
    fs::write(&config, RULE).unwrap();
    let serve = Serve::new(program()).unwrap().tls(identity).flag("--config", &config);
    serve.flag("--backend", backend.url()).flag("--htpasswd", htpasswd(dir, LINE)).start().unwrap()
}

/// A gate with a user, before `https://localhost:PORT` checked against `roots`.
fn inner(dir: &Path, upstream: &Gate, roots: &Path) -> Gate {
    watched(dir, upstream, roots, None)
}

/// The same with an admin listener.
fn watched(dir: &Path, upstream: &Gate, roots: &Path, admin: Option<SocketAddr>) -> Gate {
    before(dir, upstream.addr().port(), "registry", roots, admin)
}

/// The same before anything that listens on a port.
fn before(dir: &Path, port: u16, kind: &str, roots: &Path, admin: Option<SocketAddr>) -> Gate {
    let config = dir.join("inner.toml");
    fs::write(&config, format!("upstream_ca = {roots:?}\n")).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--kind", kind);
    let url = format!("https://localhost:{port}");
    let serve = admin.into_iter().fold(serve, Serve::admin);
    serve.flag("--backend", url).flag("--htpasswd", htpasswd(dir, LINE)).start().unwrap()
}

#[test]
fn an_encrypted_connection_is_kept_and_used_again() {
    let dir = scratch("https-kept").unwrap();
    let ca = authority(dir.path(), "right");
    let identity = ca.issue("upstream", &["localhost"]).unwrap();
    let registry = Stub::hello().unwrap();
    let upstream = open_gate(dir.path(), &identity, &registry);
    let admin = free_address().unwrap();
    let gate = watched(dir.path(), &upstream, &ca.cert, Some(admin));
    for _ in 0..10 {
        assert_eq!(get(gate.addr(), TARGET, Some(CREDS)).unwrap().status, 200);
    }
    let metrics = get(admin, "/metrics", None).unwrap().text();
    let opened =
        metrics.lines().find(|line| line.starts_with("portcullis_upstream_connections_opened_total{")).unwrap();
    let opened: usize = opened.rsplit(' ').next().unwrap().parse().unwrap();
    // One for each worker at the most.
    assert!(opened <= std::thread::available_parallelism().unwrap().get(), "{opened}");
}

#[test]
fn an_upstream_is_believed_only_with_the_right_certificate() {
    let dir = scratch("https-upstream").unwrap();
    let ca = authority(dir.path(), "right");
    let identity = ca.issue("upstream", &["localhost"]).unwrap();
    let registry = Stub::start(|_| Reply::text(200, "x".repeat(1_000_000))).unwrap();
    let upstream = open_gate(dir.path(), &identity, &registry);
    let gate = inner(dir.path(), &upstream, &ca.cert);
    for _ in 0..3 {
        let got = get(gate.addr(), TARGET, Some(CREDS)).unwrap();
        assert_eq!((got.status, got.body.len()), (200, 1_000_000), "{}", gate.log());
    }
    let seen = registry.seen().len();

    let other = authority(dir.path(), "wrong");
    let gate = inner(dir.path(), &upstream, &other.cert);
    assert_eq!(get(gate.addr(), TARGET, Some(CREDS)).unwrap().status, 502);
    assert!(gate.says("certificate"), "{}", gate.log());

    let elsewhere = ca.issue("elsewhere", &["elsewhere.example"]).unwrap();
    let upstream = open_gate(dir.path(), &elsewhere, &registry);
    let gate = inner(dir.path(), &upstream, &ca.cert);
    assert_eq!(get(gate.addr(), TARGET, Some(CREDS)).unwrap().status, 502, "a certificate for another name");
    assert_eq!(registry.seen().len(), seen, "nothing of it reached the registry");
}

#[test]
fn an_auth_backend_behind_tls_is_checked_too() {
    let dir = scratch("https-backend").unwrap();
    let ca = authority(dir.path(), "right");
    let identity = ca.issue("backend", &["localhost"]).unwrap();
    let (registry, answer) = (Stub::hello().unwrap(), Stub::start(|_| Reply::text(200, "yes")).unwrap());
    let backend = open_gate(dir.path(), &identity, &answer);
    let other = authority(dir.path(), "wrong");
    for (roots, status) in [(&ca.cert, 200), (&other.cert, 503)] {
        let config = dir.path().join("gate.toml");
        fs::write(&config, format!("upstream_ca = {roots:?}\n")).unwrap();
        let url = format!("https://localhost:{}{TARGET}", backend.addr().port());
        let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", registry.url());
        let gate = serve.flag("--auth-backend", url).start().unwrap();
        assert_eq!(get(gate.addr(), TARGET, Some(CREDS)).unwrap().status, status, "{}", gate.log());
    }
    assert_eq!(registry.seen().len(), 1);
}

/// RFC 9112, section 9.8: without a close_notify the end of a connection may be an attacker's doing.
#[test]
fn an_end_that_was_not_announced_is_a_cut() {
    let dir = scratch("https-end").unwrap();
    let ca = authority(dir.path(), "right");
    let identity = ca.issue("upstream", &["localhost"]).unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {}\r\n\r\n", basic(CREDS));
    for (fields, announced, whole) in [
        ("", true, true),
        ("", false, false),
        ("Content-Length: 4\r\n", false, true),
        ("Content-Length: 5\r\n", true, false),
    ] {
        let text: &str = format!("HTTP/1.1 200 OK\r\n{fields}Connection: close\r\n\r\nbody").leak();
        let port = secure::answer(&identity, text, announced);
        let gate = before(dir.path(), port, "http", &ca.cert, None);
        let mut stream = TcpStream::connect(gate.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let (got, _) = read_all(&mut stream);
        let got = String::from_utf8(got).unwrap();
        let (head, body) = got.split_once("\r\n\r\n").unwrap();
        let complete =
            if head.contains("Content-Length: 4") { body == "body" } else { body == "4\r\nbody\r\n0\r\n\r\n" };
        assert!(got.starts_with("HTTP/1.1 200 ") && complete == whole, "{fields:?} {announced}: {got:?}");
        assert_eq!(gate.says("reading the body: "), !whole, "{fields:?} {announced}: {}", gate.log());
    }
}
