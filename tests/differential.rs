//! The same bytes straight to the real registry and through the gate: the answers are the same, but for a short list.
//!
//! Two registries begin empty and are sent the same requests in the same order, one of them through a gate. What may
//! differ is what [`comparable`] leaves out, each with its reason, and the requests that the gate refuses by design,
//! which are listed in `refused.rs` with what the registry would have said.

mod reading;
mod refused;
mod wire;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::support::cmd::Cmd;
use crate::support::http::basic;
use crate::support::packages::{REGISTRY, SETPRIV};
use crate::support::registry::Registry;
use crate::support::{Gate, Serve, htpasswd, misses, program, scratch};

use wire::{Answer, Line};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
/// The authority in every request's `Host`.
const HOST: &str = "registry.test";

/// One request. `{NAME}` in the target stands for the location that an earlier answer on the same side gave.
#[derive(Debug, Clone)]
struct Ask {
    what: String,
    method: &'static str,
    target: String,
    version: &'static str,
    fields: Vec<String>,
    body: Vec<u8>,
    save: Option<&'static str>,
    anonymous: bool,
}

impl Ask {
    fn new(method: &'static str, target: impl Into<String>) -> Self {
        let (target, fields) = (target.into(), vec![format!("Host: {HOST}")]);
        let what = format!("{method} {target}");
        Self { what, method, target, version: "1.1", fields, body: Vec::new(), save: None, anonymous: false }
    }

    /// Adds field lines, one for each line of the text.
    fn with(mut self, lines: &str) -> Self {
        self.fields.extend(lines.lines().map(|line| line.trim().to_owned()));
        self.what += &format!(" ({})", lines.lines().map(str::trim).collect::<Vec<_>>().join("; "));
        self
    }

    /// Adds bytes between two lines of the head as they are.
    fn raw(mut self, bytes: &str) -> Self {
        self.fields.push(bytes.to_owned());
        self.what += &format!(" ({bytes:?})");
        self
    }

    /// Adds a body with its length.
    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.fields.push(format!("Content-Length: {}", self.body.len()));
        self
    }

    /// Adds a body in chunks of this size.
    fn chunked(mut self, body: impl Into<Vec<u8>>, size: usize) -> Self {
        for piece in body.into().chunks(size) {
            self.body.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        self.body.extend_from_slice(b"0\r\n\r\n");
        self.fields.push("Transfer-Encoding: chunked".into());
        self
    }

    fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Remembers the answer's location under this name.
    fn save(mut self, name: &'static str) -> Self {
        self.save = Some(name);
        self
    }

    fn anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }
}

/// The registry alone, or the registry behind the gate.
struct Side {
    addr: SocketAddr,
    locations: BTreeMap<&'static str, String>,
    line: Option<Line>,
}

impl Side {
    fn new(addr: SocketAddr) -> Self {
        Self { addr, locations: BTreeMap::new(), line: None }
    }

    /// Sends a request, on the connection of the one before if it is kept, and reads the answer.
    fn send(&mut self, ask: &Ask, keep: bool) -> Answer {
        let mut target = ask.target.clone();
        for (name, location) in &self.locations {
            target = target.replace(&format!("{{{name}}}"), location);
        }
        assert!(!target.contains('{'), "{}: no such location: {:?}", ask.what, self.locations);
        let mut head = format!("{} {target} HTTP/{}\r\n{}\r\n", ask.method, ask.version, ask.fields.join("\r\n"));
        if !ask.anonymous {
            head += &format!("Authorization: {}\r\n", basic(CREDS));
        }
        let bytes = [head.as_bytes(), b"\r\n", &ask.body].concat();
        let mut line = self.line.take().unwrap_or_else(|| Line::open(self.addr));
        let (answer, reusable) = line.exchange(&bytes, ask.method);
        if keep && reusable {
            self.line = Some(line);
        }
        if let (Some(name), Some(location)) = (ask.save, answer.field("location")) {
            let path = location.trim_start_matches("http://").trim_start_matches(HOST);
            self.locations.insert(name, path.to_owned());
        }
        answer
    }
}

