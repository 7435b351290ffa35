//! TLS at the real gate: what openssl, curl, skopeo and a client of our own see of it.

mod clients;
mod handshakes;
mod renewal;
mod strict;
mod testssl;
mod transfers;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use crate::support::cmd::Cmd;
use crate::support::hello::{Reply, Stub};
use crate::support::pki::{Authority, Identity, Key};
use crate::support::raw::{Raw, read_head, say};
use crate::support::secure::Client;
use crate::support::{Gate, Serve, free_address, metric, program, scratch, skopeo};

const OPEN: &str = "[[rule]]\nwho = [\"anonymous\"]\nrepositories = [\"team/**\"]\nactions = [\"pull\"]\n";
const TARGET: &str = "/v2/team/app/tags/list";

/// A CA, certificates, a registry that says the same to everybody, and where the gate's metrics are to be.
struct World {
    dir: TempDir,
    ca: Authority,
    identity: Identity,
    registry: Stub,
    admin: SocketAddr,
}

impl World {
    fn new(name: &str) -> Self {
        let dir = scratch(name).unwrap();
        let ca = authority(dir.path(), "ca");
        let identity = ca.issue("gate", &["localhost", "127.0.0.1"]).unwrap();
        let registry = Stub::start(|_| Reply::text(200, "tags")).unwrap();
        Self { dir, ca, identity, registry, admin: free_address().unwrap() }
    }

    /// A gate with this in its file; `listen` are further keys of its listener.
    fn gate(&self, listen: &str, rest: &str) -> Gate {
        let config = self.dir.path().join("gate.toml");
        let (cert, key) = (&self.identity.cert, &self.identity.key);
        let listener = format!("[[listen]]\naddress = \"127.0.0.1:1\"\ntls = [{{ cert = {cert:?}, key = {key:?} }}]\n");
        fs::write(&config, format!("{listener}{listen}\n{OPEN}{rest}\n")).unwrap();
        let serve = Serve::new(program()).unwrap().admin(self.admin).flag("--config", &config);
        serve.flag("--backend", self.registry.url()).start().unwrap()
    }

    fn metric(&self, sample: &str) -> u64 {
        metric(self.admin, sample)
    }

    /// Handshakes of a version, resumed or not.
    fn handshakes(&self, version: &str, resumed: &str) -> u64 {
        self.metric(&format!("portcullis_tls_handshakes_total{{version=\"{version}\",resumed=\"{resumed}\"}}"))
    }

    fn failures(&self, reason: &str) -> u64 {
        self.metric(&format!("portcullis_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
    }
}

/// A CA in a directory of its own.
fn authority(dir: &Path, name: &str) -> Authority {
    let dir = dir.join(name);
    fs::create_dir(&dir).unwrap();
    Authority::create(&dir, name).unwrap()
}

/// What `openssl s_client` shows, told `input` to send; the exit code says nothing.
fn s_client(addr: SocketAddr, args: &[&str], input: &str) -> String {
    let cmd = Cmd::new("openssl").args(["s_client", "-connect", &addr.to_string(), "-ign_eof"]);
    cmd.args(args).input(input).output().unwrap().everything()
}

fn request(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

#[test]
fn versions_and_what_they_may_not_do() {
    let world = World::new("tls-versions");
    let gate = world.gate("", "");
    let ca = world.ca.cert.to_str().unwrap();
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let got = s_client(gate.addr(), &[version, "-alpn", "h2,http/1.1", "-CAfile", ca], &request(TARGET));
        for part in [name, "ALPN protocol: http/1.1", "Compression: NONE", "Verify return code: 0 (ok)", "HTTP/1.1 200"]
        {
            assert!(got.contains(part), "{version}: no {part:?} in\n{got}");
        }
    }
    for old in ["-tls1", "-tls1_1"] {
        let got = s_client(gate.addr(), &[old, "-cipher", "ALL:@SECLEVEL=0"], "");
        assert!(got.contains("SSL alert number") && got.contains("Cipher is (NONE)"), "{old}:\n{got}");
    }
    for weak in ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256", "NULL", "aNULL"] {
        let got = s_client(gate.addr(), &["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")], "");
        assert!(got.contains("Cipher is (NONE)") || got.contains("no cipher match"), "{weak}:\n{got}");
    }
    assert!(world.failures("incompatible") >= 2, "{}", gate.log());
}

