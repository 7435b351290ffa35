//! Client certificates: who comes, without a password.

use std::fs;

use super::{TARGET, World, authority, request, s_client};
use crate::support::http::basic;
use crate::support::pki::{Authority, Key};
use crate::support::secure::Client;
use crate::support::{Service, cmd::Cmd, free_address, htpasswd, program};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
const RULES: &str =
    "[[rule]]\nwho = [\"cert:builder\", \"testuser\"]\nrepositories = [\"secret/**\"]\nactions = [\"pull\"]\n";
const SECRET: &str = "/v2/secret/app/tags/list";

/// A CA of clients, and what the gate's file says of them and of the one user.
fn with_users(world: &World) -> (Authority, String, String) {
    let users = htpasswd(world.dir.path(), LINE);
    let clients = authority(world.dir.path(), "clients");
    let listen = format!("client_ca = {:?}", clients.cert);
    (clients, listen, format!("{RULES}[auth]\nhtpasswd = {users:?}"))
}

#[test]
fn a_certificate_is_a_login_under_a_name_that_no_password_can_have() {
    let world = World::new("tls-clients");
    let (clients, listen, rest) = with_users(&world);
    let builder = clients.issue("builder", &["builder.test"]).unwrap();
    let testuser = clients.issue("testuser", &["testuser.test"]).unwrap();
    let gate = world.gate(&listen, &rest);

    // Twice each, the second time with a resumed session: it is the same client.
    for (identity, status, user) in
        [(Some(&builder), 200, Some("cert:builder")), (Some(&testuser), 403, None), (None, 401, None)]
    {
        let client = Client::new(&world.ca, identity);
        for round in 0..2 {
            let (got, body, resumed) = client.get(gate.addr(), SECRET).unwrap();
            assert_eq!((got, resumed), (status, round == 1), "{user:?}: {}", String::from_utf8_lossy(&body));
        }
        let seen = world.registry.seen();
        let told = seen.last().and_then(|request| request.field("x-portcullis-user").map(str::to_owned));
        if status == 200 {
            assert_eq!(told.as_deref(), user);
        }
    }
    assert!(gate.says("\"user\":\"cert:builder\"") && gate.says("\"verdict\":\"certificate\""), "{}", gate.log());

    // Credentials, where they are given, decide: right ones for another user, and wrong ones.
    let curl = |user: &str| {
        let url = format!("https://localhost:{}{SECRET}", gate.addr().port());
        let cmd = Cmd::new("curl").args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        let cmd =
            cmd.arg("--cacert").arg(&world.ca.cert).arg("--cert").arg(&builder.cert).arg("--key").arg(&builder.key);
        cmd.arg("--header").secret_arg(format!("Authorization: {}", basic(user))).arg(url).run().unwrap()
    };
    assert_eq!((curl(CREDS).as_str(), curl("testuser:wrong").as_str()), ("200", "401"));
    assert_eq!(world.registry.seen().last().unwrap().field("x-portcullis-user"), Some("testuser"));
}

/// nginx took up the session of one server at another, which asks for certificates of other authorities.
#[test]
fn a_session_of_one_listener_is_none_at_another() {
    let world = World::new("tls-crossing");
    let (clients, _, rest) = with_users(&world);
    let others = authority(world.dir.path(), "others");
    let builder = clients.issue("builder", &["builder.test"]).unwrap();
    let addrs = [(); 3].map(|()| free_address().unwrap());
    let asks = [format!("client_ca = {:?}", clients.cert), format!("client_ca = {:?}", others.cert), String::new()];
    let (cert, key) = (&world.identity.cert, &world.identity.key);
    let listeners = addrs.iter().zip(&asks).map(|(addr, ask)| {
        format!("[[listen]]\naddress = \"{addr}\"\ntls = [{{ cert = {cert:?}, key = {key:?} }}]\n{ask}\n")
    });
    let config = world.dir.path().join("crossing.toml");
    fs::write(&config, listeners.collect::<String>() + &rest).unwrap();
    let cmd = Cmd::new(program()).args(["serve", "--admin", "off", "--backend", &world.registry.url(), "--config"]);
    let mut gate = Service::start("portcullis-serve", cmd.arg(&config), world.dir.path()).unwrap();
    addrs.iter().for_each(|addr| gate.wait_listening(*addr).unwrap());

    let client = Client::new(&world.ca, Some(&builder));
    let get = |n: usize| client.get(addrs[n], SECRET).map(|(status, _, resumed)| (status, resumed));
    assert_eq!((get(0).unwrap(), get(0).unwrap()), ((200, false), (200, true)));
    assert!(get(1).is_err(), "a certificate that this listener does not know");
    assert_eq!(get(0).unwrap().0, 200);
    assert_eq!(get(2).unwrap(), (401, false), "nobody was asked for a certificate here");
    assert!(!gate.log().contains("panicked"), "{}", gate.log());
}

#[test]
fn a_certificate_that_nobody_vouches_for_ends_the_handshake() {
    let world = World::new("tls-strangers");
    let (clients, listen, rest) = with_users(&world);
    let gate = world.gate(&listen, &rest);
    let foreign = authority(world.dir.path(), "foreign").issue("builder", &["builder.test"]).unwrap();
    let expired = clients.issue_as("builder", &["builder.test"], Key::P256, -1).unwrap();
    let before = world.registry.seen().len();
    for (identity, version) in [(&foreign, "-tls1_3"), (&foreign, "-tls1_2"), (&expired, "-tls1_3")] {
        let (cert, key) = (identity.cert.to_str().unwrap(), identity.key.to_str().unwrap());
        let got = s_client(gate.addr(), &[version, "-cert", cert, "-key", key], &request(TARGET));
        assert!(got.contains("alert") && !got.contains("HTTP/1.1"), "{version}\n{got}");
    }
    assert_eq!(world.failures("certificate"), 3, "{}", gate.log());
    assert_eq!(world.registry.seen().len(), before);
    assert!(gate.says("no TLS with 127.0.0.1"), "{}", gate.log());
    // Somebody without one is let in as before.
    assert_eq!(Client::new(&world.ca, None).get(gate.addr(), TARGET).unwrap().0, 200);
}
