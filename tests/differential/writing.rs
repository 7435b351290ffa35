//! Pushes, mounts and deletions, as the clients of today and of some years ago write them, and what goes wrong with them.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Ask;

pub(super) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const SCHEMA2: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A client: its repository, the lines that it adds to every request, and how it uploads a blob.
pub(super) struct Client {
    pub(super) repository: &'static str,
    pub(super) lines: &'static str,
    upload: Upload,
}

enum Upload {
    /// PATCH in chunks, then an empty PUT.
    Streamed,
    /// PATCH with its length and range, then an empty PUT.
    Ranged,
    /// One PUT with the body.
    AtOnce,
}

pub(super) const CLIENTS: [Client; 8] = [
    Client {
        repository: "docker/app",
        lines: "User-Agent: docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1.0 os/linux arch/amd64 \
                UpstreamClient(Docker-Client/20.10.24 \\(linux\\))\nAccept-Encoding: gzip\nConnection: close",
        upload: Upload::Streamed,
    },
    Client {
        repository: "moby/a.b_c-d/e__f",
        lines: "User-Agent: docker/28.2.2 go/go1.24.3 git-commit/45873be kernel/6.8.0 os/linux arch/amd64 \
                UpstreamClient(Docker-Client/28.2.2 \\(linux\\))\nAccept-Encoding: gzip",
        upload: Upload::Ranged,
    },
    Client {
        repository: "containerd/team/app",
        lines: "User-Agent: containerd/1.6.20~ds1\nAccept: application/vnd.docker.distribution.manifest.v2+json, \
                application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
                application/vnd.oci.image.index.v1+json, */*\nAccept-Encoding: gzip",
        upload: Upload::AtOnce,
    },
    Client {
        repository: "skopeo",
        lines: "User-Agent: skopeo/1.9.3\nDocker-Distribution-Api-Version: registry/2.0\nAccept-Encoding: gzip",
        upload: Upload::Streamed,
    },
    Client {
        repository: "podman/x/y/z",
        lines: "User-Agent: containers/5.23.1 (github.com/containers/image)\n\
                Docker-Distribution-Api-Version: registry/2.0\nAccept-Encoding: gzip",
        upload: Upload::Streamed,
    },
    Client {
        repository: "crane/app",
        lines: "User-Agent: crane/v0.20.2 go-containerregistry/v0.20.2\nAccept-Encoding: gzip",
        upload: Upload::Streamed,
    },
    Client { repository: "oras/chart", lines: "User-Agent: oras/1.2.0\nAccept-Encoding: gzip", upload: Upload::AtOnce },
    Client { repository: "curl", lines: "User-Agent: curl/7.88.1\nAccept: */*", upload: Upload::AtOnce },
];

pub(super) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A digest as Go writes it into a query.
pub(super) fn encoded(digest: &str) -> String {
    digest.replace(':', "%3A")
}

/// Every client's image has layers of its own.
pub(super) fn layer(repository: &str) -> Vec<u8> {
    format!("a layer of {repository}. ").repeat(4000).into_bytes()
}

pub(super) fn config() -> Vec<u8> {
    json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}})
        .to_string()
        .into_bytes()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

pub(super) fn manifest(repository: &str, kind: &str) -> Vec<u8> {
    let (config_kind, layer_kind) = if kind == OCI {
        ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar")
    } else {
        ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar")
    };
    let layers = [descriptor(layer_kind, &layer(repository))];
    json!({"schemaVersion": 2, "mediaType": kind, "config": descriptor(config_kind, &config()), "layers": layers})
        .to_string()
        .into_bytes()
}

pub(super) fn index(repository: &str, kind: &str, of: &str) -> Vec<u8> {
    let mut entry = descriptor(of, &manifest(repository, of));
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).to_string().into_bytes()
}

/// Each client pushes an image into its own repository.
pub(super) fn pushes() -> Vec<Ask> {
    let mut all = vec![Ask::new("GET", "/v2/_catalog"), Ask::new("GET", "/v2/docker/app/tags/list")];
    for client in &CLIENTS {
        for blob in [config(), layer(client.repository)] {
            all.extend(upload(client, blob));
        }
        let put = |kind: &str, reference: &str, body: Vec<u8>| {
            let target = format!("/v2/{}/manifests/{reference}", client.repository);
            Ask::new("PUT", target).with(client.lines).with(&format!("Content-Type: {kind}")).body(body)
        };
        let (kind, list) = if client.repository == "docker/app" { (SCHEMA2, LIST) } else { (OCI, OCI_INDEX) };
        let image = manifest(client.repository, kind);
        all.push(put(kind, "1", image.clone()));
        all.push(put(kind, "latest", image.clone()));
        all.push(put(kind, &digest(&image), image));
        all.push(put(list, "v1.0_multi-arch", index(client.repository, list, kind)));
    }
    all.extend(in_pieces());
    all.extend(mounts());
    all
}

