//! Upstreams by name: looked up again and again, off the workers, in a mount namespace with a hosts file of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::support::skips;

/// A program that runs the gate where `/etc/hosts` is this directory's `hosts` and nobody else is asked.
fn wrapper(dir: &Path) -> PathBuf {
    fs::write(dir.join("nsswitch.conf"), "hosts: files\n").unwrap();
    let (script, own) = (dir.join("gate"), dir.display());
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c 'mount --bind {own}/hosts /etc/hosts && \
         mount --bind {own}/nsswitch.conf /etc/nsswitch.conf && exec \"$@\"' gate {} \"$@\"\n",
        program().display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn cannot() -> bool {
    let works = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|output| output.status.success());
    if !works {
        skips::skip("no mount namespace can be made here: run as root");
    }
    !works
}

/// An answer that says on which of this machine's addresses it was asked. After anything but a GET it closes.
fn listen(address: &str, port: u16) -> u16 {
    answering(address, port, 200)
}

fn answering(address: &str, port: u16, status: u16) -> u16 {
    let listener = TcpListener::bind((address, port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = address.to_owned();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let address = address.clone();
            thread::spawn(move || {
                loop {
                    let head = read_head(&mut stream);
                    let keeps = head.starts_with(b"GET ");
                    let close = if keeps { "" } else { "Connection: close\r\n" };
                    let length = address.len();
                    say(
                        &mut stream,
                        &format!("HTTP/1.1 {status} Answer\r\n{close}Content-Length: {length}\r\n\r\n{address}"),
                    );
                    if !keeps {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// The same port on both addresses.
fn two_addresses() -> u16 {
    let port = listen("127.0.0.1", free_address().unwrap().port());
    listen("127.0.0.2", port)
}

struct Named {
    front: Front,
    hosts: PathBuf,
    _dir: tempfile::TempDir,
}

fn named(hosts: &str, upstreams: &[String]) -> anyhow::Result<Named> {
    behind(hosts, upstreams, "")
}

fn behind(hosts: &str, upstreams: &[String], auth: &str) -> anyhow::Result<Named> {
    let dir = scratch("names")?;
    let (path, config) = (dir.path().join("hosts"), dir.path().join("gate.toml"));
    fs::write(&path, hosts)?;
    let text = format!(
        "workers = 1\n[[site]]\nkind = \"http\"\nupstreams = {upstreams:?}\n[limits]\n{LIMITS}resolve_interval = \"100ms\"\n{auth}"
    );
    fs::write(&config, text)?;
    let admin = free_address()?;
    let serve = Serve::new(&wrapper(dir.path()))?.flag("--config", &config).admin(admin);
    let gate = serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start()?;
    Ok(Named { front: Front { gate, admin }, hosts: path, _dir: dir })
}

impl Named {
    /// In place: the mount shows this very file.
    fn hosts(&self, text: &str) {
        fs::write(&self.hosts, text).unwrap();
    }

    fn answer(&self) -> String {
        let got = self.front.send("GET", "/", None);
        assert_eq!(got.status, 200, "{}", self.front.gate.log());
        got.text()
    }
}

#[test]
fn a_name_that_moves_is_followed_and_one_that_vanishes_stays() {
    if cannot() {
        return;
    }
    let port = two_addresses();
    let named = named("127.0.0.1 registry.test\n", &[format!("http://registry.test:{port}")]).unwrap();
    assert_eq!(named.answer(), "127.0.0.1");
    named.hosts("127.0.0.2 registry.test\n");
    until("the name has moved", || named.answer() == "127.0.0.2");
    assert!(named.front.gate.says("registry.test is now 127.0.0.2"), "{}", named.front.gate.log());
    for _ in 0..10 {
        assert_eq!(named.answer(), "127.0.0.2", "no connection to the old address is used");
    }
    named.hosts("127.0.0.9 other.test\n");
    assert!(named.front.gate.says("its last addresses stay"), "{}", named.front.gate.log());
    assert_eq!(named.answer(), "127.0.0.2");
    named.hosts("127.0.0.1 registry.test\n127.0.0.2 registry.test\n");
    // Each on a new connection, to the next address.
    let mut seen = std::collections::BTreeSet::new();
    until("both are used", || {
        seen.insert(named.front.send("POST", "/", None).text());
        seen.len() == 2
    });
}

#[test]
fn an_address_of_a_name_that_takes_no_connection_is_passed_over() {
    if cannot() {
        return;
    }
    // Free on the other addresses too: a port of the kernel's choice may be another test's there.
    let port = listen("127.0.0.2", free_address().unwrap().port());
    let hosts = "127.0.0.1 registry.test\n127.0.0.2 registry.test\n127.0.0.3 registry.test\n";
    let named = named(hosts, &[format!("http://registry.test:{port}")]).unwrap();
    for _ in 0..6 {
        assert_eq!(named.answer(), "127.0.0.2");
        assert_eq!(named.front.send("POST", "/", Some("hello")).text(), "127.0.0.2", "nothing was written elsewhere");
    }
}

#[test]
fn a_name_that_is_not_found_at_the_start_is_an_error_unless_there_is_another() {
    if cannot() {
        return;
    }
    let port = two_addresses();
    let error = named("127.0.0.1 other.test\n", &[format!("http://registry.test:{port}")]).err().unwrap().to_string();
    assert!(error.contains("cannot find http://registry.test") && error.contains("check the name"), "{error}");
    let upstreams = [format!("http://registry.test:{port}"), format!("http://other.test:{port}")];
    let named = named("127.0.0.1 other.test\n", &upstreams).unwrap();
    assert!(named.front.gate.says("cannot find http://registry.test"), "{}", named.front.gate.log());
    for _ in 0..4 {
        assert_eq!(named.answer(), "127.0.0.1");
    }
    named.hosts("127.0.0.1 other.test\n127.0.0.2 registry.test\n");
    until("the late one is used", || named.answer() == "127.0.0.2");
}

#[test]
fn the_auth_backends_name_is_followed_too() {
    if cannot() {
        return;
    }
    let upstream = Stub::hello().unwrap();
    let port = answering("127.0.0.1", free_address().unwrap().port(), 200);
    answering("127.0.0.2", port, 403);
    let auth =
        format!("[auth]\nbackend = \"http://auth.test:{port}\"\n[verdicts]\nallow_ttl = \"0s\"\ndeny_ttl = \"0s\"\n");
    let named = behind("127.0.0.1 auth.test\n", &[upstream.url()], &auth).unwrap();
    let ask = || get(named.front.gate.addr(), "/", Some("somebody:x")).unwrap().status;
    assert_eq!(ask(), 200);
    named.hosts("127.0.0.2 auth.test\n");
    until("the name has moved", || ask() == 403);
}
