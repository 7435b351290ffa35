//! Two gates on machines of their own before one registry, and two balancers that pass one address on: HAProxy and
//! keepalived with the files that the packages bring. The registry's guard lets in the gates and nobody else.
//!
//! ```text
//! clients ── front ──┬── lb1, lb2 (one address) ──┬── gate1, gate2 ── back ── in: registry, guard
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::wire::eventually;
use super::world::{BINARY, World};
use crate::support::cmd::{Cmd, Output, tail};
use crate::support::http::basic;
use crate::support::packages::{CURL, HAPROXY, KEEPALIVED, OPENSSL, REGISTRY};
use crate::support::pki::Authority;
use crate::support::secure::Client;
use crate::support::{Service, add_user, misses, root, scratch, wait_for};

const ADMIN: &str = "127.0.0.1:9180";
const GATES: [(&str, u8); 2] = [("gate1", 11), ("gate2", 12)];
const BALANCERS: [(&str, u8); 2] = [("lb1", 21), ("lb2", 22)];
/// The host part of the address that moves.
const VIRTUAL: u8 = 100;
/// The networks: that of the registry, and that of the clients.
const BACK: u8 = 0;
const FRONT: u8 = 1;

const ALICE: &str = "alice:open sesame";
const CAROL: &str = "carol:open sesame";
const BLOB: usize = 6 << 20;

struct Fleet {
    // Before the network that they are in.
    services: BTreeMap<String, Service>,
    world: World,
    client: Client,
    dir: tempfile::TempDir,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if thread::panicking() {
            for (name, service) in &self.services {
                let log = service.log();
                let said: Vec<_> = log.lines().filter(|line| line.starts_with(['p', '[', 'W'])).collect();
                eprintln!("---- {name}\n{}", tail(&said.join("\n")));
            }
        }
    }
}

