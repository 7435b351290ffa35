//! A gate between a recording upstream and an auth backend, and what must hold of it whatever happens.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;

use super::PATIENCE;
use super::peers::{Fault, Peer};
use crate::support::cmd::tail;
use crate::support::http::{Connection, basic, get};
use crate::support::raw::read_all;
use crate::support::{Gate, Serve, descriptors, free_address, metric, program, scratch, skips, wait_for};

pub(super) const USER: &str = "testuser:testpassword";
/// Long enough to be spliced.
const BODY: usize = 200_000;
/// Clients at once while a fault lasts.
const CROWD: usize = 12;
/// A gate with one worker keeps up to 16 pipes, each of them two descriptors.
const KEPT_PIPES: usize = 32;
const SLACK: u64 = 24 << 20;

/// What a client saw of an exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seen {
    /// 200, and every byte of the body.
    Whole,
    /// An error that says so.
    Status(u16),
    /// A 200 whose body visibly is not all.
    Cut,
    /// No answer at all.
    Nothing,
}

/// What the gate holds on to.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) descriptors: usize,
    pub(super) pipes: usize,
    rss: u64,
}

pub(super) struct World {
    pub(super) gate: Gate,
    pub(super) admin: SocketAddr,
    pub(super) upstream: Peer,
    pub(super) auth: Peer,
}

