//! Who gets in: the whole table of what an auth backend may answer, credentials on open lines, and changed password files.

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, Response, basic, get};
use crate::support::raw::{Raw, read_head, say};
use crate::support::{Gate, Serve, htpasswd, program, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
const TAGS: &str = "/v2/team/app/tags/list";

/// A gate before a registry that says "ok" to everything, asking `backend`, patient for half a second.
fn gate(registry: &Stub, backend: &str) -> Gate {
    let dir = scratch("admission").unwrap();
    let config = dir.path().join("gate.toml");
    fs::write(&config, "[limits]\nauth_timeout = \"500ms\"\nconnect_timeout = \"500ms\"\n").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config);
    serve.flag("--backend", registry.url()).flag("--auth-backend", backend).start().unwrap()
}

fn registry() -> Stub {
    Stub::start(|_| Reply::text(200, "ok")).unwrap()
}

#[test]
fn only_a_clear_yes_of_the_backend_lets_a_request_through() {
    for (status, seen) in [
        (200, 200),
        (204, 200),
        (299, 200),
        (401, 401),
        (403, 403),
        (429, 429),
        (302, 503),
        (400, 503),
        (404, 503),
        (407, 503),
        (500, 503),
        (502, 503),
        (503, 503),
    ] {
        let backend = Stub::start(move |_| Reply::text(status, "").with("Location", "/elsewhere")).unwrap();
        let registry = registry();
        let gate = gate(&registry, &backend.url());
        let got = get(gate.addr(), TAGS, Some(CREDS)).unwrap();
        assert_eq!(got.status, seen, "the backend said {status}: {}", gate.log());
        assert_eq!(!registry.seen().is_empty(), seen == 200, "the backend said {status}");
        assert_eq!(backend.seen().len(), 1, "the backend said {status}: a redirect is not followed");
        if seen != 200 {
            assert!(got.text().starts_with("{\"errors\":[{\"code\":\""), "{}", got.text());
        }
        assert_eq!(got.field("retry-after").is_some(), seen == 429 || seen == 503, "the backend said {status}");
        assert_eq!(got.field("www-authenticate").is_some(), seen == 401, "the backend said {status}");
    }
}

#[test]
fn a_backend_that_makes_no_sense_is_no_yes() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(70_000));
    for nonsense in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "220 smtp\r\n",
        &large,
        &endless,
    ] {
        let text = nonsense.to_owned();
        let backend = Raw::start(move |_, mut stream| {
            read_head(&mut stream);
            say(&mut stream, &text);
        });
        let registry = registry();
        let gate = gate(&registry, &backend.url());
        let got = get(gate.addr(), TAGS, Some(CREDS)).unwrap();
        assert_eq!(got.status, 503, "{:?}", nonsense.get(..40));
        assert!(registry.seen().is_empty());
    }
}

#[test]
fn a_silent_or_missing_backend_is_503_in_time_but_the_login_page_stays() {
    let silent = Raw::start(|_, mut stream| {
        read_head(&mut stream);
        thread::sleep(Duration::from_secs(5));
    });
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for backend in [silent.url(), format!("http://{gone}")] {
        let registry = registry();
        let gate = gate(&registry, &backend);
        let began = Instant::now();
        assert_eq!(get(gate.addr(), TAGS, Some(CREDS)).unwrap().status, 503);
        assert_eq!(get(gate.addr(), TAGS, None).unwrap().status, 503);
        assert!(began.elapsed() < Duration::from_secs(4), "it did not give up");
        // docker would take anything else here for "no login needed".
        let base = get(gate.addr(), "/v2/", None).unwrap();
        assert_eq!(base.status, 401);
        assert!(base.field("www-authenticate").is_some_and(|value| value.starts_with("Basic realm=")));
        assert_eq!(get(gate.addr(), "/v2/", Some(CREDS)).unwrap().status, 503);
        assert!(registry.seen().is_empty());
    }
}

#[test]
fn the_backend_is_told_what_it_needs_and_nothing_else() {
    let backend = Stub::start(|_| Reply::text(200, "")).unwrap();
    let registry = registry();
    let gate = gate(&registry, &backend.url());
    let request = format!(
        "PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: r.example:5000\r\nAuthorization: {}\r\nCookie: secret\r\n\
         X-Docker-Token: secret\r\nX-Original-URI: /lie\r\nX-Original-Method: GET\r\nX-Real-IP: 1.2.3.4\r\n\
         X_Original_URI: /lie\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: 2\r\n\r\n{{}}",
        basic(CREDS)
    );
    assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&request).unwrap().status, 200);
    let seen = backend.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.body.len()), ("GET", "/auth", 0));
    for (name, value) in [
        ("authorization", basic(CREDS).as_str()),
        ("x-original-uri", "/v2/team/app/manifests/v1"),
        ("x-original-method", "PUT"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "r.example:5000"),
    ] {
        assert_eq!(seen.field(name), Some(value), "{name}");
    }
    let names: Vec<String> = seen.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    for absent in ["content-length", "content-type", "transfer-encoding", "cookie", "x-docker-token", "x_original_uri"]
    {
        assert!(!names.iter().any(|name| name == absent), "{absent}: {names:?}");
    }
    assert_eq!(seen.fields.iter().filter(|(_, value)| value == "/lie" || value == "1.2.3.4").count(), 0);
}

