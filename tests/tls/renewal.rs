//! Certificates that change under the gate's feet.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{OPEN, TARGET, World, request, s_client};
use crate::support::cmd::Cmd;
use crate::support::pki::{Identity, Key};
use crate::support::secure::Client;
use crate::support::{Serve, is_root, program, skips, wait_for};

const RENEWED: &str = "portcullis_certificate_renewals_total{result=\"ok\"}";
const FAILED: &str = "portcullis_certificate_renewals_total{result=\"failed\"}";

/// The subject that the gate shows.
fn subject(world: &World, addr: std::net::SocketAddr) -> String {
    let ca = world.ca.cert.to_str().unwrap();
    let got = s_client(addr, &["-CAfile", ca], &request(TARGET));
    got.lines().find_map(|line| line.strip_prefix("subject=CN = ")).unwrap_or(&got).to_owned()
}

/// Keeps a pair in a directory of its own, as certbot does, and points `live` to it in one step.
fn publish(world: &World, identity: &Identity, name: &str) {
    let dir = world.dir.path().join(format!("archive-{name}"));
    fs::create_dir(&dir).unwrap();
    fs::copy(&identity.cert, dir.join("cert.pem")).unwrap();
    fs::copy(&identity.key, dir.join("key.pem")).unwrap();
    let (next, live) = (world.dir.path().join("next"), world.dir.path().join("live"));
    symlink(&dir, &next).unwrap();
    fs::rename(next, live).unwrap();
}

fn renewed(world: &mut World) -> Identity {
    let first = world.identity.clone();
    publish(world, &first, "first");
    let live = world.dir.path().join("live");
    Identity { cert: live.join("cert.pem"), key: live.join("key.pem") }
}

fn ends(path: &Path) -> u64 {
    let text = Cmd::new("openssl").args(["x509", "-noout", "-enddate", "-in"]).arg(path).run().unwrap();
    let date = text.trim().strip_prefix("notAfter=").unwrap().to_owned();
    Cmd::new("date").args(["--utc", "+%s", "--date", &date]).run().unwrap().trim().parse().unwrap()
}

#[test]
fn a_renewed_certificate_is_taken_while_clients_come_and_go() {
    let mut world = World::new("tls-renewal");
    world.identity = renewed(&mut world);
    let gate = world.gate("", "");
    let addr = gate.addr();
    assert_eq!(subject(&world, addr), "gate");

    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..3)
        .map(|n| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            // One of them resumes, the others begin anew each time.
            let client = Client::new(&world.ca, None);
            let ca = world.ca.cert.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    if n == 0 {
                        let url = format!("https://localhost:{}{TARGET}", addr.port());
                        Cmd::new("curl").args(["--silent", "--fail", "--cacert"]).arg(&ca).arg(url).run().unwrap();
                    } else {
                        assert_eq!(client.get(addr, TARGET).unwrap().0, 200);
                    }
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for n in 2..5 {
        let name = format!("gate-{n}");
        publish(&world, &world.ca.issue(&name, &["localhost", "127.0.0.1"]).unwrap(), &name);
        wait_for(&name, || subject(&world, addr) == name);
        let before = served.load(Ordering::SeqCst);
        wait_for("others were served with it", || served.load(Ordering::SeqCst) > before + 20);
    }
    stop.store(true, Ordering::SeqCst);
    for thread in load {
        thread.join().expect("no connection may fail");
    }
    assert_eq!((world.metric(RENEWED), world.metric(FAILED)), (3, 0), "{}", gate.log());
    assert!(world.handshakes("1.3", "yes") > 0 && gate.says("re-read, valid until"), "{}", gate.log());
}

#[test]
fn a_bad_one_changes_nothing_and_is_told_once() {
    let mut world = World::new("tls-bad-renewal");
    world.identity = renewed(&mut world);
    let gate = world.gate("", "");
    let client = Client::new(&world.ca, None);
    let mut stays = client.connect(gate.addr()).unwrap();
    assert!(!client.get(gate.addr(), TARGET).unwrap().2);
    let (cert, key) = (world.dir.path().join("live/cert.pem"), world.dir.path().join("live/key.pem"));
    let second = world.ca.issue("second", &["localhost"]).unwrap();

    // The certificate alone does not fit the key.
    fs::copy(&second.cert, &cert).unwrap();
    wait_for("a mismatch", || world.metric(FAILED) == 1);
    assert!(gate.says("does not match the certificate"), "{}", gate.log());
    fs::write(&cert, "garbage").unwrap();
    wait_for("garbage", || world.metric(FAILED) == 2);
    assert_eq!((subject(&world, gate.addr()).as_str(), world.metric(RENEWED)), ("gate", 0));
    assert_eq!(gate.log().matches("the last good one stays").count(), 2, "{}", gate.log());

    // Both, one after the other: a pair in the writing is no complaint.
    fs::copy(&second.cert, &cert).unwrap();
    fs::copy(&second.key, &key).unwrap();
    wait_for("the new pair", || world.metric(RENEWED) == 1);
    assert_eq!((subject(&world, gate.addr()).as_str(), world.metric(FAILED)), ("second", 2), "{}", gate.log());

    // A connection and a session from before go on.
    use std::io::{Read, Write};
    stays.write_all(request(TARGET).as_bytes()).unwrap();
    let mut got = String::new();
    stays.read_to_string(&mut got).unwrap();
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(client.get(gate.addr(), TARGET).unwrap().2, "the session was not resumed");
}

#[test]
fn an_end_is_measured_and_warned_of() {
    let mut world = World::new("tls-expiry");
    world.identity = world.ca.issue_as("soon", &["localhost"], Key::P256, 20).unwrap();
    let gate = world.gate("", "");
    let sample =
        |path: &Path| format!("portcullis_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}", path.display());
    assert_eq!(world.metric(&sample(&world.identity.cert)), ends(&world.identity.cert));
    assert!(gate.says("soon.crt: the certificate expires on") && gate.says(" days: renew it"), "{}", gate.log());
    drop(gate);
    world.identity = world.ca.issue_as("past", &["localhost"], Key::P256, -1).unwrap();
    assert!(world.gate("", "").says("past.crt: the certificate expired on"));
    world.identity = world.ca.issue_as("later", &["localhost"], Key::P256, 22).unwrap();
    assert!(!world.gate("", "").log().contains("later.crt"));
}

#[test]
fn files_that_the_gate_could_not_read_again_are_named_at_the_start() {
    if !is_root() {
        return skips::skip("needs root, which the gate then gives up");
    }
    let world = World::new("tls-unreadable");
    let config = world.dir.path().join("nobody.toml");
    fs::write(&config, format!("user = \"nobody\"\n{OPEN}")).unwrap();
    let serve = Serve::new(program()).unwrap().tls(&world.identity).flag("--config", &config);
    let gate = serve.flag("--backend", world.registry.url()).start().unwrap();
    let key = world.identity.key.display();
    let named = format!("warning: {key}: Permission denied for the user that the gate runs as");
    assert!(gate.says(&named), "{}", gate.log());
    assert_eq!(Client::new(&world.ca, None).get(gate.addr(), TARGET).unwrap().0, 200);
}
