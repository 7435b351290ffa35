//! The PROXY protocol at the real gate: spoken by hand, and by HAProxy.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::support::cmd::Cmd;
use crate::support::hello::{Reply, Stub};
use crate::support::http::basic;
use crate::support::packages::{CURL, HAPROXY, OPENSSL};
use crate::support::pki::Authority;
use crate::support::{Gate, Serve, Service, free_address, htpasswd, metric, misses, program, scratch, wait_for};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const REQUEST: &str = "GET /v2/a/tags/list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const OPEN: &str = "[[rule]]\nwho = [\"anonymous\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x12\x34\x01\xbb";
const REFUSED: &str = "portcullis_proxy_protocol_refused_total";

/// A stub that tells where the gate says the client is.
fn registry() -> Stub {
    let told = |request: &crate::support::hello::Request| {
        let fields = ["x-forwarded-for", "x-real-ip"].map(|name| request.field(name).unwrap_or("none").to_owned());
        Reply::text(200, fields.join(" "))
    };
    Stub::start(told).unwrap()
}

/// A gate whose peers of these blocks speak the protocol.
fn gate(dir: &Path, registry: &Stub, admin: SocketAddr, peers: &str, rest: &str) -> Gate {
    let config = dir.join("gate.toml");
    let listen = format!("[[listen]]\naddress = \"127.0.0.1:1\"\nproxy_protocol = [{peers}]\n");
    fs::write(&config, format!("{listen}{rest}")).unwrap();
    let serve = Serve::new(program()).unwrap().admin(admin).flag("--config", &config);
    serve.flag("--backend", registry.url()).start().unwrap()
}

fn open(gate: &Gate) -> TcpStream {
    let stream = TcpStream::connect(gate.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn answer(gate: &Gate, bytes: &[u8]) -> String {
    let mut stream = open(gate);
    let _ = stream.write_all(bytes);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    String::from_utf8_lossy(&got).into_owned()
}

#[test]
fn the_address_in_the_header_is_the_clients() {
    let dir = scratch("proxy-protocol").unwrap();
    let (registry, admin) = (registry(), free_address().unwrap());
    let gate = gate(dir.path(), &registry, admin, "\"127.0.0.0/8\", \"10.0.0.0/8\"", OPEN);
    let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n";
    let v6 = b"PROXY TCP6 2001:db8::7 ::1 4660 443\r\n";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for (header, seen) in [
        (&v1[..], "192.0.2.7 192.0.2.7"),
        (v6, "2001:db8::7 2001:db8::7"),
        (V2, "192.0.2.7 192.0.2.7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1 127.0.0.1"),
        (local, "127.0.0.1 127.0.0.1"),
    ] {
        let got = answer(&gate, &[header, REQUEST.as_bytes()].concat());
        assert!(got.starts_with("HTTP/1.1 200") && got.ends_with(seen), "{got}");
    }
    assert!(gate.says("\"peer\":\"192.0.2.7:4660\"") && gate.says("\"peer\":\"[2001:db8::7]:4660\""), "{}", gate.log());

    // One byte at a time is the same.
    let mut stream = open(&gate);
    stream.set_nodelay(true).unwrap();
    for byte in V2 {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert!(got.ends_with("192.0.2.7 192.0.2.7"), "{got}");
    assert_eq!(metric(admin, REFUSED), 0, "{}", gate.log());
}

#[test]
fn a_peer_that_has_to_speak_it_and_does_not_is_closed() {
    let dir = scratch("proxy-refused").unwrap();
    let (registry, admin) = (registry(), free_address().unwrap());
    let gate =
        gate(dir.path(), &registry, admin, "\"127.0.0.1\"", &format!("{OPEN}[limits]\nhead_timeout = \"300ms\"\n"));
    let too_long = [b"PROXY UNKNOWN ", "x".repeat(200).as_bytes(), b"\r\n", REQUEST.as_bytes()].concat();
    let twice = [V2, V2, REQUEST.as_bytes()].concat();
    let cases: [&[u8]; 5] = [
        REQUEST.as_bytes(),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 70000 443\r\n",
        &too_long,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        // Begins well, and then nothing comes.
        b"PROXY TCP4 192.0",
    ];
    for bytes in cases {
        assert_eq!(answer(&gate, bytes), "", "{:?}", String::from_utf8_lossy(bytes));
    }
    wait_for("all are counted", || metric(admin, REFUSED) == 5);
    assert!(answer(&gate, &twice).starts_with("HTTP/1.1 400"), "a second header is no request");
    assert_eq!(registry.seen().len(), 0);
    assert_eq!(gate.log().matches("has to speak").count(), 1, "{}", gate.log());
}

#[test]
fn from_others_a_header_is_not_believed() {
    let dir = scratch("proxy-others").unwrap();
    let (registry, admin) = (registry(), free_address().unwrap());
    let gate = gate(dir.path(), &registry, admin, "\"10.0.0.0/8\", \"::/0\"", OPEN);
    assert!(answer(&gate, REQUEST.as_bytes()).ends_with("127.0.0.1 127.0.0.1"));
    let got = answer(&gate, &[b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n", REQUEST.as_bytes()].concat());
    assert!(got.starts_with("HTTP/1.1 505"), "no version of HTTP that is known: {got}");
    assert!(answer(&gate, &[V2, REQUEST.as_bytes()].concat()).starts_with("HTTP/1.1 400"));
    assert_eq!((registry.seen().len(), metric(admin, REFUSED)), (1, 0));
}

#[test]
fn guesses_are_counted_by_the_clients_address() {
    let dir = scratch("proxy-throttle").unwrap();
    let (registry, admin) = (registry(), free_address().unwrap());
    let users = htpasswd(dir.path(), LINE);
    let rest = format!("[auth]\nhtpasswd = {users:?}\n[limits]\nfailed_logins = 1\nfailed_login_delay = \"60s\"\n");
    let gate = gate(dir.path(), &registry, admin, "\"127.0.0.0/8\"", &rest);
    let from = |client: &str, password: &str| {
        let authorization = basic(&format!("testuser:{password}"));
        let head =
            format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n");
        let got = answer(&gate, format!("PROXY TCP4 {client} 10.0.0.1 1 2\r\n{head}").as_bytes());
        got.get(9..12).unwrap_or_default().to_owned()
    };
    assert_eq!([from("192.0.2.1", "a"), from("192.0.2.1", "b"), from("192.0.2.1", "c")], ["401", "401", "429"]);
    assert_eq!(from("192.0.2.2", "testpassword"), "200");
}

#[test]
fn haproxy_passes_its_clients_on_before_tls() {
    if misses(&[HAPROXY, CURL, OPENSSL]) {
        return;
    }
    let dir = scratch("proxy-haproxy").unwrap();
    let (registry, admin) = (registry(), free_address().unwrap());
    let ca = Authority::create(dir.path(), "ca").unwrap();
    let identity = ca.issue("gate", &["localhost"]).unwrap();
    let tls = format!("tls = [{{ cert = {:?}, key = {:?} }}]\n{OPEN}", identity.cert, identity.key);
    let gate = gate(dir.path(), &registry, admin, "\"127.0.0.0/8\"", &tls);
    for version in ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"] {
        let front = free_address().unwrap();
        let config = dir.path().join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout connect 10s\n timeout client 30s\n timeout server 30s\n\
             listen l\n bind {front}\n server gate {} {version} check\n",
            gate.addr()
        );
        fs::write(&config, text).unwrap();
        let cmd = Cmd::new("haproxy").args(["-db", "-f"]).arg(&config);
        let mut service = Service::start("haproxy", cmd, dir.path()).unwrap();
        service.wait_listening(front).unwrap();
        let url = format!("https://localhost:{}/v2/a/tags/list", front.port());
        // Several addresses lead to this machine, so that it shows whose is passed on.
        for client in ["127.0.0.9", "127.1.2.3"] {
            let curl = Cmd::new("curl").args(["--silent", "--fail", "--interface", client, "--cacert"]).arg(&ca.cert);
            assert_eq!(curl.arg(&url).run().unwrap().trim(), format!("{client} {client}"), "{version}");
        }
    }
    assert_eq!(metric(admin, REFUSED), 0, "{}", gate.log());
}
