//! Another configuration for a running gate: SIGHUP and `portcullis reload`.

mod files;
mod load;
pub(crate) mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::world::{Room, TAGS};
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, get};
use crate::support::{free_address, wait_for};

#[test]
fn a_changed_rule_holds_for_the_next_request_of_an_open_connection() {
    let room = Room::new();
    let gate = room.start("");
    let mut open = Connection::open(room.addr).unwrap();
    assert_eq!(room.ask(&mut open, "alice"), 200);
    room.configure("[[rule]]\nwho = [\"bob\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]\n");
    assert_eq!(room.ask(&mut open, "alice"), 200, "a file that nobody was told of changes nothing");
    let done = room.reload();
    assert!(done.status.success(), "{}", done.everything());
    assert_eq!(done.text().trim(), "changed: rule");
    assert_eq!(room.ask(&mut open, "alice"), 403);
    assert_eq!(room.ask(&mut open, "bob"), 200);
    room.configure("");
    room.hang_up(&gate);
    wait_for("the rule is gone", || room.ask(&mut open, "alice") == 200);
    assert!(gate.log().contains("reload: changed: rule"), "{}", gate.log());
}

#[test]
fn an_invalid_configuration_changes_nothing_and_says_why() {
    let room = Room::new();
    let gate = room.start("[[rule]]\nwho = [\"alice\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]\n");
    let mut open = Connection::open(room.addr).unwrap();
    assert_eq!(room.ask(&mut open, "alice"), 200);
    let file = room.file.display().to_string();
    let absent = room.dir.path().join("absent").display().to_string();
    for (more, said) in [
        ("[limit]\nhead_byte = 7\n", vec![format!("{file}:10:2: limit: unknown key; did you mean \"limits\"?")]),
        (
            "[verdicts]\nallow_ttl = 60\n[[rule]]\nwho = [\"@ci\"]\nrepositories = [\"a\"]\nactions = [\"pul\"]\n",
            vec![format!("{file}:11:13: verdicts.allow_ttl"), format!("{file}:15:12: rule.actions")],
        ),
        (
            "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = [{ cert = \"absent\", key = \"absent\" }]\n",
            vec![format!("{absent}: No such file")],
        ),
        (
            "[[listen]]\naddress = \"192.0.2.1:1\"\n",
            vec!["cannot listen on 192.0.2.1:1: this machine has no such".into()],
        ),
        ("[[site]]\nhosts = [\"b\"]\nupstreams = [\"http://127.0.0.1:1\"]\n", vec!["cannot reach the upstream".into()]),
    ] {
        room.configure(more);
        let done = room.reload();
        let text = done.everything();
        assert_eq!(done.status.code(), Some(1), "{more}: {text}");
        for line in &said {
            assert!(text.contains(&format!("portcullis: error: {line}")), "{line} in\n{text}");
            assert!(gate.says(&format!("reload: error: {line}")), "{line} in\n{}", gate.log());
        }
        assert_eq!((room.ask(&mut open, "alice"), room.ask(&mut open, "bob")), (200, 403), "{more}");
    }
    std::fs::remove_file(&room.file).unwrap();
    room.hang_up(&gate);
    assert!(gate.says("reload: error: ") && gate.says("the configuration stays as it was"), "{}", gate.log());
    assert_eq!((room.ask(&mut open, "alice"), room.ask(&mut open, "bob")), (200, 403));
}

