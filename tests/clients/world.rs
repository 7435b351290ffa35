//! A gate over TLS with a private CA in front of the real registry, on an address that is not loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::golden;
use crate::support::cmd::{Cmd, Output};
use crate::support::den::Den;
use crate::support::image::{self, Image};
use crate::support::packages::{CURL, IP, OPENSSL, REGISTRY, SETPRIV, SKOPEO, UNSHARE};
use crate::support::pki::Authority;
use crate::support::registry::Registry;
use crate::support::skopeo::Skopeo;
use crate::support::{Gate, Need, Serve, htpasswd, misses, program, random, scratch, skips};

pub(super) const PASSWORD: &str = "testpassword";
const USERS: &str = "alice:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\nbob:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
/// alice may do everything, bob may read.
const RULES: &str = r#"
[[rule]]
who = ["alice"]
repositories = ["**"]
actions = ["pull", "push", "delete"]

[[rule]]
who = ["bob"]
repositories = ["**"]
actions = ["pull"]
"#;
/// One that is nearly nothing, one of several buffers, one that takes a while.
const LAYERS: [u64; 3] = [1, 70_000, 9 << 20];

pub(super) struct World<'d> {
    pub(super) den: &'d Den,
    pub(super) registry: Registry,
    pub(super) gate: Gate,
    pub(super) ca: PathBuf,
    /// What skopeo takes as `--cert-dir`.
    pub(super) trust: PathBuf,
    /// An image that no registry has seen.
    pub(super) image: Image,
    pub(super) layout: TempDir,
    pub(super) skopeo: Skopeo,
    dir: TempDir,
}

/// Runs a test inside a den, where this machine has what it takes; `backend` says how the gate reaches the registry.
pub(super) fn inside(
    needs: &[Need],
    backend: impl Fn(&Registry) -> String + Send,
    test: impl FnOnce(World<'_>) + Send,
) {
    let all = [&[REGISTRY, SKOPEO, OPENSSL, SETPRIV, CURL, IP, UNSHARE], needs].concat();
    if misses(&all) {
        return;
    }
    if let Some(reason) = Den::why_not() {
        return skips::skip(&reason);
    }
    let den = Den::start().unwrap();
    den.within(|| test(World::start(&den, backend))).unwrap();
}

impl<'d> World<'d> {
    fn start(den: &'d Den, backend: impl Fn(&Registry) -> String) -> Self {
        let dir = scratch("clients").unwrap();
        // podman makes an image's name of the path, and wants it in lower case.
        let name = format!("portcullis-image-{:x}", random());
        let layout = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
        let image = image::write(layout.path(), &LAYERS, random()).unwrap();
        let registry = Registry::start_within(den).unwrap();
        let addr = den.address().unwrap();
        let authority = Authority::create(dir.path(), "Test CA").unwrap();
        let identity = authority.issue("gate", &[&addr.ip().to_string()]).unwrap();
        den.trust(addr, &authority.cert).unwrap();
        let trust = dir.path().join("trust");
        fs::create_dir(&trust).unwrap();
        fs::copy(&authority.cert, trust.join("ca.crt")).unwrap();
        let config = dir.path().join("gate.toml");
        fs::write(&config, RULES).unwrap();
        let serve = Serve::new(program()).unwrap().listen(addr).within(den).flag("--config", &config).tls(&identity);
        let serve = serve.flag("--backend", backend(&registry)).flag("--htpasswd", htpasswd(dir.path(), USERS));
        let gate = serve.start().unwrap();
        Self { den, registry, gate, ca: authority.cert, trust, image, layout, skopeo: Skopeo::new().unwrap(), dir }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.gate.addr()
    }

    /// `HOST:PORT/REPOSITORY:1`.
    pub(super) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.addr())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ran to its end; if not, with what the gate wrote.
    pub(super) fn ok(&self, cmd: Cmd) -> Output {
        cmd.limit(Duration::from_secs(120))
            .output()
            .and_then(|output| output.ok())
            .unwrap_or_else(|error| panic!("{error:#}\nthe gate wrote:\n{}", self.gate.log()))
    }

    /// Failed, and told its user what the golden file of this name has.
    pub(super) fn refused(&self, cmd: Cmd, name: &str) {
        let output = cmd.limit(Duration::from_secs(120)).output().unwrap();
        let text = output.everything();
        assert!(!output.status.success(), "`{}` went through:\n{text}", output.shown);
        golden::compare(name, &golden::complaint(&text, self.addr()));
    }

    /// What the registry keeps under a tag: the digests of all layers, as skopeo reads them through the gate.
    pub(super) fn layers(&self, repository: &str) -> Vec<String> {
        let manifest = self.ok(self.skopeo("inspect").arg("--raw").arg(self.remote(repository)));
        let manifest: Value = serde_json::from_slice(&manifest.stdout).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }

    /// Every layer of `to` was mounted from `from`, which the access log shows, and the registry has it there.
    pub(super) fn mounted(&self, from: &str, to: &str) {
        let encoded = from.replace('/', "%2F");
        for digest in self.layers(to) {
            let found = |log: &str| {
                log.lines().filter(|line| line.contains("\"method\":\"POST\"") && line.contains("\"status\":201")).any(
                    |line| {
                        line.contains(&format!("\"/v2/{to}/blobs/uploads/?"))
                            && line.contains(digest.trim_start_matches("sha256:"))
                            && (line.contains(&format!("from={from}")) || line.contains(&format!("from={encoded}")))
                    },
                )
            };
            let end = Instant::now() + Duration::from_secs(5);
            while !found(&self.gate.log()) {
                assert!(Instant::now() < end, "{digest} was not mounted from {from} to {to}:\n{}", self.gate.log());
                thread::sleep(Duration::from_millis(20));
            }
            assert!(self.registry.has(to, &digest), "{digest} is not in {to}");
        }
    }

    /// skopeo as alice.
    pub(super) fn skopeo(&self, command: &str) -> Cmd {
        let cmd = self.skopeo.command().arg(command).arg("--cert-dir").arg(&self.trust);
        cmd.arg("--creds").secret_arg(format!("alice:{PASSWORD}"))
    }

    pub(super) fn remote(&self, repository: &str) -> String {
        format!("docker://{}", self.name(repository))
    }

    /// The hashes of the uncompressed layers of the image that no registry has seen.
    pub(super) fn contents(&self) -> BTreeSet<String> {
        let blob = |digest: &str| -> Value {
            let path = self.layout.path().join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
            serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
        };
        let config = blob(&self.image.manifest)["config"]["digest"].as_str().unwrap().to_owned();
        let ids = blob(&config)["rootfs"]["diff_ids"].as_array().unwrap().clone();
        ids.iter().map(|id| id.as_str().unwrap().trim_start_matches("sha256:").to_owned()).collect()
    }

    /// The hashes of the layers in what `docker save` wrote: the image as the client has it, layers unpacked.
    pub(super) fn saved(&self, archive: &Path) -> BTreeSet<String> {
        let dir = scratch("saved").unwrap();
        Cmd::new("tar").arg("-xf").arg(archive).arg("-C").arg(dir.path()).run().unwrap();
        let manifest: Value = serde_json::from_slice(&fs::read(dir.path().join("manifest.json")).unwrap()).unwrap();
        let layers = manifest[0]["Layers"].as_array().unwrap().iter();
        layers.map(|layer| hash(&dir.path().join(layer.as_str().unwrap()))).collect()
    }
}

fn hash(file: &Path) -> String {
    Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}
