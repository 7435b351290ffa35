//! The walkthrough of 2014: an auth service, a service that has no login, and the gate between them, all told where
//! the others are by the environment of the container of that time.

use crate::support::hello::Stub;
use crate::support::http::{Connection, basic, get};
use crate::support::packages::SETPRIV;
use crate::support::{AuthService, Serve, add_user, htpasswd, misses, program, scratch, wait_for};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";

#[test]
fn the_gate_shows_hello_world_to_the_user_only() {
    if misses(&[SETPRIV]) {
        return;
    }
    let dir = scratch("walkthrough").unwrap();
    let auth = AuthService::start(program(), &htpasswd(dir.path(), LINE)).unwrap();
    let hello = Stub::hello().unwrap();
    let serve = Serve::new(program()).unwrap();
    let serve = serve.env("AUTH_BACKEND", &auth.url()).env("BACKEND", &hello.url()).env("KIND", "http");
    let gate = serve.start().unwrap();

    let stranger = get(gate.addr(), "/", None).unwrap();
    assert_eq!(stranger.status, 401, "{}", gate.log());
    assert!(stranger.field("www-authenticate").is_some_and(|value| value.starts_with("Basic ")), "{stranger:?}");
    let guess = get(gate.addr(), "/", Some("testuser:guess")).unwrap();
    assert_eq!(guess.status, 401);
    assert!(hello.seen().is_empty(), "a request without a login reached the service");

    let user = get(gate.addr(), "/some/page?x=1", Some(CREDS)).unwrap();
    assert_eq!((user.status, user.text().as_str()), (200, "Hello world"), "{}", gate.log());
    let seen = hello.seen();
    assert_eq!(seen[0].target, "/some/page?x=1");
    assert_eq!(seen[0].field("authorization"), None, "the password went on to the service");
    assert_eq!(seen[0].field("x-portcullis-user"), Some("testuser"));
}

#[test]
fn the_auth_service_answers_on_any_path() {
    if misses(&[SETPRIV]) {
        return;
    }
    let dir = scratch("walkthrough").unwrap();
    let auth = AuthService::start(program(), &htpasswd(dir.path(), LINE)).unwrap();
    for target in ["/", "/auth", "/v2/team/app/manifests/latest", "/a/b?c=d"] {
        let right = get(auth.addr(), target, Some(CREDS)).unwrap();
        assert_eq!(right.status, 200, "{target}");
        assert_eq!(right.text().trim_end(), "User authenticated successfully", "{target}");
        for creds in [None, Some("testuser:guess"), Some("nobody:testpassword"), Some("")] {
            let wrong = get(auth.addr(), target, creds).unwrap();
            assert_eq!(wrong.status, 401, "{target} with {creds:?}");
            let challenge = wrong.field("www-authenticate");
            assert!(challenge.is_some_and(|value| value.starts_with("Basic realm=")), "{wrong:?}");
        }
    }
}

#[test]
fn the_auth_service_takes_a_changed_file() {
    if misses(&[SETPRIV]) {
        return;
    }
    let dir = scratch("walkthrough").unwrap();
    let file = htpasswd(dir.path(), LINE);
    let auth = AuthService::start(program(), &file).unwrap();
    let status = |creds| get(auth.addr(), "/", Some(creds)).unwrap().status;
    assert_eq!((status(CREDS), status("bob:secret words")), (200, 401));
    add_user(program(), dir.path(), "bob", "secret words").unwrap();
    wait_for("the new user may enter", || status("bob:secret words") == 200);
    std::fs::write(&file, "half a line").unwrap();
    std::fs::write(&file, "").unwrap();
    wait_for("who was removed may not", || status(CREDS) == 401);
}

#[test]
fn the_auth_service_keeps_its_connection_open() {
    if misses(&[SETPRIV]) {
        return;
    }
    let dir = scratch("walkthrough").unwrap();
    let auth = AuthService::start(program(), &htpasswd(dir.path(), LINE)).unwrap();
    let mut connection = Connection::open(auth.addr()).unwrap();
    let host = auth.addr();
    let authorization = basic(CREDS);
    for (field, status) in [(String::new(), 401), (format!("Authorization: {authorization}\r\n"), 200)] {
        let request = format!("GET /auth HTTP/1.1\r\nHost: {host}\r\n{field}\r\n");
        assert_eq!(connection.exchange(&request).unwrap().status, status);
    }
}