impl Fleet {
    fn new(test: &str) -> Option<Self> {
        if misses(&[CURL, HAPROXY, KEEPALIVED, OPENSSL, REGISTRY]) {
            return None;
        }
        let world = World::new(test)?;
        let dir = scratch("fleet").unwrap();
        // The gates become nobody, and watch the file of users all the same: what is made here belongs to their group.
        Cmd::new("chgrp").arg("65534").arg(dir.path()).run().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2755)).unwrap();
        lay_cables(&world);
        let ca = Authority::create(dir.path(), "ca").unwrap();
        let identity = ca.issue("registry", &["localhost"]).unwrap();
        fs::set_permissions(identity.key, fs::Permissions::from_mode(0o644)).unwrap();
        add_user(BINARY.as_ref(), dir.path(), "alice", "open sesame").unwrap();
        let backend = dir.path().join("backend");
        fs::create_dir(&backend).unwrap();
        add_user(BINARY.as_ref(), &backend, "carol", "open sesame").unwrap();
        let client = Client::new(&ca, None);
        Some(Self { services: BTreeMap::new(), world, client, dir })
    }

    fn at(&self, network: u8, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.world.address(network, host), port)
    }

    fn front(&self, host: u8) -> SocketAddr {
        self.at(FRONT, host, 443)
    }

    fn inside(&self, space: &str, program: &str) -> Cmd {
        Cmd::new("nsenter").arg(format!("--net=/run/netns/{}", self.world.space(space))).arg(program)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn run(&mut self, name: &str, cmd: Cmd) {
        let service = Service::start(name, cmd, self.dir.path()).unwrap();
        self.services.insert(name.to_owned(), service);
    }

    fn start_registry(&mut self) {
        let (addr, store) = (self.at(BACK, 1, self.world.port), self.dir.path().join("data"));
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{addr}\", secret: fleet}}\n",
            store.display()
        );
        let config = self.file("registry.yml", &text);
        self.run("registry", self.inside("in", "docker-registry").args(["serve", &config]));
        let listen = self.at(BACK, 1, 8000).to_string();
        let users = self.dir.path().join("backend/users.htpasswd");
        let auth = self.inside("in", BINARY).args(["auth-service", "--listen", &listen, "--htpasswd"]).arg(users);
        self.run("portcullis-auth", auth);
        wait_for("the registry and the auth service listen", || {
            self.knock(addr).is_ok() && self.knock(self.at(BACK, 1, 8000)).is_ok()
        });
    }

    /// Comes as a machine of the registry's own network.
    fn knock(&self, to: SocketAddr) -> io::Result<()> {
        self.world.within("out", move || TcpStream::connect_timeout(&to, Duration::from_millis(700)).map(drop))
    }

    fn start_gate(&mut self, name: &str) {
        let dir = self.dir.path().display();
        let peers = BALANCERS.map(|(_, host)| format!("\"{}\"", self.world.address(FRONT, host))).join(", ");
        let text = format!(
            "user = \"nobody\"\nworkers = 2\nadmin = \"{ADMIN}\"\n\
             [[listen]]\naddress = \"0.0.0.0:443\"\nproxy_protocol = [{peers}]\n\
             tls = [{{ cert = \"{dir}/registry.crt\", key = \"{dir}/registry.key\" }}]\n\
             [[site]]\nupstreams = [\"http://{}\"]\n\
             [auth]\nhtpasswd = \"{dir}/users.htpasswd\"\nbackend = \"http://{}\"\n\
             [verdicts]\nallow_ttl = \"1h\"\n\
             [[rule]]\nwho = [\"alice\", \"carol\"]\nrepositories = [\"team-a/**\"]\nactions = [\"pull\", \"push\"]\n",
            self.at(BACK, 1, self.world.port),
            self.at(BACK, 1, 8000),
        );
        let config = self.file(&format!("{name}.toml"), &text);
        let service = format!("portcullis-{name}");
        self.run(&service, self.inside(name, BINARY).args(["serve", "--config", &config]));
        let service = self.services.get_mut(&service).unwrap();
        let log = self.dir.path().join(format!("portcullis-{name}.log"));
        service.wait_until("ready", || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready:"))).unwrap();
    }

    /// The files of the packages, with the addresses of this network.
    fn start_balancer(&mut self, name: &str, host: u8) {
        let prefix = self.world.address(FRONT, 0).to_string();
        let prefix = prefix.strip_suffix('0').unwrap();
        let shipped = |file: &str| {
            let text = fs::read_to_string(root().join("xtask/packaging/fleet").join(file)).unwrap();
            text.replace("192.0.2.", prefix).replace("interface eth0", "interface front0")
        };
        let config = self.file(&format!("{name}.cfg"), &shipped("haproxy.cfg"));
        self.run(&format!("haproxy-{name}"), self.inside(name, "haproxy").args(["-db", "-f", &config]));
        let mut text = shipped("keepalived.conf");
        if host == BALANCERS[1].1 {
            let (one, other) = (format!("{prefix}21"), format!("{prefix}22"));
            text = text.replace(&one, "him").replace(&other, &one).replace("him", &other);
        }
        let config = self.file(&format!("{name}.conf"), &text);
        let pids = ["pid", "vrrp.pid"].map(|end| self.dir.path().join(format!("{name}.{end}")));
        let keepalived = self.inside(name, "keepalived").args(["-n", "-l", "-P", "-f", &config]);
        self.run(&format!("keepalived-{name}"), keepalived.arg("-p").arg(&pids[0]).arg("-r").arg(&pids[1]));
    }

    /// Whose the address is that clients know.
    fn holder(&self) -> Option<&'static str> {
        let address = format!("inet {}/", self.world.address(FRONT, VIRTUAL));
        let has = |space: &str| {
            let space = self.world.space(space);
            Cmd::new("ip").args(["-n", &space, "addr", "show"]).run().is_ok_and(|shown| shown.contains(&address))
        };
        BALANCERS.iter().map(|(name, _)| *name).find(|name| has(name))
    }

    fn kill(&mut self, service: &str) {
        self.services.get_mut(service).unwrap().kill();
    }

    /// Asks one gate, or whoever listens there, from the clients' network.
    fn ask(&self, to: SocketAddr, target: &'static str, login: &'static str) -> Option<u16> {
        let client = self.client.clone();
        let asked = move || exchange(&client, to, &request("GET", target, Some(login)), b"");
        self.world.within("out", asked).ok().map(|answer| answer.status)
    }

    fn revoke(&self, gate: &str, user: &str) -> Output {
        self.inside(gate, BINARY).args(["revoke", "--user", user, "--admin", ADMIN]).output().unwrap()
    }
}

