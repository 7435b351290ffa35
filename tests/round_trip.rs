//! The main job: an image through the gate into the real registry and back, byte for byte.

use crate::support::http::get;
use crate::support::packages::{CURL, OPENSSL, REGISTRY, SETPRIV, SKOPEO};
use crate::support::registry::Registry;
use crate::support::skopeo::{Skopeo, Trust};
use crate::support::{Gate, Serve, add_user, curl::Curl, image, misses, pki, program, random, scratch};

/// Sizes around a tar block, a gzip block, a buffer and the threshold of splice, and one that takes a while.
const LAYERS: [u64; 7] = [0, 1, 513, 65_535, 262_144, 3_000_001, 24 << 20];
const NAME: &str = "team/app:1";
const CREDS: &str = "alice:open sesame: é";
const WRONG: &str = "alice:open sesame";

struct Client<'a> {
    gate: &'a Gate,
    skopeo: Skopeo,
    trust: Trust<'a>,
}

impl Client<'_> {
    fn there_and_back(&self) {
        let (there, back) = (scratch("image").unwrap(), scratch("image").unwrap());
        let written = image::write(there.path(), &LAYERS, random()).unwrap();
        let name = format!("{}/{NAME}", self.gate.addr());
        let explain = |error| panic!("{error:#}\nthe gate wrote:\n{}", self.gate.log());
        let pushed = self.skopeo.push(there.path(), &name, Some(CREDS), self.trust);
        pushed.and_then(|output| output.ok()).unwrap_or_else(explain);
        let pulled = self.skopeo.pull(&name, back.path(), Some(CREDS), self.trust);
        pulled.and_then(|output| output.ok()).unwrap_or_else(explain);
        let same = image::compare(there.path(), back.path()).unwrap();
        assert_eq!((same.blobs, same.bytes), (LAYERS.len() + 2, written.bytes));
    }

    fn is_refused(&self, creds: Option<&str>) {
        let there = scratch("image").unwrap();
        image::write(there.path(), &[1000], random()).unwrap();
        let name = format!("{}/{NAME}", self.gate.addr());
        let output = self.skopeo.push(there.path(), &name, creds, self.trust).unwrap();
        assert!(!output.status.success(), "a push with {creds:?} went through");
        let text = output.everything();
        assert!(text.contains("unauthorized") || text.contains("authentication required"), "{text}");
    }
}

fn user(dir: &std::path::Path) -> std::path::PathBuf {
    let (name, password) = CREDS.split_once(':').unwrap();
    add_user(program(), dir, name, password).unwrap()
}

#[test]
fn over_tls_with_a_private_ca() {
    if misses(&[REGISTRY, SKOPEO, OPENSSL, SETPRIV, CURL]) {
        return;
    }
    let dir = scratch("round-trip").unwrap();
    let registry = Registry::start().unwrap();
    let authority = pki::Authority::create(dir.path(), "Test CA").unwrap();
    let identity = authority.issue("gate", &["localhost", "127.0.0.1"]).unwrap();
    let trust = dir.path().join("trust");
    std::fs::create_dir(&trust).unwrap();
    std::fs::copy(&authority.cert, trust.join("ca.crt")).unwrap();
    let serve = Serve::new(program()).unwrap().tls(&identity).flag("--backend", registry.url());
    let gate = serve.flag("--htpasswd", user(dir.path())).start().unwrap();
    let client = Client { gate: &gate, skopeo: Skopeo::new().unwrap(), trust: Trust::CertDir(&trust) };

    client.there_and_back();
    client.is_refused(Some(WRONG));
    client.is_refused(None);

    let url = format!("https://{}/v2/", gate.addr());
    let answer = Curl::get(&url).ca(&authority.cert).send().unwrap();
    assert_eq!(answer.status(), Some(401));
    assert!(answer.field("www-authenticate").is_some_and(|challenge| challenge.starts_with("Basic realm=")));
    assert_eq!(Curl::get(&url).ca(&authority.cert).user(CREDS).send().unwrap().status(), Some(200));
    // Without our CA the handshake fails: it is the certificate that is checked, not just any TLS.
    Curl::get(&url).send().unwrap_err();
}

#[test]
fn over_plain_http_on_loopback() {
    if misses(&[REGISTRY, SKOPEO, SETPRIV]) {
        return;
    }
    let dir = scratch("round-trip").unwrap();
    let registry = Registry::start().unwrap();
    let serve = Serve::new(program()).unwrap().flag("--backend", registry.url());
    let gate = serve.flag("--htpasswd", user(dir.path())).start().unwrap();
    let client = Client { gate: &gate, skopeo: Skopeo::new().unwrap(), trust: Trust::Plain };

    client.there_and_back();
    client.is_refused(Some(WRONG));

    for (creds, status) in [(None, 401), (Some(WRONG), 401), (Some(CREDS), 200)] {
        let answer = get(gate.addr(), "/v2/", creds).unwrap();
        assert_eq!(answer.status, status, "{creds:?}: {}", answer.text());
        assert_eq!(answer.field("www-authenticate").is_some(), status == 401, "{answer:?}");
        assert_eq!(answer.field("docker-distribution-api-version"), Some("registry/2.0"), "{answer:?}");
    }
    let denied = get(gate.addr(), "/v2/", None).unwrap().text();
    assert!(denied.contains("\"errors\"") && denied.contains("\"UNAUTHORIZED\""), "{denied}");
}
