//! Large bodies through TLS, both ways, byte for byte, by clients with TLS libraries of their own: OpenSSL (curl, s_client,
//! Python), GnuTLS, NSS, Java's and Go's. Each takes every suite that the gate offers, with both kinds of certificate, and
//! then one large body each way.
//!
//! `PORTCULLIS_LONG=1` makes the large ones 5 GiB, which is more than 32 bits can count.

mod clients;
mod content;
mod rekeying;

use std::fs;
use std::net::SocketAddr;

use clients::{Client, Terms, Way};
use content::Store;

use super::World;
use crate::support::image;
use crate::support::packages::{CERTUTIL, CURL, GNUTLS, JAVAC, OPENSSL, PYTHON, REGISTRY, SKOPEO, TSTCLNT};
use crate::support::pki::Key;
use crate::support::registry::Registry;
use crate::support::skopeo::{Skopeo, Trust};
use crate::support::{Gate, Need, Serve, htpasswd, misses, program, random};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

/// More than all buffers on the way hold, and many records.
const SOME: u64 = 3 * (1 << 20) + 4321;

/// What one client moves each way when it is about size.
fn much() -> u64 {
    if std::env::var_os("PORTCULLIS_LONG").is_some() { 5 << 30 } else { 64 << 20 }
}

/// The suites of rustls: the version, IANA's name, OpenSSL's, GnuTLS's priority string, and IANA's number.
struct Suite {
    tls13: bool,
    iana: &'static str,
    openssl: &'static str,
    gnutls: &'static str,
    number: u16,
    /// The kind of certificate that it takes, if only one.
    rsa: Option<bool>,
}

const fn suite(iana: &'static str, openssl: &'static str, gnutls: &'static str, number: u16) -> Suite {
    let tls13 = number < 0x2000;
    let rsa = if tls13 { None } else { Some(openssl.as_bytes()[6] == b'R') };
    Suite { tls13, iana, openssl, gnutls, number, rsa }
}

const SUITES: [Suite; 9] = [
    suite("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256", "AES-128-GCM", 0x1301),
    suite("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384", "AES-256-GCM", 0x1302),
    suite("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", 0x1303),
    suite("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256", "AES-128-GCM", 0xc02b),
    suite("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384", "AES-256-GCM", 0xc02c),
    suite(
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "CHACHA20-POLY1305",
        0xcca9,
    ),
    suite("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "AES-128-GCM", 0xc02f),
    suite("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "AES-256-GCM", 0xc030),
    suite("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305", "CHACHA20-POLY1305", 0xcca8),
];

/// A gate with an ECDSA certificate and one with an RSA certificate, both for localhost, in front of one store.
struct Room {
    world: World,
    _store: Store,
    ecdsa: Gate,
    rsa: Gate,
}

impl Room {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let store = Store::start();
        let rsa = world.ca.issue_as("rsa", &["localhost"], Key::Rsa2048, 30).unwrap();
        let users = htpasswd(world.dir.path(), LINE);
        let gate = |identity| {
            let serve = Serve::new(program()).unwrap().tls(identity).flag("--backend", store.url());
            serve.flag("--htpasswd", &users).start().unwrap()
        };
        Self { ecdsa: gate(&world.identity), rsa: gate(&rsa), _store: store, world }
    }

    fn addr(&self, rsa: bool) -> SocketAddr {
        if rsa { self.rsa.addr() } else { self.ecdsa.addr() }
    }

    fn terms(&self, suite: &'static Suite, rsa: bool) -> Terms<'_> {
        Terms { addr: self.addr(rsa), ca: &self.world.ca.cert, suite, dir: self.world.dir.path() }
    }

    /// Moves a body and looks whether what arrived is it.
    fn moves(&self, client: &Client, terms: &Terms<'_>, way: Way, size: u64) {
        let got = client.run(terms, way, size);
        let said = || format!("the gate wrote:\n{}{}", self.ecdsa.log(), self.rsa.log());
        let got = got.unwrap_or_else(|error| {
            panic!("{} {way:?} {size} {}: {error:#}\n{}", client.name, terms.suite.iana, said())
        });
        assert!(got == content::sum(size), "{} {way:?} {}: {got}\n{}", client.name, terms.suite.iana, said());
    }
}

/// Every suite and both certificates, and much at once in either version.
fn client(needs: &[Need], client: &Client) {
    if misses(&[&[OPENSSL], needs].concat()) {
        return;
    }
    let room = Room::new(&format!("tls-transfers-{}", client.name));
    client.prepare(&room.terms(&SUITES[0], false)).unwrap();
    for suite in &SUITES {
        for rsa in [false, true].into_iter().filter(|rsa| suite.rsa.is_none_or(|only| only == *rsa)) {
            let terms = room.terms(suite, rsa);
            room.moves(client, &terms, Way::Down, SOME.min(client.most));
            room.moves(client, &terms, Way::Up, SOME);
        }
    }
    let (new, old) = (room.terms(&SUITES[0], false), room.terms(&SUITES[6], true));
    for (terms, way) in [(&new, Way::Down), (&old, Way::Up), (&old, Way::Down), (&new, Way::Up)] {
        let size = if way == Way::Down { client.most.min(much()) } else { much() };
        room.moves(client, terms, way, size);
    }
    for gate in [&room.ecdsa, &room.rsa] {
        assert!(!gate.log().contains("panicked"), "{}", gate.log());
    }
}

#[test]
fn curl() {
    client(&[CURL], &clients::CURL);
}

#[test]
fn s_client() {
    client(&[], &clients::S_CLIENT);
}

#[test]
fn python() {
    client(&[PYTHON], &clients::PYTHON);
}

#[test]
fn gnutls() {
    client(&[GNUTLS], &clients::GNUTLS);
}

#[test]
fn nss() {
    client(&[TSTCLNT, CERTUTIL], &clients::NSS);
}

#[test]
fn java() {
    client(&[JAVAC], &clients::JAVA);
}

/// Go's, by way of skopeo: a large layer up and down.
#[test]
fn go() {
    if misses(&[SKOPEO, REGISTRY, OPENSSL]) {
        return;
    }
    let world = World::new("tls-transfers-go");
    let registry = Registry::start().unwrap();
    let certs = world.dir.path().join("certs");
    fs::create_dir(&certs).unwrap();
    fs::copy(&world.ca.cert, certs.join("ca.crt")).unwrap();
    let rsa = world.ca.issue_as("rsa", &["localhost"], Key::Rsa2048, 30).unwrap();
    let (layout, client) = (world.dir.path().join("image"), Skopeo::new().unwrap());
    // It is kept four times on the way.
    let size = much().min(2 << 30);
    let image = image::write(&layout, &[size, 1], random()).unwrap();
    for (n, identity) in [&world.identity, &rsa].into_iter().enumerate() {
        let serve = Serve::new(program()).unwrap().tls(identity).flag("--backend", registry.url());
        let gate = serve.flag("--htpasswd", htpasswd(world.dir.path(), LINE)).start().unwrap();
        let name = format!("localhost:{}/team/app-{n}:1", gate.addr().port());
        let back = world.dir.path().join(format!("back-{n}"));
        client.push(&layout, &name, Some(CREDS), Trust::CertDir(&certs)).unwrap().ok().unwrap();
        client.pull(&name, &back, Some(CREDS), Trust::CertDir(&certs)).unwrap().ok().unwrap();
        let same = image::compare(&layout, &back).unwrap();
        assert_eq!((same.blobs, same.bytes), (4, image.bytes));
        fs::remove_dir_all(back).unwrap();
    }
}