/// A bridge for each network in the clients' namespace, and everybody's cables to them.
fn lay_cables(world: &World) {
    world.ip("out", "addr flush dev out0");
    for (network, bridge) in [(BACK, "back"), (FRONT, "front")] {
        world.ip("out", &format!("link add {bridge} type bridge"));
        world.ip("out", &format!("addr add {}/24 dev {bridge}", world.address(network, 2)));
        world.ip("out", &format!("link set {bridge} up"));
    }
    world.ip("out", "link set out0 master back");
    let plug = |space: &str, bridge: &str, network: u8, host: u8| {
        let port = format!("{bridge}-{space}");
        let out = world.space("out");
        world.ip(space, &format!("link add {bridge}0 type veth peer name {port} netns {out}"));
        world.ip(space, &format!("addr add {}/24 dev {bridge}0", world.address(network, host)));
        world.ip(space, &format!("link set {bridge}0 up"));
        world.ip("out", &format!("link set {port} master {bridge}"));
        world.ip("out", &format!("link set {port} up"));
    };
    for (space, host) in GATES {
        world.add_namespace(space);
        plug(space, "back", BACK, host);
        plug(space, "front", FRONT, host);
    }
    for (space, host) in BALANCERS {
        world.add_namespace(space);
        plug(space, "front", FRONT, host);
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

fn request(method: &str, target: &str, login: Option<&str>) -> String {
    let login = login.map(|login| format!("Authorization: {}\r\n", basic(login))).unwrap_or_default();
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{login}Connection: close\r\n")
}

/// One exchange on a connection of its own. An answer that is not whole is an error.
fn exchange(client: &Client, to: SocketAddr, head: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = client.connect(to)?;
    write!(stream, "{head}Content-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let end = all.windows(4).position(|end| end == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length: usize = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let body = all.split_off(end + 4);
    if body.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Answer {
        status: head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0),
        location: field("location"),
        body,
    })
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Pushes a blob by three requests to two gates in turn: nothing of an upload is the gate's own. Its target.
fn push(fleet: &Fleet) -> String {
    let content: Vec<u8> = (0..BLOB).map(|n| u8::try_from((n * n / 7 + n) % 251).unwrap()).collect();
    let digest = hex(&content);
    let (client, gates) = (fleet.client.clone(), GATES.map(|(_, host)| fleet.front(host)));
    fleet.world.within("out", move || {
        let go = |gate: usize, method: &str, target: &str, body: &[u8]| {
            let head = request(method, target, Some(ALICE)) + "Content-Type: application/octet-stream\r\n";
            exchange(&client, gates[gate], &head, body).unwrap()
        };
        let begun = go(0, "POST", "/v2/team-a/app/blobs/uploads/", b"");
        assert_eq!(begun.status, 202);
        let sent = go(1, "PATCH", &begun.location.unwrap(), &content);
        assert_eq!(sent.status, 202);
        let target = format!("{}&digest=sha256:{digest}", sent.location.unwrap());
        assert_eq!(go(0, "PUT", &target, b"").status, 201);
        format!("/v2/team-a/app/blobs/sha256:{digest}")
    })
}

/// Somebody who asks the same again and again, and what he has seen.
#[derive(Default)]
struct Visits {
    good: AtomicU64,
    /// Connections that were refused or broken off: no answer is no wrong one.
    broken: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

/// Who asks for what, and may be told what.
const VISITORS: [(&str, Option<&str>, &[u16]); 5] = [
    ("BLOB", Some(ALICE), &[200]),
    ("BLOB", Some(CAROL), &[200]),
    ("/v2/team-b/app/tags/list", Some(ALICE), &[403]),
    ("BLOB", Some("alice:guessed"), &[401, 429]),
    ("BLOB", None, &[401]),
];

fn visit(fleet: &Fleet, blob: &str, number: usize, over: &Arc<AtomicBool>) -> (Arc<Visits>, thread::JoinHandle<()>) {
    let (target, login, expected) = VISITORS[number];
    let head = request("GET", if target == "BLOB" { blob } else { target }, login);
    let digest = blob.rsplit(':').next().unwrap().to_owned();
    let (client, to, over) = (fleet.client.clone(), fleet.front(VIRTUAL), Arc::clone(over));
    let visits = Arc::new(Visits::default());
    let seen = Arc::clone(&visits);
    let thread = fleet.world.spawn_within("out", move || {
        while !over.load(Ordering::SeqCst) {
            match exchange(&client, to, &head, b"") {
                Ok(answer) if !expected.contains(&answer.status) => {
                    seen.wrong.lock().unwrap().push(format!("{login:?} was told {}", answer.status));
                }
                Ok(answer) if answer.status == 200 && hex(&answer.body) != digest => {
                    seen.wrong.lock().unwrap().push("another body".to_owned());
                }
                Ok(_) => drop(seen.good.fetch_add(1, Ordering::SeqCst)),
                Err(_) => {
                    seen.broken.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    });
    (visits, thread)
}

#[test]
fn the_loss_of_a_gate_or_a_balancer_is_no_wrong_answer_and_no_end_of_service() {
    let Some(mut fleet) = Fleet::new("the_loss_of_a_gate_or_a_balancer_is_no_wrong_answer_and_no_end_of_service")
    else {
        return;
    };
    start(&mut fleet);
    for (name, host) in BALANCERS {
        fleet.start_balancer(name, host);
    }
    let front = fleet.front(VIRTUAL);
    wait_for("the common address leads to a gate", || fleet.ask(front, "/v2/", ALICE) == Some(200));
    let blob = push(&fleet);

    let over = Arc::new(AtomicBool::new(false));
    let (visits, threads): (Vec<_>, Vec<_>) =
        (0..VISITORS.len()).map(|number| visit(&fleet, &blob, number, &over)).unzip();
    let all_go_on = |what: &str| {
        let before: Vec<u64> = visits.iter().map(|one| one.good.load(Ordering::SeqCst)).collect();
        wait_for(what, || visits.iter().zip(&before).all(|(one, n)| one.good.load(Ordering::SeqCst) >= n + 8));
    };
    all_go_on("service");
    fleet.kill("portcullis-gate1");
    all_go_on("service by the other gate");
    fleet.start_gate("gate1");
    all_go_on("service by both again");
    let holder = fleet.holder().expect("one of them has the address");
    fleet.kill(&format!("haproxy-{holder}"));
    wait_for("the address moves", || fleet.holder().is_some_and(|now| now != holder));
    all_go_on("service by the other balancer");
    over.store(true, Ordering::SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let sum = |of: fn(&Visits) -> u64| visits.iter().map(|one| of(one)).sum::<u64>();
    let (good, broken) = (sum(|one| one.good.load(Ordering::SeqCst)), sum(|one| one.broken.load(Ordering::SeqCst)));
    println!("{good} right answers, {broken} broken connections");
    for one in &visits {
        assert_eq!(*one.wrong.lock().unwrap(), Vec::<String>::new());
    }
    // Whoever came by the balancers was known by his own address.
    let log = fs::read_to_string(fleet.dir.path().join("portcullis-gate2.log")).unwrap();
    assert!(log.contains(&format!("\"peer\":\"{}:", fleet.world.address(FRONT, 2))), "{log}");
}

/// The registry behind its guard, and both gates.
fn start(fleet: &mut Fleet) {
    fleet.start_registry();
    // Balancers and strangers are processes of this host as well; the connect ring would answer first.
    let allow = GATES.map(|(_, host)| format!("--allow {}", fleet.world.address(BACK, host))).join(" ");
    fleet.world.enforce(&format!("--no-local {allow}"));
    let error = fleet.knock(fleet.at(BACK, 1, fleet.world.port)).expect_err("a stranger in the gates' own network");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    for (name, _) in GATES {
        fleet.start_gate(name);
    }
}

#[test]
fn a_revocation_has_to_reach_every_gate_and_a_shared_file_does() {
    let Some(mut fleet) = Fleet::new("a_revocation_has_to_reach_every_gate_and_a_shared_file_does") else {
        return;
    };
    start(&mut fleet);
    let [one, other] = GATES.map(|(_, host)| fleet.front(host));
    // The name of a repository that is not there: whoever may look is told 404.
    let answers = |login| [one, other].map(|gate| fleet.ask(gate, "/v2/team-a/none/tags/list", login).unwrap());
    assert_eq!(answers(CAROL), [404, 404]);
    let users = fleet.dir.path().join("backend/users.htpasswd");
    Cmd::new(BINARY).args(["user", "remove", "--htpasswd"]).arg(&users).arg("carol").run().unwrap();
    let auth = fleet.at(BACK, 1, 8000);
    eventually("the auth service knows her no more", || {
        fleet.world.within("out", move || crate::support::http::get(auth, "/", Some(CAROL)).unwrap().status == 401)
    });
    assert_eq!(answers(CAROL), [404, 404], "what a gate remembers holds for its time");
    let told = fleet.revoke("gate1", "carol");
    assert!(told.status.success(), "{}", told.everything());
    assert_eq!(answers(CAROL), [401, 404], "one gate knows nothing of the other");
    assert!(fleet.revoke("gate2", "carol").status.success());
    assert_eq!(answers(CAROL), [401, 401]);

    assert_eq!(answers(ALICE), [404, 404]);
    let users = fleet.dir.path().join("users.htpasswd");
    Cmd::new(BINARY).args(["user", "remove", "--htpasswd"]).arg(&users).arg("alice").run().unwrap();
    eventually("both have read the file that they share", || answers(ALICE) == [401, 401]);
}