#[test]
fn a_client_cannot_renegotiate() {
    let world = World::new("tls-renegotiation");
    let gate = world.gate("", "");
    let cmd = Cmd::new("openssl").args(["s_client", "-connect", &gate.addr().to_string(), "-tls1_2"]);
    let got = cmd.input("R\n").output().unwrap().everything();
    assert!(got.contains("Secure Renegotiation IS supported"), "{got}");
    assert!(got.contains("no renegotiation") || got.contains("unexpected message"), "{got}");
    assert!(!got.contains("verify return:1\nRENEGOTIATING\ndepth"), "{got}");
    assert_eq!(world.handshakes("1.2", "no"), 1);
}

#[test]
fn an_end_is_said_and_a_cut_is_not() {
    let world = World::new("tls-end");
    let client = Client::new(&world.ca, None);
    let gate = world.gate("", "");
    // The client reads to the end: without a close_notify that would be an error.
    let (status, body, _) = client.get(gate.addr(), TARGET).unwrap();
    assert_eq!((status, body.as_slice()), (200, &b"tags"[..]));
    let ca = world.ca.cert.to_str().unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let got = s_client(gate.addr(), &[version, "-CAfile", ca, "-msg"], &request(TARGET));
        assert!(got.contains("close_notify") && !got.contains("unexpected eof"), "{version}\n{got}");
    }

    let short = Raw::start(|_, mut stream| {
        read_head(&mut stream);
        say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes.");
    });
    let config = world.dir.path().join("short.toml");
    fs::write(&config, OPEN).unwrap();
    let serve = Serve::new(program()).unwrap().tls(&world.identity).flag("--config", &config);
    let gate = serve.flag("--backend", short.url()).start().unwrap();
    let error = client.get(gate.addr(), TARGET).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof), "{error}");
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let world = World::new("tls-names");
    let rsa = world.ca.issue_as("rsa", &["rsa.test"], Key::Rsa2048, 30).unwrap();
    let ecdsa = world.ca.issue("ecdsa", &["ecdsa.test", "*.wild.test"]).unwrap();
    let config = world.dir.path().join("names.toml");
    fs::write(&config, OPEN).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", world.registry.url());
    let gate = serve.tls(&world.identity).tls(&rsa).tls(&ecdsa).start().unwrap();
    for (name, subject, kind) in [
        ("rsa.test", "CN = rsa", "RSA-PSS"),
        ("ecdsa.test", "CN = ecdsa", "ECDSA"),
        ("a.wild.test", "CN = ecdsa", "ECDSA"),
        ("localhost", "CN = gate", "ECDSA"),
        ("nobody.test", "CN = gate", "ECDSA"),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let got = s_client(gate.addr(), &[version, "-servername", name], &request(TARGET));
            let signed = format!("Peer signature type: {kind}");
            assert!(got.contains(&format!("subject={subject}\n")) && got.contains(&signed), "{name}:\n{got}");
        }
    }
}

#[test]
fn sessions_are_resumed_by_those_who_ask_for_it() {
    let world = World::new("tls-resumption");
    let gate = world.gate("", "");
    let session = world.dir.path().join("session");
    let session = session.to_str().unwrap();
    for (version, name) in [("-tls1_2", "1.2"), ("-tls1_3", "1.3")] {
        let got = s_client(gate.addr(), &[version, "-sess_out", session], &request(TARGET));
        assert!(got.contains("HTTP/1.1 200") && got.contains("New, TLSv"), "{got}");
        for _ in 0..2 {
            let got = s_client(gate.addr(), &[version, "-sess_in", session], &request(TARGET));
            assert!(got.contains("HTTP/1.1 200") && got.contains("Reused, TLSv"), "{got}");
        }
        assert_eq!((world.handshakes(name, "no"), world.handshakes(name, "yes")), (1, 2));
    }
}

/// Go's crypto/tls resumes only for a program that keeps a ClientSessionCache; the container tools keep none, and open a
/// connection for each request. So tickets gain nothing there, and full handshakes have to be cheap.
#[test]
fn skopeo_opens_connections_and_resumes_none() {
    if crate::support::misses(&[crate::support::packages::SKOPEO]) {
        return;
    }
    let world = World::new("tls-skopeo");
    let gate = world.gate("", "");
    let certs = world.dir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    fs::copy(&world.ca.cert, certs.join("ca.crt")).unwrap();
    let from = format!("localhost:{}/team/app:latest", gate.addr().port());
    let client = skopeo::Skopeo::new().unwrap();
    // The stub knows no manifests; that the client came, and came again, is all that is wanted.
    for _ in 0..2 {
        client.pull(&from, &world.dir.path().join("out"), None, skopeo::Trust::CertDir(&certs)).unwrap();
    }
    assert!(world.handshakes("1.3", "no") >= 2, "{}", gate.log());
    assert_eq!(
        world.handshakes("1.3", "yes") + world.handshakes("1.2", "yes"),
        0,
        "it resumes: the documents are wrong"
    );
}
