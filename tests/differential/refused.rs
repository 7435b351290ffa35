//! Requests that the gate does not let pass, with what the registry alone would have made of them, and why.

use super::Ask;
use super::writing::{OCI, config, digest, encoded};

/// The registry whose statuses these are.
pub(super) const VERSION: &str = " 2.8.2";

const GRAMMAR: &str = "not in the distribution grammar, which is matched without decoding or normalising";
const QUERY: &str = "a query that could be read in two ways; every key is known, plain, and there once";
const METHOD: &str = "not a method of this endpoint";
const FRAMING: &str = "two readers could disagree about where it ends, or about what it says";
const FORM: &str = "the registry reads `mount`, `from` and `digest` from a form, past what the rules were asked about";
const SIZE: &str = "over the gate's limits";

/// What is sent, the registry's status, the gate's, and the reason.
pub(super) fn all() -> Vec<(Ask, u16, u16, &'static str)> {
    let get = |target: &str| Ask::new("GET", target);
    let post = |query: &str| Ask::new("POST", format!("/v2/a/blobs/uploads/{query}"));
    let put = |manifest: &[u8]| {
        let ask = Ask::new("PUT", "/v2/a/manifests/long").with(&format!("Content-Type: {OCI}"));
        ask.body(manifest)
    };
    let blob = digest(&config());
    let form = "Content-Type: application/x-www-form-urlencoded";
    vec![
        (get("/v2/").anonymous(), 200, 401, "nobody is logged in"),
        (get("/v2/a/tags/list").anonymous(), 404, 401, "nobody is logged in"),
        (get("/"), 200, 404, GRAMMAR),
        (get("/v1/repositories"), 404, 404, GRAMMAR),
        (get("/v2/../v2/"), 301, 404, GRAMMAR),
        (get("/v2//_catalog"), 301, 404, GRAMMAR),
        (get("/v2/a/../b/tags/list"), 301, 404, GRAMMAR),
        (get("/v2/a/./tags/list"), 301, 404, GRAMMAR),
        (get("/v2/%61/tags/list"), 404, 404, GRAMMAR),
        (get("/v2/a%2Fb/tags/list"), 404, 404, GRAMMAR),
        (get("/v2/A/tags/list"), 404, 404, GRAMMAR),
        (get("/v2/a/tags/list/"), 301, 404, GRAMMAR),
        (get("/v2/a/manifests/-tag"), 404, 404, GRAMMAR),
        (get("/v2/a/manifests/sha256:0"), 500, 404, GRAMMAR),
        (get("/v2/a/blobs/sha256:0"), 400, 404, GRAMMAR),
        (get("/v2/a/blobs/md5:0123456789abcdef0123456789abcdef"), 400, 404, GRAMMAR),
        (get(&format!("/v2/a/blobs/{}", blob.to_uppercase().replace("SHA", "sha"))), 400, 404, GRAMMAR),
        (get("/v2/a/blobs/uploads/..%2f..%2fx"), 301, 404, GRAMMAR),
        (get("/v2/_catalog?n=abc"), 200, 400, QUERY),
        (get("/v2/_catalog?n=-1"), 200, 400, QUERY),
        (get("/v2/_catalog?n=999999999"), 400, 400, SIZE),
        (get("/v2/_catalog?n=1&n=2"), 200, 400, QUERY),
        (get("/v2/_catalog?n=1;last=a"), 200, 400, QUERY),
        (get("/v2/_catalog?%6e=1"), 200, 400, QUERY),
        (get("/v2/_catalog?other=1"), 200, 400, QUERY),
        (get("/v2/?n=1"), 200, 400, QUERY),
        (post(&format!("?mount={blob}&from=b&from=c")).body(""), 202, 400, QUERY),
        (post(&format!("?%6dount={}&from=b", encoded(&blob))).body(""), 202, 400, QUERY),
        (post("?mount=sha256:0&from=b").body(""), 202, 400, QUERY),
        (post(&format!("?mount={blob}&from=..%2Fb")).body(""), 202, 400, QUERY),
        (post("?digest=nonsense").body(""), 202, 400, QUERY),
        (post("").with(form).body(format!("mount={}&from=b", encoded(&blob))), 202, 415, FORM),
        (post("").with("Content-Type: multipart/form-data; boundary=x").body("--x--\r\n"), 202, 415, FORM),
        (Ask::new("OPTIONS", "/v2/"), 200, 405, METHOD),
        (Ask::new("POST", "/v2/").body(""), 200, 405, METHOD),
        (Ask::new("DELETE", "/v2/_catalog"), 405, 405, METHOD),
        (Ask::new("POST", "/v2/a/tags/list").body(""), 405, 405, METHOD),
        (Ask::new("PATCH", "/v2/a/manifests/1").body("{}"), 405, 405, METHOD),
        (Ask::new("PUT", "/v2/a/blobs/uploads/").body(""), 404, 405, METHOD),
        (Ask::new("TRACE", "/v2/"), 200, 405, METHOD),
        (get("http://registry.test/v2/"), 200, 400, FRAMING),
        (get("/v2/").with("Host: other.test"), 400, 400, FRAMING),
        (get("/v2/").raw("X-Folded: a\r\n b"), 200, 400, FRAMING),
        (get("/v2/").raw("X-Bare: a\nX-Line: feed"), 200, 400, FRAMING),
        (get("/v2/").with("Connection: X-Something"), 200, 400, FRAMING),
        (get("/v2/").with("Connection: Upgrade\nUpgrade: websocket"), 200, 400, FRAMING),
        (get("/v2/").with("Content-Length: 0\nContent-Length: 0"), 200, 400, FRAMING),
        (get("/v2/").with("Content-Length: +0"), 400, 400, FRAMING),
        (post("").with("Content-Length: 5").chunked("", 1), 202, 400, FRAMING),
        (post("").version("1.0").chunked("", 1), 202, 400, FRAMING),
        (post("").with("Transfer-Encoding: identity").body(""), 501, 501, FRAMING),
        (get("/v2/").with("Expect: something"), 417, 417, FRAMING),
        (get(&format!("/v2/{}", "a".repeat(9_000))), 404, 414, SIZE),
        (get("/v2/").with(&format!("X-Long: {}", "a".repeat(20_000))), 200, 431, SIZE),
        (get("/v2/").with("X: y\n".repeat(150).trim()), 200, 431, SIZE),
        (put(&[b' '; 5 << 20]), 400, 413, SIZE),
    ]
}