fn upload(client: &Client, blob: Vec<u8>) -> Vec<Ask> {
    let (repository, lines, digest) = (client.repository, client.lines, digest(&blob));
    let here = format!("/v2/{repository}/blobs/{digest}");
    let ask = |method, target: &str| Ask::new(method, target).with(lines);
    let start = ask("POST", &format!("/v2/{repository}/blobs/uploads/")).body("").save("upload");
    let finish = format!("{{upload}}&digest={}", encoded(&digest));
    let octets = "Content-Type: application/octet-stream";
    let mut all = vec![ask("HEAD", &here), start];
    match client.upload {
        Upload::Streamed => {
            all.push(ask("PATCH", "{upload}").with(octets).chunked(blob, 32_768).save("upload"));
            all.push(ask("PUT", &finish).with(octets).body(""));
        }
        Upload::Ranged => {
            let range = format!("Content-Range: 0-{}", blob.len() - 1);
            all.push(ask("PATCH", "{upload}").with(octets).with(&range).body(blob).save("upload"));
            all.push(ask("PUT", &finish).body(""));
        }
        Upload::AtOnce => all.push(ask("PUT", &finish).with(octets).body(blob)),
    }
    all.push(ask("HEAD", &here));
    all
}

/// One blob in several pieces, with questions in between.
fn in_pieces() -> Vec<Ask> {
    let blob = layer("pieces");
    let (first, rest) = blob.split_at(10_000);
    let (second, third) = rest.split_at(20_000);
    let octets = "Content-Type: application/octet-stream";
    vec![
        Ask::new("POST", "/v2/pieces/blobs/uploads/").body("").save("pieces"),
        Ask::new("GET", "{pieces}"),
        Ask::new("HEAD", "{pieces}"),
        Ask::new("PATCH", "{pieces}").with(octets).with("Content-Range: 0-9999").body(first).save("pieces"),
        Ask::new("GET", "{pieces}").save("pieces"),
        Ask::new("PATCH", "{pieces}").with(octets).with("Content-Range: 10000-29999").body(second).save("pieces"),
        Ask::new("GET", "{pieces}").save("pieces"),
        Ask::new("PATCH", "{pieces}").with(octets).body("").save("pieces"),
        Ask::new("PUT", format!("{{pieces}}&digest={}", digest(&blob))).with(octets).body(third),
        Ask::new("HEAD", format!("/v2/pieces/blobs/{}", digest(&blob))),
        Ask::new("GET", "{pieces}"),
        Ask::new("POST", "/v2/pieces/blobs/uploads/").chunked("", 1).save("pieces"),
        Ask::new("PUT", format!("{{pieces}}&digest={}", digest(b"chunks"))).with(octets).chunked("chunks", 2),
        Ask::new("POST", format!("/v2/pieces/blobs/uploads/?digest={}", digest(b"at once")))
            .with(octets)
            .body("at once"),
        Ask::new("HEAD", format!("/v2/pieces/blobs/{}", digest(b"at once"))),
        Ask::new("POST", "/v2/pieces/blobs/uploads/?digest-algorithm=sha512").body(""),
    ]
}

/// Both forms of real clients, what comes of a mount that cannot be, and halves of one.
fn mounts() -> Vec<Ask> {
    let blob = digest(&layer("docker/app"));
    let unknown = digest(b"nobody has it");
    let start = |query: String| Ask::new("POST", format!("/v2/mounted/app/blobs/uploads/?{query}")).body("");
    let here = || Ask::new("HEAD", format!("/v2/mounted/app/blobs/{blob}"));
    vec![
        here(),
        start(format!("from=docker%2Fapp&mount={}", encoded(&blob))).with("User-Agent: docker/20.10.24"),
        here(),
        start(format!("mount={blob}&from=docker/app")).with("User-Agent: containerd/1.6.20~ds1"),
        start(format!("mount={}&from=docker%2Fapp", encoded(&digest(&config())))).with("User-Agent: crane/v0.20.2"),
        start(format!("mount={unknown}&from=docker/app")),
        start(format!("from=no%2Fsuch&mount={}", encoded(&blob))),
        start(format!("mount={blob}&from=skopeo")),
        here(),
    ]
}

