//! The container image: one static binary `FROM scratch`, started as the container of 2014 was.
//!
//! The archive is an OCI layout that also has the `manifest.json` of `docker save`, so that `docker load` of any age,
//! podman, skopeo and ctr all take it as it is. No engine is needed to build it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Release, put, tar};

const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nportcullis:x:65532:65532:portcullis:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nportcullis:x:65532:\n";
const NSSWITCH: &str = "hosts: files dns\n";
const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Builds it and says where it is.
pub(super) fn build(release: &Release<'_>) -> anyhow::Result<PathBuf> {
    let (tree, layout) = (release.room.join("root"), release.room.join("layout"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
    files(release, &tree)?;
    let draft = release.room.join("layer.tar");
    tar(&tree, &draft)?;
    let layer = Blob::add(&blobs, &fs::read(&draft).context("cannot read the layer")?)?;
    let config = Blob::add(&blobs, config(release, &layer).to_string().as_bytes())?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = Blob::add(&blobs, manifest.to_string().as_bytes())?;
    let tag = format!("portcullis:{}", release.version);
    let mut listed = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    listed["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{tag}"),
        "org.opencontainers.image.ref.name": release.version,
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [listed],
    });
    let saved = json!([{"Config": config.path(), "RepoTags": [tag], "Layers": [layer.path()]}]);
    put(&layout.join("index.json"), index.to_string().as_bytes(), 0o644)?;
    put(&layout.join("manifest.json"), saved.to_string().as_bytes(), 0o644)?;
    put(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    let archive = release.out.join(format!("portcullis_{}_{}.oci.tar", release.version, release.architecture));
    tar(&layout, &archive)?;
    Ok(archive)
}

fn files(release: &Release<'_>, tree: &Path) -> anyhow::Result<()> {
    super::install(release.program, &tree.join("portcullis"), 0o755)?;
    put(&tree.join("etc/passwd"), PASSWD.as_bytes(), 0o644)?;
    put(&tree.join("etc/group"), GROUP.as_bytes(), 0o644)?;
    put(&tree.join("etc/nsswitch.conf"), NSSWITCH.as_bytes(), 0o644)?;
    let roots = fs::read(ROOTS)
        .with_context(|| format!("no {ROOTS}: install ca-certificates, the image needs it for https:// upstreams"))?;
    put(&tree.join(&ROOTS[1..]), &roots, 0o644)
}

/// As in 2014: port 80, `BACKEND` and `AUTH_BACKEND` from the environment, TLS ended by whoever published the port.
fn config(release: &Release<'_>, layer: &Blob) -> Value {
    json!({
        "architecture": release.architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/portcullis"],
            "Cmd": ["serve"],
            "Env": ["PATH=/", "PORTCULLIS_LISTEN=0.0.0.0:80", "PORTCULLIS_ALLOW_PLAINTEXT_CREDENTIALS=true"],
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {
                "org.opencontainers.image.title": "portcullis",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
        "history": [{"created_by": "cargo xtask dist"}],
    })
}

struct Blob {
    hex: String,
    size: usize,
}

impl Blob {
    fn add(blobs: &Path, content: &[u8]) -> anyhow::Result<Self> {
        let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        put(&blobs.join(&hex), content, 0o644)?;
        Ok(Self { hex, size: content.len() })
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.size})
    }
}
