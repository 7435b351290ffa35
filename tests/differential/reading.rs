//! Pulls and lists: what each client asks, pages, ranges and conditions, and what is not there.

use super::Ask;
use super::writing::{CLIENTS, LIST, OCI, OCI_INDEX, SCHEMA2, config, digest, index, layer, manifest};

/// The `Accept` lines of docker and of skopeo, one line each; order and repetition are theirs.
const REPEATED: &str = "Accept: application/vnd.docker.distribution.manifest.v2+json
    Accept: application/vnd.docker.distribution.manifest.list.v2+json
    Accept: application/vnd.oci.image.index.v1+json
    Accept: application/vnd.oci.image.manifest.v1+json
    Accept: application/vnd.docker.distribution.manifest.v1+prettyjws
    Accept: application/json";

fn get(target: impl Into<String>) -> Ask {
    Ask::new("GET", target)
}

fn head(target: impl Into<String>) -> Ask {
    Ask::new("HEAD", target)
}

pub(super) fn all() -> Vec<Ask> {
    [as_clients(), negotiated(), pages(), ranges(), conditions(), absent(), old()].concat()
}

/// What every client sends for a pull and a list.
fn as_clients() -> Vec<Ask> {
    let mut all = Vec::new();
    for client in &CLIENTS {
        let (name, kind) = (client.repository, if client.repository == "docker/app" { SCHEMA2 } else { OCI });
        let accept = if client.lines.contains("Accept: ") { "" } else { REPEATED };
        let image = digest(&manifest(name, kind));
        let blobs = [digest(&config()), digest(&layer(name))];
        let manifests = |method| {
            let by = move |reference: &str| {
                Ask::new(method, format!("/v2/{name}/manifests/{reference}")).with(client.lines).with(accept)
            };
            [by("1"), by(&image), by("v1.0_multi-arch")]
        };
        // curl takes anything, and is given the oldest of forms: signed anew by each registry, no two alike.
        all.push(get("/v2/").with(client.lines));
        all.extend(manifests("HEAD"));
        all.extend(manifests("GET"));
        all.extend(blobs.iter().map(|blob| get(format!("/v2/{name}/blobs/{blob}")).with(client.lines)));
        all.push(get(format!("/v2/{name}/tags/list")).with(client.lines));
    }
    all
}

/// Manifests by what the client says it takes.
fn negotiated() -> Vec<Ask> {
    let mut all = Vec::new();
    for (name, accepts) in [
        ("skopeo", vec![OCI, OCI_INDEX, "*/*", "application/json", "text/html", "application/vnd.oci.image.*"]),
        ("docker/app", vec![SCHEMA2, LIST]),
    ] {
        for accept in accepts {
            for tag in ["latest", "v1.0_multi-arch"] {
                // A list for who takes none is answered with one image of it, in the oldest of forms: see above.
                if name == "docker/app" && tag != "latest" && accept == SCHEMA2 {
                    continue;
                }
                all.push(get(format!("/v2/{name}/manifests/{tag}")).with(&format!("Accept: {accept}")));
            }
        }
    }
    all.retain(|ask| !(ask.target.contains("docker/app/manifests/latest") && ask.what.contains(LIST)));
    all.extend([
        get("/v2/skopeo/manifests/1"),
        get("/v2/skopeo/manifests/1").with("Accept:"),
        get("/v2/skopeo/manifests/1").with(&format!("Accept: {OCI};q=0.5, {OCI_INDEX}")),
        get("/v2/skopeo/manifests/1").with(&format!("Accept: {OCI_INDEX}, {OCI}")),
        get(format!("/v2/skopeo/manifests/{}", digest(&index("skopeo", OCI_INDEX, OCI)))).with(REPEATED),
        get("/v2/skopeo/manifests/1?ns=docker.io").with(REPEATED),
        get("/v2/?ns=docker.io"),
        head("/v2/"),
        get("/v2"),
        head("/v2"),
        get("/v2/").with("Accept-Language: de\nCookie: a=b\nX-Custom: \"quoted, value\"\nX-Empty:"),
        get("/v2/").with("Connection: keep-alive\nCache-Control: no-cache\nPragma: no-cache"),
    ]);
    all
}

fn pages() -> Vec<Ask> {
    let catalog = [
        "",
        "?n=1",
        "?n=3",
        "?n=100",
        "?n=1000",
        "?n=1001",
        "?n=0",
        "?n=999999",
        "?last=curl",
        "?n=2&last=curl",
        "?last=docker%2Fapp&n=2",
        "?last=zzz",
        "?n=1&last=zzz",
        "?last=",
        "?n=007",
    ];
    let tags = ["", "?n=1", "?n=2", "?n=1&last=1", "?last=latest", "?n=0", "?last=zzz&n=5", "?n=1000"];
    let mut all: Vec<Ask> = catalog.iter().map(|query| get(format!("/v2/_catalog{query}"))).collect();
    all.extend(tags.iter().map(|query| get(format!("/v2/skopeo/tags/list{query}"))));
    all.extend([
        head("/v2/_catalog"),
        head("/v2/_catalog?n=1"),
        head("/v2/skopeo/tags/list"),
        head("/v2/no/tags/list"),
    ]);
    all
}