/// The body at a target: another one at each.
pub(super) fn body(target: &str) -> Vec<u8> {
    let seed = target.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    (0..BODY as u32).map(|at| ((at ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The word of a healthy auth backend on one of its own requests.
fn judge(head: &str, _: &str) -> (u16, Vec<u8>) {
    if head.contains(&format!("{}\r\n", basic(USER))) {
        (200, b"User authenticated successfully".to_vec())
    } else {
        (401, b"Nobody knows you here".to_vec())
    }
}

pub(super) fn ask(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n{fields}\r\n", basic(USER))
}

impl World {
    pub(super) fn start(config: &str) -> Self {
        Self::start_with(config, |serve| serve)
    }

    pub(super) fn start_with(config: &str, more: impl FnOnce(Serve) -> Serve) -> Self {
        Self::start_by(program(), config, more)
    }

    pub(super) fn start_by(program: &Path, config: &str, more: impl FnOnce(Serve) -> Serve) -> Self {
        let (dir, admin) = (scratch("faults").unwrap(), free_address().unwrap());
        let file = dir.path().join("gate.toml");
        fs::write(&file, config).unwrap();
        let (upstream, auth) = (Peer::start(|_, target| (200, body(target))), Peer::start(judge));
        let serve = Serve::new(program).unwrap().admin(admin).flag("--config", &file).flag("--workers", "1");
        let serve = serve.flag("--kind", "http").flag("--backend", upstream.url()).flag("--auth-backend", auth.url());
        let gate = more(serve).start().unwrap();
        let world = Self { gate, admin, upstream, auth };
        // What a first request makes the gate fetch for good is no leak of a later one.
        world.crowd();
        world.is_well("the start");
        world
    }

    /// Several clients at once, each with a target and a connection of its own.
    pub(super) fn crowd(&self) -> Vec<Seen> {
        let addr = self.gate.addr();
        let clients: Vec<_> = (0..CROWD).map(|n| thread::spawn(move || look(addr, &format!("/{n}")))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    }

    /// The same with a body of their own each.
    pub(super) fn uploads(&self) -> Vec<Seen> {
        let addr = self.gate.addr();
        let clients: Vec<_> = (0..CROWD).map(|n| thread::spawn(move || upload(addr, &format!("/{n}")))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    }

    /// Who has no login, or a wrong one, gets one of these statuses and reaches nobody.
    pub(super) fn strangers_stay_out(&self, fault: Fault, statuses: &[u16]) {
        let before = self.upstream.requests();
        for login in [None, Some("testuser:wrong"), Some("nobody:testpassword")] {
            let got = get(self.gate.addr(), "/forbidden", login).unwrap().status;
            assert!(statuses.contains(&got), "{fault:?}: {got} for {login:?}");
        }
        assert_eq!(self.upstream.requests(), before, "{fault:?}: let in without a login");
    }

    /// Requests are answered as if nothing had been, and no answer is a leftover of another one.
    pub(super) fn is_well(&self, after: &str) {
        wait_for(&format!("served after {after}"), || self.crowd().iter().all(|seen| *seen == Seen::Whole));
        let mut connection = Connection::open(self.gate.addr()).unwrap();
        for target in ["/x", "/y"] {
            let got = connection.exchange(ask("GET", target, "")).unwrap();
            assert!(got.status == 200 && got.body == body(target), "{after}: {target} is another's");
        }
        let named = |head: &String| head.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n") && !head.contains("forbidden");
        let heads = self.upstream.heads();
        let strange = heads.iter().find(|head| !named(head) || head.to_ascii_lowercase().contains("authorization"));
        assert!(strange.is_none(), "{after}: {strange:?} went to the upstream");
    }

    pub(super) fn held(&self) -> Held {
        self.is_at_rest("the start", &["busy", "idle"]);
        held(&self.gate)
    }

    /// The end of what the gate wrote.
    pub(super) fn last_words(&self) -> String {
        tail(&self.gate.log())
    }

    /// All that faults took is back.
    pub(super) fn gave_back(&self, before: &Held, after: &str) {
        self.is_at_rest(after, &["busy", "idle"]);
        let allowed = before.descriptors - before.pipes;
        wait_for(&format!("descriptors given back after {after}"), || {
            let now = held(&self.gate);
            now.descriptors - now.pipes <= allowed && now.pipes <= KEPT_PIPES
        });
        let now = held(&self.gate);
        assert!(now.rss <= before.rss + SLACK, "{after}: {before:?}, then {now:?}");
    }

    /// Nobody is connected, and no connection to the upstream is in one of these states.
    pub(super) fn is_at_rest(&self, after: &str, states: &[&str]) {
        wait_for(&format!("at rest after {after}"), || {
            let url = self.upstream.url();
            let in_state = |state: &&str| {
                let labels = format!("site=\"default\",upstream=\"{url}\",state=\"{state}\"");
                metric(self.admin, &format!("portcullis_upstream_connections{{{labels}}}"))
            };
            metric(self.admin, "portcullis_connections") == 0 && states.iter().map(in_state).sum::<u64>() == 0
        });
    }
}

pub(super) fn held(gate: &Gate) -> Held {
    let links = descriptors(gate.pid()).unwrap_or_default();
    if links.is_empty() {
        skips::skip("only root sees whether all descriptors are back");
    }
    let pipes = links.iter().filter(|link| link.to_string_lossy().starts_with("pipe:")).count();
    Held { descriptors: links.len(), pipes, rss: gate.usage().unwrap().rss }
}

/// One request by a known user on a connection of its own.
pub(super) fn look(addr: SocketAddr, target: &str) -> Seen {
    exchange(addr, target, ask("GET", target, "Connection: close\r\n").as_bytes())
}

/// A body goes up, and the answer is what the target always has.
fn upload(addr: SocketAddr, target: &str) -> Seen {
    let head = ask("PUT", target, &format!("Content-Length: {BODY}\r\nConnection: close\r\n"));
    exchange(addr, target, &[head.as_bytes(), &body(target)].concat())
}

fn exchange(addr: SocketAddr, target: &str, request: &[u8]) -> Seen {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Who is answered early may not get rid of all of it.
    let _ = stream.write_all(request);
    let (got, _) = read_all(&mut stream);
    let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else { return Seen::Nothing };
    let (head, rest) = (String::from_utf8_lossy(&got[..end]).into_owned(), &got[end + 4..]);
    let status: u16 = head.get(9..12).and_then(|code| code.parse().ok()).unwrap();
    if status != 200 {
        return Seen::Status(status);
    }
    let expected = body(target);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    if !chunked && rest == expected {
        return Seen::Whole;
    }
    let has_end = if chunked { rest.ends_with(b"\r\n0\r\n\r\n") } else { rest.len() >= expected.len() };
    assert!(!has_end, "{target} looks whole and is another body");
    assert!(chunked || expected.starts_with(rest), "{target}: what came before the cut is not of this body");
    Seen::Cut
}
