//! `portcullis revoke` and the end of it in the gate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::cmd::{Cmd, Output};
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, get};
use crate::support::{Gate, Serve, free_address, program};

const TAGS: &str = "/v2/a/tags/list";

struct World {
    _hello: Stub,
    auth: Stub,
    status: Arc<AtomicU16>,
    admin: SocketAddr,
    gate: Gate,
}

fn world() -> World {
    let status = Arc::new(AtomicU16::new(200));
    let now = Arc::clone(&status);
    let auth = Stub::start(move |_| Reply::text(now.load(Ordering::SeqCst), "")).unwrap();
    let hello = Stub::hello().unwrap();
    let admin = free_address().unwrap();
    let serve = Serve::new(program()).unwrap().admin(admin).flag("--workers", "2");
    let gate = serve.flag("--backend", hello.url()).flag("--auth-backend", auth.url()).start().unwrap();
    World { _hello: hello, auth, status, admin, gate }
}

impl World {
    fn ask(&self, user: &str) -> u16 {
        get(self.gate.addr(), TAGS, Some(&format!("{user}:secret"))).unwrap().status
    }

    /// On many connections, so that every worker has its say.
    fn ask_all_workers(&self, user: &str) -> Vec<u16> {
        let mut seen: Vec<u16> = (0..16).map(|_| self.ask(user)).collect();
        seen.dedup();
        seen
    }

    fn revoke(&self, args: &[&str]) -> Output {
        revoke(self.admin, args)
    }
}

fn revoke(admin: SocketAddr, args: &[&str]) -> Output {
    Cmd::new(program()).arg("revoke").args(args).args(["--admin", &admin.to_string()]).output().unwrap()
}

#[test]
fn a_revoked_user_is_asked_about_again_at_once_and_others_are_not() {
    let world = world();
    assert_eq!(world.ask_all_workers("alice"), [200]);
    assert_eq!(world.ask_all_workers("bob"), [200]);
    assert_eq!(world.auth.seen().len(), 2);
    world.status.store(401, Ordering::SeqCst);
    assert_eq!(world.ask_all_workers("alice"), [200], "from the cache");
    let done = world.revoke(&["--user", "ALICE"]);
    assert!(done.status.success(), "{}", done.everything());
    assert_eq!(world.ask_all_workers("alice"), [401]);
    assert_eq!(world.ask_all_workers("bob"), [200]);
    let done = world.revoke(&["--all"]);
    assert!(done.status.success(), "{}", done.everything());
    assert_eq!(world.ask_all_workers("bob"), [401]);
    assert_eq!(world.auth.seen().len(), 4);
}

#[test]
fn a_page_in_a_browser_cannot_revoke() {
    let world = world();
    let admin = world.admin;
    assert_eq!(world.ask("alice"), 200);
    let post = |target: &str, host: &str, more: &str| {
        let request = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: 0\r\n\r\n");
        Connection::open(admin).unwrap().exchange(request).unwrap().status
    };
    let word = "X-Portcullis-Admin: revoke\r\n";
    let own = admin.to_string();
    assert_eq!(post("/revoke?all", &own, ""), 403, "a cross-site form has no field of its own");
    assert_eq!(post("/revoke?all", "evil.example:9180", word), 403, "a rebound name");
    assert_eq!(post("/revoke?user=a&all", &own, word), 400);
    assert_eq!(post("/revoke", &own, word), 404);
    assert_eq!(post("/elsewhere", &own, word), 404);
    let ask = |method: &str, target: &str| {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: {own}\r\n{word}\r\n");
        Connection::open(admin).unwrap().exchange(request).unwrap().status
    };
    assert_eq!(ask("GET", "/revoke?all"), 404);
    assert_eq!(ask("OPTIONS", "/revoke?all"), 405, "no preflight is answered with a yes");
    assert_eq!(world.ask("alice"), 200);
    assert_eq!(world.auth.seen().len(), 1, "nothing was forgotten");
    assert_eq!(post("/revoke?all", &own, word), 200);
    assert_eq!((world.ask("alice"), world.auth.seen().len()), (200, 2));
}

#[test]
fn what_goes_wrong_is_said_in_one_line() {
    let nobody = free_address().unwrap();
    let hello = Stub::start(|_| Reply::text(404, "no")).unwrap();
    for (admin, args, said) in [
        (nobody, vec!["--all"], "nobody listens there"),
        (hello.addr(), vec!["--all"], "no gate that knows `revoke`"),
        (nobody, vec!["--user", "a:b"], "contains a colon"),
        (nobody, vec![], "required"),
        (nobody, vec!["--user", "a", "--all"], "cannot be used with"),
    ] {
        let output = revoke(admin, &args);
        let text = output.everything();
        assert!(!output.status.success(), "{args:?}: {text}");
        assert!(text.contains(said) && text.trim_end().lines().count() == 1, "{args:?}: {text}");
    }
}