fn ranges() -> Vec<Ask> {
    let blob = format!("/v2/docker/app/blobs/{}", digest(&layer("docker/app")));
    let size = layer("docker/app").len();
    let mut ranges = [
        "bytes=0-0",
        "bytes=0-99",
        "bytes=100-199",
        "bytes=0-",
        "bytes=50000-",
        "bytes=-1",
        "bytes=-500",
        "bytes=-999999999",
        "bytes=0-999999999",
        "bytes=0-9,20-29",
        "bytes=0-0,-1",
        "bytes= 0-9",
        "bytes=0-9,",
        // Not satisfiable, and not even ranges: answered with the length of the whole blob, a short text and a close.
        "bytes=999999999-",
        "bytes=9-0",
        "bytes=a-b",
        "bytes=-",
        "bytes",
        "lines=0-9",
    ]
    .map(String::from)
    .to_vec();
    ranges.extend([format!("bytes={}-", size - 1), format!("bytes={size}-"), format!("bytes={}-", size + 1)]);
    let mut all = Vec::new();
    for range in &ranges {
        all.push(get(&blob).with(&format!("Range: {range}")));
        all.push(head(&blob).with(&format!("Range: {range}")));
    }
    all.push(get("/v2/docker/app/manifests/1").with(REPEATED).with("Range: bytes=0-9"));
    all.push(get(&blob).with("Range: bytes=0-9\nAccept-Encoding: identity\nUser-Agent: docker/20.10.24"));
    all
}

fn conditions() -> Vec<Ask> {
    let (blob, image) = (digest(&layer("docker/app")), digest(&manifest("docker/app", SCHEMA2)));
    let mut all = Vec::new();
    for (target, own) in
        [(format!("/v2/docker/app/blobs/{blob}"), &blob), ("/v2/docker/app/manifests/1".to_owned(), &image)]
    {
        for condition in [
            format!("If-None-Match: \"{own}\""),
            format!("If-None-Match: {own}"),
            format!("If-None-Match: W/\"{own}\""),
            format!("If-None-Match: \"other\", \"{own}\""),
            "If-None-Match: \"other\"".to_owned(),
            "If-None-Match: *".to_owned(),
            format!("If-Match: \"{own}\""),
            "If-Match: \"other\"".to_owned(),
            format!("If-Range: \"{own}\"\nRange: bytes=0-9"),
            "If-Range: \"other\"\nRange: bytes=0-9".to_owned(),
            "If-Modified-Since: Mon, 23 Nov 2026 00:00:00 GMT".to_owned(),
        ] {
            all.push(get(&target).with(REPEATED).with(&condition));
            all.push(head(&target).with(REPEATED).with(&condition));
        }
    }
    all
}

/// What is not there, and what this registry does not know.
fn absent() -> Vec<Ask> {
    let nobody = digest(b"nobody has it");
    let mut all = Vec::new();
    for target in [
        "/v2/skopeo/manifests/no-such".to_owned(),
        format!("/v2/skopeo/manifests/{nobody}"),
        "/v2/no/such/manifests/1".to_owned(),
        format!("/v2/no/such/manifests/{nobody}"),
        format!("/v2/skopeo/blobs/{nobody}"),
        format!("/v2/no/such/blobs/{nobody}"),
        // Another repository's.
        format!("/v2/skopeo/blobs/{}", digest(&layer("docker/app"))),
        "/v2/no/such/tags/list".to_owned(),
        format!("/v2/skopeo/referrers/{nobody}"),
        format!("/v2/skopeo/referrers/{}?artifactType=application%2Fvnd.example", digest(&manifest("skopeo", OCI))),
        format!("/v2/skopeo/manifests/sha512:{}", "a".repeat(128)),
        format!("/v2/skopeo/blobs/sha512:{}", "a".repeat(128)),
        format!("/v2/{}/tags/list", vec!["a"; 128].join("/")),
        "/_ping".to_owned(),
        "/v1/_ping".to_owned(),
    ] {
        all.push(get(&target).with(REPEATED));
        all.push(head(&target).with(REPEATED));
    }
    all.push(get("/_ping").anonymous());
    all
}

/// HTTP/1.0, as old scripts and load balancers speak it.
fn old() -> Vec<Ask> {
    let layer = digest(&layer("docker/app"));
    let nobody = digest(b"nobody has it");
    let mut all = Vec::new();
    for target in [
        "/v2/".to_owned(),
        "/v2".to_owned(),
        "/v2/_catalog?n=3".to_owned(),
        "/v2/skopeo/tags/list".to_owned(),
        "/v2/skopeo/manifests/1".to_owned(),
        "/v2/skopeo/manifests/no-such".to_owned(),
        format!("/v2/docker/app/blobs/{layer}"),
        format!("/v2/docker/app/blobs/{nobody}"),
    ] {
        for method in ["GET", "HEAD"] {
            all.push(Ask::new(method, &target).with(REPEATED).version("1.0"));
            all.push(Ask::new(method, &target).with(REPEATED).with("Connection: keep-alive").version("1.0"));
        }
    }
    all.push(get(format!("/v2/docker/app/blobs/{layer}")).with("Range: bytes=5-9").version("1.0"));
    all.push(get(format!("/v2/docker/app/blobs/{layer}")).with("Range: bytes=999999999-").version("1.0"));
    all.push(Ask::new("POST", "/v2/old/blobs/uploads/").version("1.0").body("").save("old"));
    let octets = "Content-Type: application/octet-stream";
    all.push(Ask::new("PATCH", "{old}").version("1.0").with(octets).body("old").save("old"));
    all.push(Ask::new("PUT", format!("{{old}}&digest={}", digest(b"old"))).version("1.0").body(""));
    all.push(get(format!("/v2/old/blobs/{}", digest(b"old"))).version("1.0"));
    all.push(Ask::new("DELETE", format!("/v2/old/blobs/{}", digest(b"old"))).version("1.0"));
    all
}