#[test]
fn the_backends_own_challenge_is_relayed() {
    let backend = Stub::start(|_| Reply::text(401, "who?").with("WWW-Authenticate", "Basic realm=\"LDAP\"")).unwrap();
    let registry = registry();
    let gate = gate(&registry, &backend.url());
    let got = get(gate.addr(), "/v2/", None).unwrap();
    assert_eq!((got.status, got.field("www-authenticate")), (401, Some("Basic realm=\"LDAP\"")));
    assert_eq!(got.field("docker-distribution-api-version"), Some("registry/2.0"));
}

/// An address of this machine that is not loopback, if it has one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: connecting only chooses the address that would be used.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn an_open_line_never_asks_for_a_password_and_takes_none() {
    let Some(address) = own_address() else {
        crate::support::skips::skip("this machine has only loopback addresses");
        return;
    };
    let registry = registry();
    let dir = scratch("plaintext").unwrap();
    let users = htpasswd(dir.path(), LINE);
    let port = xtask::lab::process::free_port().unwrap();
    let open = format!("{address}:{port}");
    let serve = |allow: bool| {
        let serve = Serve::new(program()).unwrap().flag("--backend", registry.url()).flag("--htpasswd", &users);
        let serve = serve.flag("--listen", &open);
        if allow { serve.switch("--allow-plaintext-credentials") } else { serve }.start().unwrap()
    };
    let gate = serve(false);
    for creds in [None, Some(CREDS), Some("testuser:wrong")] {
        let got = get(open.parse().unwrap(), "/v2/", creds).unwrap();
        assert_eq!((got.status, got.field("www-authenticate")), (403, None), "{creds:?}");
        assert!(got.text().contains("https://"), "{}", got.text());
    }
    assert!(registry.seen().is_empty());
    // The loopback listener of the same gate is not an open line.
    assert_eq!(get(gate.addr(), "/v2/", Some(CREDS)).unwrap().status, 200);
    drop(gate);
    let _gate = serve(true);
    assert_eq!(get(open.parse().unwrap(), "/v2/", None).unwrap().status, 401);
    assert_eq!(get(open.parse().unwrap(), "/v2/", Some(CREDS)).unwrap().status, 200);
}

