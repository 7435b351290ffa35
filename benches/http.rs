//! What understanding and rewriting a message costs: `cargo bench -p portcullis --bench http`.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use portcullis::forward::{self, OwnOrigin};
use portcullis::http::chunked::Decoder;
use portcullis::http::head::{self, Limits};
use portcullis::http::{RequestHead, Version};
use portcullis::registry::endpoint;

/// As docker sends it.
const REQUEST: &[u8] = b"GET /v2/team-a/backend/api/manifests/latest HTTP/1.1\r\nHost: registry.example.com\r\n\
    User-Agent: docker/28.0.1 go/go1.23.6 git-commit/bbd0a17 kernel/6.8.0 os/linux arch/amd64 \
    UpstreamClient(Docker-Client/28.0.1)\r\n\
    Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\
    Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n\
    Accept: application/vnd.oci.image.index.v1+json\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\
    Authorization: Basic YnVpbGRlci0xOmNvcnJlY3QgaG9yc2UgYmF0dGVyeSBzdGFwbGU=\r\nAccept-Encoding: gzip\r\n\r\n";

/// As docker-registry sends it.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 711\r\n\
    Content-Type: application/vnd.oci.image.manifest.v1+json\r\n\
    Docker-Content-Digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n\
    Docker-Distribution-Api-Version: registry/2.0\r\n\
    Etag: \"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\r\n\
    X-Content-Type-Options: nosniff\r\nDate: Mon, 23 Nov 2026 12:00:00 GMT\r\n\r\n";

/// The answer to the begin of an upload: its Location has to be rewritten.
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\
    Docker-Distribution-Api-Version: registry/2.0\r\n\
    Docker-Upload-Uuid: 0a1b2c3d-0000-4000-8000-000000000000\r\n\
    Location: http://registry.example.com/v2/team-a/backend/api/\
    blobs/uploads/0a1b2c3d-0000-4000-8000-000000000000?_state=abc\r\n\
    Range: 0-0\r\n\r\n";

const LIMITS: Limits = Limits { head_bytes: 16 * 1024, target_bytes: 8 * 1024, fields: 100 };

fn parsed(head: &[u8]) -> Option<RequestHead<'_>> {
    head::end(head, 0, &LIMITS).ok()??;
    head::request(head, &LIMITS).ok()
}

fn heads(c: &mut Criterion) {
    assert!(parsed(REQUEST).is_some(), "the request is not one");
    let mut group = c.benchmark_group("request head");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    group.bench_function("find the end", |b| b.iter(|| head::end(black_box(REQUEST), 0, &LIMITS)));
    group.bench_function("parse", |b| b.iter(|| head::request(black_box(REQUEST), &LIMITS)));
    group.bench_function("both", |b| b.iter(|| parsed(black_box(REQUEST))));
    group.finish();

    let own = OwnOrigin { authorities: ["127.0.0.1:5000", "registry.example.com"], public_url: None };
    let mut group = c.benchmark_group("response head");
    for (name, text) in [("manifest", RESPONSE), ("upload begun", ACCEPTED)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(format!("{name}: parse"), |b| b.iter(|| head::response(black_box(text), "GET")));
        let response = head::response(text, "GET").unwrap_or_else(|_| unreachable!("a valid response"));
        let plan = forward::plan_response(&response, Version::Http11, true);
        let mut out = Vec::with_capacity(1024);
        group.bench_function(format!("{name}: rewrite"), |b| {
            b.iter(|| {
                out.clear();
                forward::response_head(black_box(&response), &plan, Version::Http11, &own, &mut out);
            });
        });
    }
    group.finish();
}

fn targets(c: &mut Criterion) {
    let digest = "0".repeat(64);
    let mut group = c.benchmark_group("classify");
    for (name, method, target) in [
        ("manifest by tag", "GET", "/v2/team-a/backend/api/manifests/latest".to_owned()),
        ("blob", "GET", format!("/v2/team-a/backend/api/blobs/sha256:{digest}")),
        ("mount", "POST", format!("/v2/team-a/api/blobs/uploads/?mount=sha256:{digest}&from=team-b%2Fbase")),
        ("none of a registry's", "GET", "/v2/team-a/../secret/manifests/latest".to_owned()),
    ] {
        group.throughput(Throughput::Bytes(target.len() as u64));
        group.bench_function(name, |b| b.iter(|| endpoint::classify(black_box(method), black_box(&target))));
    }
    group.finish();
}

/// A body of `count` chunks of `size` bytes.
fn chunked(count: usize, size: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..count {
        body.extend_from_slice(format!("{size:x}\r\n").as_bytes());
        body.resize(body.len() + size, b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

fn decode(mut input: &[u8]) -> usize {
    let (mut decoder, mut data) = (Decoder::new(), 0);
    while !decoder.is_done() {
        let Ok(decoded) = decoder.decode(input) else { return 0 };
        data += decoded.data.len();
        input = &input[decoded.consumed..];
    }
    data
}

fn chunks(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunks");
    for (count, size) in [(4, 64 * 1024), (64, 4096), (1024, 64)] {
        let body = chunked(count, size);
        assert_eq!(decode(&body), count * size, "the body is not what it should be");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("{count} of {size} bytes"), |b| b.iter(|| decode(black_box(&body))));
    }
    group.finish();
}

criterion_group!(benches, heads, targets, chunks);
criterion_main!(benches);
