//! Tables of heads: what is understood, what is refused and with which status.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { head_bytes: 1024, target_bytes: 256, fields: 16 };

/// Feeds a head in the given pieces and says what came of it.
fn run(pieces: &[&[u8]]) -> Result<Option<(String, Framing)>, Reject> {
    let (mut buffer, mut seen) = (Vec::new(), 0);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if let Some(len) = end(&buffer, seen, &LIMITS)? {
            let head = request(&buffer[..len], &LIMITS)?;
            return Ok(Some((format!("{} {}", head.method, head.target), head.framing)));
        }
        seen = buffer.len();
    }
    Ok(None)
}

fn refused(head: &str) -> u16 {
    match run(&[head.as_bytes()]) {
        Err(reject) => reject.status(),
        other => panic!("not refused: {head:?}: {other:?}"),
    }
}

#[test]
fn plain_requests_are_understood() {
    let get = "GET /v2/ HTTP/1.1\r\nHost: r.example:5000\r\n\r\n";
    assert_eq!(run(&[get.as_bytes()]), Ok(Some(("GET /v2/".into(), Framing::None))));
    let put = "PUT /x HTTP/1.1\r\nhost: [::1]:80\r\ncontent-length: 12\r\n\r\n";
    assert_eq!(run(&[put.as_bytes()]), Ok(Some(("PUT /x".into(), Framing::Length(12)))));
    let patch = "PATCH /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\nrest";
    assert_eq!(run(&[patch.as_bytes()]), Ok(Some(("PATCH /x".into(), Framing::Chunked))));
    let old = "GET / HTTP/1.0\r\n\r\n";
    assert_eq!(run(&[old.as_bytes()]), Ok(Some(("GET /".into(), Framing::None))));
}

#[test]
fn every_ambiguity_is_a_400() {
    for head in [
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Authorization\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Real-IP\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
        "\u{16}\u{3}\u{1}",
        "{}",
    ] {
        assert_eq!(refused(head), 400, "{head:?}");
    }
}

#[test]
fn other_refusals_have_their_own_status() {
    for (head, status) in [
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), 505),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n".into(), 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n".into(), 417),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(300)), 414),
        (format!("GET /{}", "x".repeat(2000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(2000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(20)), 431),
    ] {
        assert_eq!(refused(&head), status, "{head:?}");
    }
}

#[test]
fn persistence_follows_version_and_connection() {
    for (head, keep) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, TE\r\nConnection: CLOSE\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", true),
    ] {
        assert_eq!(request(head.as_bytes(), &LIMITS).expect(head).keep_alive, keep, "{head:?}");
    }
}

#[test]
fn responses_are_framed_by_the_rfcs_order() {
    for (method, head, framing, keep) in [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Length(3), true),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::None, true),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Framing::None, true),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", Framing::None, true),
        ("GET", "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n", Framing::Chunked, false),
        ("GET", "HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose, false),
        ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Length(3), false),
    ] {
        assert_eq!(response_end(head.as_bytes(), 0), Ok(Some(head.len())));
        let got = response(head.as_bytes(), method).expect(head);
        assert_eq!((got.framing, got.keep_alive), (framing, keep), "{head:?}");
    }
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 999 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\n",
    ] {
        assert!(response(bad.as_bytes(), "GET").is_err(), "{bad:?}");
    }
    assert!(response_end(b"SSH-2.0", 0).is_err());
}

fn head_like() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just("GET / HTTP/1.1\r\n".to_owned()),
        Just("POST /v2/a/blobs/uploads/ HTTP/1.1\r\n".to_owned()),
        Just("Host: a\r\n".to_owned()),
        Just("Content-Length: 5\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\n".to_owned()),
        "[ -~]{0,6}",
        "[A-Za-z]{1,5}: [ -~]{0,9}\r\n",
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    #[test]
    fn whole_equals_bytes_equals_any_cut(head in head_like(), cut in any::<prop::sample::Index>()) {
        let whole = run(&[&head]);
        let single: Vec<&[u8]> = head.chunks(1).collect();
        prop_assert_eq!(&whole, &run(&single));
        let at = cut.index(head.len() + 1);
        prop_assert_eq!(&whole, &run(&[&head[..at], &head[at..]]));
    }
}