#[test]
fn no_answer_of_another_authenticator_lives_on() {
    let room = Room::new();
    let (strict, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (no, yes) = (Arc::clone(&strict), Arc::clone(&asked));
    let others = Stub::start(move |_| {
        no.fetch_add(1, Ordering::SeqCst);
        Reply::text(401, "")
    });
    let first = Stub::start(move |_| {
        yes.fetch_add(1, Ordering::SeqCst);
        Reply::text(200, "")
    });
    let (others, first) = (others.unwrap(), first.unwrap());
    room.write(&format!("[auth]\nbackend = \"{}\"\n", first.url()));
    let _gate = room.start_as_written();
    let mut open = Connection::open(room.addr).unwrap();
    assert_eq!(room.ask(&mut open, "alice"), 200);
    room.write(&format!("[auth]\nbackend = \"{}\"\n[blobs]\nbuffer = \"64KiB\"\n", first.url()));
    assert_eq!(room.reload().text().trim(), "changed: blobs");
    assert_eq!(room.ask(&mut open, "alice"), 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "what has nothing to do with logins forgets none");
    room.write(&format!("[auth]\nbackend = \"{}\"\n", others.url()));
    assert_eq!(room.reload().text().trim(), "changed: auth, blobs");
    assert_eq!(room.ask(&mut open, "alice"), 401);
    assert_eq!(strict.load(Ordering::SeqCst), 1);
}

#[test]
fn listeners_come_and_go_and_what_needs_a_restart_is_named() {
    let room = Room::new();
    let _gate = room.start("");
    let (second, mut open) = (free_address().unwrap(), Connection::open(room.addr).unwrap());
    assert_eq!(room.ask(&mut open, "alice"), 200);
    room.configure(&format!("[[listen]]\naddress = \"{second}\"\n"));
    assert_eq!(room.reload().text().trim(), format!("changed: listen {second} (opened)"));
    assert_eq!(get(second, TAGS, Some("alice:secret")).unwrap().status, 200);
    // The first address goes, and the connection that came by it stays.
    let text = room.text("").replace(&room.addr.to_string(), &second.to_string()).replace("workers = 2", "workers = 3");
    std::fs::write(&room.file, text).unwrap();
    let done = room.reload().text();
    assert!(done.contains(&format!("changed: listen {} (closed)", room.addr)), "{done}");
    assert!(done.contains("needs a restart, and stays as it was until then: workers"), "{done}");
    assert_eq!(room.ask(&mut open, "alice"), 200);
    wait_for("the first address is closed", || Connection::open(room.addr).is_err());
    assert_eq!(get(second, TAGS, Some("alice:secret")).unwrap().status, 200);
    assert!(room.reload().text().contains("nothing in the configuration changed\nneeds a restart"));
}

#[test]
fn upstreams_limits_and_logins_change_for_open_connections() {
    let room = Room::new();
    let _gate = room.start("");
    let mut open = Connection::open(room.addr).unwrap();
    assert_eq!(room.ask(&mut open, "alice"), 200);
    let teapot = Stub::start(|_| Reply::text(418, "")).unwrap();
    let text = room.text("[limits]\nfields = 9\n").replace(&room.hello.url(), &teapot.url());
    std::fs::write(&room.file, text).unwrap();
    assert_eq!(room.reload().text().trim(), "changed: site, limits");
    assert_eq!(room.ask(&mut open, "alice"), 418);
    let many = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(9));
    assert_eq!(open.exchange(many).unwrap().status, 431);
}

#[test]
fn only_the_machine_itself_may_reload_and_drain() {
    let room = Room::new();
    let gate = room.start("");
    let post = |target: &str, host: &str, word: &str| {
        let request = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{word}Content-Length: 0\r\n\r\n");
        Connection::open(room.admin).unwrap().exchange(request).unwrap().status
    };
    let own = room.admin.to_string();
    for (target, word) in [("/reload", "reload"), ("/drain", "drain")] {
        let word = format!("X-Portcullis-Admin: {word}\r\n");
        assert_eq!(post(target, &own, ""), 403, "a cross-site form has no field of its own");
        assert_eq!(post(target, &own, "X-Portcullis-Admin: revoke\r\n"), 403);
        assert_eq!(post(target, "evil.example:9180", &word), 403, "a rebound name");
        assert_eq!(post(&format!("{target}?x"), &own, &word), 404);
    }
    assert!(!gate.log().contains("reload:") && !gate.log().contains("stopping"), "{}", gate.log());
    assert_eq!(post("/drain", &own, "X-Portcullis-Admin: drain\r\n"), 200);
    let mut gate = gate;
    wait_for("the gate has drained", || gate.exited().is_some());
    assert!(gate.log().contains("stopping"), "{}", gate.log());
}
