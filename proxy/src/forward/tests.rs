//! What is written for the upstream and for the client, byte for byte.

use super::*;
use crate::http::head::{self, Limits};
use crate::policy::Policy;
use crate::verdict::{Answer, decide};

const LIMITS: Limits = Limits { head_bytes: 4096, target_bytes: 256, fields: 50 };

fn permit() -> Permit {
    decide(&Answer::Known(Principal::User("alice".into()).into()), &Policy::default(), &[]).expect("a permit")
}

fn forwarded(request: &str) -> String {
    let head = head::request(request.as_bytes(), &LIMITS).expect(request);
    let from = Downstream {
        peer: [192, 0, 2, 7].into(),
        secure: true,
        certificate: None,
        host: head.host.unwrap_or("up:5000"),
        told: &[],
    };
    let mut out = Vec::new();
    request_head(&permit(), &head, head.target, &from, &mut out);
    String::from_utf8(out).expect("text")
}

const ASSERTED: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                        X-Forwarded-Host: r.example\r\nX-Portcullis-User: alice\r\n";

#[test]
fn a_request_is_written_anew() {
    let got = forwarded(
        "PATCH /v2/a/blobs/uploads/1?_state=x HTTP/1.1\r\nHost: r.example\r\nAuthorization: Basic YTpi\r\n\
         Accept: a\r\naccept: b\r\nAccept-Encoding: gzip\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\
         TE: trailers\r\nConnection: TE\r\nUpgrade: x\r\nKeep-Alive: 1\r\nRange: bytes=1-\r\n\r\n",
    );
    let want = format!(
        "PATCH /v2/a/blobs/uploads/1?_state=x HTTP/1.1\r\nHost: r.example\r\nAccept: a\r\naccept: b\r\n\
         Accept-Encoding: gzip\r\nRange: bytes=1-\r\n{ASSERTED}Transfer-Encoding: chunked\r\n\r\n"
    );
    assert_eq!(got, want);
}

#[test]
fn nothing_that_the_gate_asserts_is_believed_from_a_client() {
    let got = forwarded(
        "PUT / HTTP/1.1\r\nHost: r.example\r\nX-Forwarded-For: 1.2.3.4\r\nx_forwarded_for: 1.2.3.4\r\n\
         X-Forwarded-Anything: x\r\nForwarded: for=1.2.3.4\r\nX-Real-Ip: 1.2.3.4\r\nX_PORTCULLIS_USER: root\r\n\
         X-Portcullis-User: root\r\nProxy: http://evil\r\nTransfer_Encoding: chunked\r\nContent_Length: 9\r\n\
         Content-Length: 2\r\n\r\n",
    );
    assert_eq!(got, format!("PUT / HTTP/1.1\r\nHost: r.example\r\n{ASSERTED}Content-Length: 2\r\n\r\n"));
}

fn returned(response: &str, method: &str, version: Version) -> (String, ResponsePlan) {
    let head = head::response(response.as_bytes(), method).expect(response);
    let plan = plan_response(&head, version, true);
    let own = OwnOrigin { authorities: ["127.0.0.1:5000", "r.example"], public_url: None };
    let mut out = Vec::new();
    response_head(&head, &plan, version, &own, &mut out);
    (String::from_utf8(out).expect("text"), plan)
}

#[test]
fn a_response_keeps_its_fields_and_loses_its_hops() {
    let (head, plan) = returned(
        "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
         Content-Length: 3\r\n\r\n",
        "GET",
        Version::Http11,
    );
    assert_eq!(head, "HTTP/1.1 200 OK\r\nServer: x\r\nDate: d\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(plan, ResponsePlan { framing: Framing::Length(3), keep_alive: true });
    let (head, _) = returned("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD", Version::Http11);
    assert!(head.contains("Content-Length: 3\r\n"), "{head}");
}

#[test]
fn an_old_client_gets_no_chunks() {
    let (head, plan) = returned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", Version::Http10);
    assert_eq!(head, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    assert_eq!(plan, ResponsePlan { framing: Framing::UntilClose, keep_alive: false });
    let (head, _) = returned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", Version::Http10);
    assert!(head.contains("Connection: keep-alive\r\n"), "{head}");
}

#[test]
fn a_body_that_ends_with_its_connection_goes_on_in_chunks() {
    let (head, plan) = returned("HTTP/1.0 200 OK\r\n\r\n", "GET", Version::Http11);
    assert_eq!(head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(plan, ResponsePlan { framing: Framing::Chunked, keep_alive: true });
    let (head, plan) = returned("HTTP/1.0 200 OK\r\n\r\n", "GET", Version::Http10);
    assert_eq!(head, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    assert_eq!(plan, ResponsePlan { framing: Framing::UntilClose, keep_alive: false });
}

#[test]
fn a_wish_for_another_protocol_crosses_only_where_it_may() {
    let wish = |protocol: &str| {
        forwarded(&format!("GET / HTTP/1.1\r\nHost: r.example\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n"))
    };
    let plain = format!("GET / HTTP/1.1\r\nHost: r.example\r\n{ASSERTED}");
    assert_eq!(wish("websocket"), format!("{plain}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    assert_eq!(wish("h2c"), format!("{plain}\r\n"));
    let answer = "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nX-A: b\r\n\
                  Content-Length: 5\r\n\r\n";
    let mut out = Vec::new();
    switched_head(&head::response(answer.as_bytes(), "GET").expect(answer), &mut out);
    let want = "HTTP/1.1 101 Go\r\nX-A: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(String::from_utf8(out).expect("text"), want);
}

#[test]
fn only_the_upstreams_own_locations_are_rewritten() {
    let own = OwnOrigin { authorities: ["127.0.0.1:5000", "r.example"], public_url: None };
    for (from, to) in [
        ("http://127.0.0.1:5000/v2/a?x=1", "/v2/a?x=1"),
        ("https://R.EXAMPLE/v2/a", "/v2/a"),
        ("https://r.example", "/"),
        ("https://r.example?x", "/?x"),
        ("/v2/a", "/v2/a"),
        ("https://s3.example/bucket?sig=%2F", "https://s3.example/bucket?sig=%2F"),
        ("https://r.example.evil/v2/", "https://r.example.evil/v2/"),
        ("https://r.example@evil/v2/", "https://r.example@evil/v2/"),
        ("//evil/v2/", "//evil/v2/"),
    ] {
        assert_eq!(location(from.as_bytes(), &own), to.as_bytes(), "{from}");
    }
    let own = OwnOrigin { public_url: Some("https://pub.example:8443"), ..own };
    assert_eq!(&*location(b"http://127.0.0.1:5000/v2/a", &own), b"https://pub.example:8443/v2/a");
    assert_eq!(&*location(b"/v2/a", &own), b"https://pub.example:8443/v2/a");
}