/// Asks until the answer has this status, for at most ten seconds.
fn until(status: u16, ask: impl Fn() -> Response) -> Response {
    let began = Instant::now();
    loop {
        let got = ask();
        if got.status == status || began.elapsed() > Duration::from_secs(10) {
            return got;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_changed_password_file_counts_and_a_broken_one_changes_nothing() {
    let registry = registry();
    let dir = scratch("re-read").unwrap();
    let users = htpasswd(dir.path(), LINE);
    let serve = Serve::new(program()).unwrap().flag("--backend", registry.url());
    let gate = serve.flag("--htpasswd", &users).start().unwrap();
    let ask = |creds: &str| get(gate.addr(), "/v2/", Some(creds)).unwrap();
    assert_eq!(ask(CREDS).status, 200);
    assert_eq!(ask("bob:testpassword").status, 401);

    let mut file = fs::OpenOptions::new().append(true).open(&users).unwrap();
    writeln!(file, "bob:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.").unwrap();
    assert_eq!(until(200, || ask("bob:testpassword")).status, 200, "{}", gate.log());

    fs::write(&users, "testuser:$apr1$half").unwrap();
    let began = Instant::now();
    while !gate.log().contains("stay") && began.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(100));
    }
    assert!(gate.says("users.htpasswd:1: "), "{}", gate.log());
    assert_eq!(ask(CREDS).status, 200, "the users of the last good file stay");

    fs::write(&users, "bob:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\n").unwrap();
    // At once, though the yes of before had a minute to live.
    assert_eq!(until(401, || ask(CREDS)).status, 401, "{}", gate.log());
}

#[test]
fn fields_of_the_backend_are_passed_on_and_a_clients_own_are_not() {
    let backend = Stub::start(|_| {
        let reply = Reply::text(200, "").with("X-Auth-User", "alice").with("X-Auth-Mail", "a@example.com");
        reply.with("Set-Cookie", "s=1").with("X-Other", "no")
    })
    .unwrap();
    let registry = registry();
    let dir = scratch("copy-headers").unwrap();
    let config = dir.path().join("gate.toml");
    fs::write(&config, "[auth]\ncopy_headers = [\"X-Auth-User\", \"x-auth-mail\", \"X-Auth-Groups\"]\n").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", registry.url());
    let gate = serve.flag("--auth-backend", backend.url()).start().unwrap();
    let request = format!(
        "GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nX-Auth-User: root\r\nx_auth_user: root\r\n\
         X-AUTH-GROUPS: root\r\nX_Auth_Groups: root\r\n\r\n",
        basic(CREDS)
    );
    // The second verdict comes from the cache, with all that belongs to it.
    for _ in 0..2 {
        assert_eq!(Connection::open(gate.addr()).unwrap().exchange(&request).unwrap().status, 200);
    }
    assert_eq!(backend.seen().len(), 1);
    for seen in registry.seen() {
        assert_eq!(seen.fields.iter().filter(|(_, value)| value == "root").count(), 0, "{:?}", seen.fields);
        assert_eq!(seen.field("x-auth-user"), Some("alice"));
        assert_eq!(seen.field("x-auth-mail"), Some("a@example.com"));
        for absent in ["set-cookie", "x-other", "x-auth-groups"] {
            assert_eq!(seen.field(absent), None, "{absent}");
        }
    }
}

/// Passwords are checked on threads of their own: users whose verdict is remembered do not wait behind a flood of guesses.
#[test]
fn a_flood_of_guesses_does_not_hold_up_remembered_users() {
    let registry = registry();
    let dir = scratch("flood").unwrap();
    let users = xtask::lab::gate::add_user(program(), dir.path(), "alice", "right").unwrap();
    let config = dir.path().join("gate.toml");
    fs::write(&config, "[limits]\nfailed_logins = 0\nhash_threads = 1\nhash_queue = 4\n").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", registry.url());
    let gate = serve.flag("--htpasswd", &users).start().unwrap();
    assert_eq!(get(gate.addr(), TAGS, Some("alice:right")).unwrap().status, 200);
    let addr = gate.addr();
    let guesses: Vec<_> = (0..8)
        .map(|n| {
            thread::spawn(move || {
                (0..6).map(|i| get(addr, TAGS, Some(&format!("alice:{n}-{i}"))).unwrap().status).collect()
            })
        })
        .collect();
    let mut served = 0;
    while guesses.iter().any(|guess: &thread::JoinHandle<Vec<u16>>| !guess.is_finished()) {
        assert_eq!(get(addr, TAGS, Some("alice:right")).unwrap().status, 200);
        served += 1;
    }
    let answers: Vec<u16> = guesses.into_iter().flat_map(|guess| guess.join().unwrap()).collect();
    assert!(answers.iter().all(|status| [401, 503].contains(status)), "{answers:?}");
    assert!(answers.contains(&503), "the queue was never full: {answers:?}");
    let checked = answers.iter().filter(|&&status| status == 401).count();
    assert!(served > 10 * checked, "{served} remembered requests while {checked} guesses were checked");
}

#[test]
fn an_open_line_can_send_people_to_the_encrypted_one() {
    let registry = registry();
    let dir = scratch("redirect").unwrap();
    let port = xtask::lab::process::free_port().unwrap();
    let config = dir.path().join("gate.toml");
    let listen = format!("[[listen]]\naddress = \"127.0.0.1:{port}\"\nredirect = \"https://r.example\"\n");
    fs::write(&config, listen).unwrap();
    let users = htpasswd(dir.path(), LINE);
    let mut command = std::process::Command::new(program());
    command.args(["serve", "--admin", "off", "--access-log", "off", "--config"]).arg(&config);
    command.arg("--htpasswd").arg(&users).args(["--backend", &registry.url()]);
    let mut gate = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let addr: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let began = Instant::now();
    while std::net::TcpStream::connect(addr).is_err() && began.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
    }
    for creds in [None, Some(CREDS)] {
        let got = get(addr, "/v2/a/tags/list?n=3", creds).unwrap();
        assert_eq!((got.status, got.field("location")), (308, Some("https://r.example/v2/a/tags/list?n=3")));
        assert_eq!(got.field("www-authenticate"), None);
    }
    gate.kill().unwrap();
    gate.wait().unwrap();
    assert!(registry.seen().is_empty());
}

#[test]
fn questions_to_the_backend_share_a_connection() {
    let backend = Raw::start(|_, mut stream| {
        while !read_head(&mut stream).is_empty() {
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let registry = registry();
    let gate = gate(&registry, &backend.url());
    // One client connection is served by one worker, and each worker keeps connections of its own.
    let mut connection = Connection::open(gate.addr()).unwrap();
    for user in ["a:1", "b:2", "c:3", "d:4"] {
        let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(user));
        assert_eq!(connection.exchange(request).unwrap().status, 200);
    }
    assert_eq!(backend.connections(), 1);
}