/// Uploads and manifests that the registry refuses.
pub(super) fn errors() -> Vec<Ask> {
    let octets = "Content-Type: application/octet-stream";
    let begin = || Ask::new("POST", "/v2/wrong/blobs/uploads/").body("").save("wrong");
    let nobody = "/v2/wrong/blobs/uploads/0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f";
    let put = |kind: &str, reference: &str, body: &[u8]| {
        Ask::new("PUT", format!("/v2/wrong/manifests/{reference}")).with(&format!("Content-Type: {kind}")).body(body)
    };
    let good = manifest("curl", OCI);
    vec![
        begin(),
        Ask::new("PUT", "{wrong}").with(octets).body("no digest"),
        begin(),
        Ask::new("PUT", format!("{{wrong}}&digest={}", digest(b"another"))).with(octets).body("this"),
        begin(),
        Ask::new("PATCH", "{wrong}").with("Content-Range: 5-8").with(octets).body("late").save("wrong"),
        begin(),
        Ask::new("PATCH", "{wrong}").with("Content-Range: nonsense").with(octets).body("this"),
        begin(),
        Ask::new("PATCH", "{wrong}").with("Content-Range: 0-9").with(octets).body("this"),
        begin(),
        Ask::new("PATCH", "{wrong}").with("Content-Type: text/plain").body("this"),
        begin(),
        Ask::new("PATCH", "{wrong}").body("no type"),
        begin(),
        Ask::new("DELETE", "{wrong}"),
        Ask::new("DELETE", "{wrong}"),
        Ask::new("GET", "{wrong}"),
        Ask::new("PATCH", "{wrong}").with(octets).body("this"),
        Ask::new("PUT", format!("{{wrong}}&digest={}", digest(b"this"))).with(octets).body("this"),
        begin(),
        Ask::new("PUT", format!("{{wrong}}&digest={}", digest(b""))).with(octets).body(""),
        Ask::new("GET", nobody),
        Ask::new("HEAD", nobody),
        Ask::new("DELETE", nobody),
        Ask::new("PATCH", nobody).with(octets).body("this"),
        Ask::new("PUT", format!("{nobody}?digest={}", digest(b"this"))).with(octets).body("this"),
        Ask::new("PATCH", format!("{nobody}?_state=Zm9yZ2Vk")).with(octets).body("this"),
        Ask::new("PATCH", "/v2/wrong/blobs/uploads/not-a-uuid").with(octets).body("this"),
        put(OCI, "bad", b"{"),
        put(OCI, "bad", b""),
        put(OCI, "bad", b"[]"),
        put("application/json", "bad", b"{}"),
        put("text/plain", "bad", b"hello"),
        put(OCI, "bad", &good),
        put(SCHEMA2, "bad", &manifest("docker/app", SCHEMA2)),
        put(OCI_INDEX, "bad", &index("curl", OCI_INDEX, OCI)),
        put(OCI, &digest(b"another"), &good),
        put(OCI, &format!("sha512:{}", "a".repeat(128)), &good),
        put(SCHEMA2, "bad", &good),
        Ask::new("PUT", "/v2/wrong/manifests/bad").body(good.clone()),
        Ask::new("PUT", "/v2/curl/manifests/chunks").with(&format!("Content-Type: {OCI}")).chunked(good, 100),
    ]
}

/// What `skopeo delete`, `crane delete` and garbage collectors send, and the same again.
pub(super) fn deletions() -> Vec<Ask> {
    let image = digest(&manifest("crane/app", OCI));
    let ask = |method, target: String| Ask::new(method, target).with("User-Agent: skopeo/1.9.3");
    let mut all = vec![
        ask("DELETE", "/v2/crane/app/manifests/1".into()),
        ask("DELETE", "/v2/crane/app/manifests/no-such".into()),
        ask("DELETE", format!("/v2/crane/app/manifests/{}", digest(b"nobody has it"))),
        ask("DELETE", format!("/v2/no/such/manifests/{}", digest(b"nobody has it"))),
        ask("DELETE", format!("/v2/crane/app/blobs/{}", digest(b"nobody has it"))),
        ask("DELETE", format!("/v2/no/such/blobs/{}", digest(&config()))),
    ];
    for _ in 0..2 {
        all.push(ask("DELETE", format!("/v2/crane/app/manifests/{image}")));
        all.push(ask("GET", format!("/v2/crane/app/manifests/{image}")));
        all.push(ask("GET", "/v2/crane/app/manifests/1".into()));
        all.push(ask("GET", "/v2/crane/app/tags/list".into()));
        let blob = digest(&layer("crane/app"));
        all.push(ask("DELETE", format!("/v2/crane/app/blobs/{blob}")));
        all.push(ask("HEAD", format!("/v2/crane/app/blobs/{blob}")));
    }
    all
}