/// An answer without what may differ.
fn comparable(answer: &Answer) -> String {
    let mut shown = format!("{} {}\n", answer.status, answer.reason);
    for (name, value) in &answer.fields {
        // The second at which it was answered.
        let is_time = name == "Date";
        // A connection's fields speak of the next hop; the gate keeps its connections by its own rules.
        let is_hop = name == "Connection" || name == "Keep-Alive";
        if !is_time && !is_hop {
            shown += &format!("{name}: {}\n", without_chance(&path_only(name, value)));
        }
    }
    // The version in the status line is that of who writes it: a Go server repeats the client's.
    let whole = if answer.whole { "" } else { "\n(cut)" };
    shown += &format!("\n{}{whole}", without_chance(&String::from_utf8_lossy(&answer.body)));
    let boundary = answer.field("content-type").and_then(|kind| Some(kind.split_once("boundary=")?.1));
    boundary.map_or(shown.clone(), |boundary| shown.replace(boundary, "…"))
}

/// The registry writes the authority that it was asked under into its locations, the gate only the path, which is right
/// under any name and scheme.
fn path_only(name: &str, value: &str) -> String {
    let origin = format!("http://{HOST}");
    if name == "Location" { value.strip_prefix(&origin).unwrap_or(value).to_owned() } else { value.to_owned() }
}

/// Without what a registry draws by lot: the identifier of an upload, its signed state, the boundary of a multipart body.
fn without_chance(text: &str) -> String {
    let text = wire::replace(text, "_state=", |c| c.is_ascii_alphanumeric() || "-_=%".contains(c), "_state=…");
    wire::replace_uuids(&text)
}

fn gate(registry: &Registry) -> Gate {
    let dir = scratch("differential").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--backend", registry.url());
    serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

fn requests() -> Vec<Ask> {
    let mut all = writing::pushes();
    all.extend(reading::all());
    all.extend(writing::errors());
    all.extend(writing::deletions());
    all
}

fn run(keep: bool) {
    if misses(&[REGISTRY, SETPRIV]) {
        return;
    }
    let (alone, behind) = (Registry::start().unwrap(), Registry::start().unwrap());
    let gate = gate(&behind);
    let (mut straight, mut through) = (Side::new(alone.addr()), Side::new(gate.addr()));
    let (mut differences, mut statuses) = (Vec::new(), BTreeSet::new());
    let asks = requests();
    for ask in &asks {
        let (left, right) = (straight.send(ask, keep), through.send(ask, keep));
        statuses.insert(left.status);
        let (left, right) = (comparable(&left), comparable(&right));
        if left != right {
            differences.push(format!("=== {}\n--- the registry\n{left}\n--- through the gate\n{right}\n", ask.what));
        }
    }
    assert!(differences.is_empty(), "{} of {} differ:\n{}", differences.len(), asks.len(), differences.join("\n"));
    assert!(asks.len() >= 300, "only {} requests", asks.len());
    let wanted = [200, 201, 202, 204, 206, 301, 304, 400, 404, 405, 416];
    assert!(wanted.iter().all(|status| statuses.contains(status)), "only these were seen: {statuses:?}");
}

#[test]
fn the_gate_adds_and_takes_nothing() {
    run(false);
}

#[test]
fn nor_on_connections_that_are_kept() {
    run(true);
}

#[test]
fn what_is_refused_by_design() {
    if misses(&[REGISTRY, SETPRIV]) {
        return;
    }
    let registry = Registry::start().unwrap();
    let gate = gate(&registry);
    // What another version of the registry makes of these is its own affair.
    let known = Cmd::new("docker-registry").arg("--version").run().unwrap().contains(refused::VERSION);
    let mut wrong = Vec::new();
    for (ask, by_registry, by_gate, why) in refused::all() {
        let straight = Side::new(registry.addr()).send(&ask, false).status;
        let through = Side::new(gate.addr()).send(&ask, false).status;
        if through != by_gate || (known && straight != by_registry) {
            wrong.push(format!("{}: {straight} and {through}, not {by_registry} and {by_gate}: {why}", ask.what));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
