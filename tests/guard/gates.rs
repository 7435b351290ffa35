//! The gate itself behind a guard: what it says of it, and what is left of its rights when it is killed.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::commands::{text, told};
use super::world::{BINARY, World, open, skipped};
use crate::support::http::basic;
use crate::support::raw::{read_head, reset};

/// Processes that may be started until one has the number of the gate that was killed.
const TRIES: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

/// A gate inside the guarded namespace, which becomes nobody.
struct Serve {
    child: Child,
    addr: SocketAddr,
    admin: u16,
    _dir: tempfile::TempDir,
}

fn gate_address(world: &World) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], world.port + 8))
}

fn serve_command(world: &World, require: bool) -> (Command, u16, tempfile::TempDir) {
    let dir = crate::support::scratch("guard").unwrap();
    let admin = world.port + 7;
    fs::write(dir.path().join("users"), "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\n").unwrap();
    let text = format!(
        "user = \"nobody\"\nworkers = 1\nadmin = \"127.0.0.1:{admin}\"\n\
         [[listen]]\naddress = \"{}\"\n[[site]]\nupstreams = [\"http://127.0.0.1:{}\"]\n\
         [auth]\nhtpasswd = \"{}\"\n[guard]\npin = \"{}\"\nrequire = {require}\n",
        gate_address(world),
        world.port,
        dir.path().join("users").display(),
        world.pin.display()
    );
    let file = dir.path().join("gate.toml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", world.space("in"))).args([BINARY, "serve", "--config"]).arg(file);
    (command, admin, dir)
}

impl Serve {
    /// Starts it and waits until it is ready; returns what it has said.
    fn start(world: &World) -> (Self, String) {
        let (mut command, admin, dir) = serve_command(world, true);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("ready:") {
            assert_ne!(lines.read_line(&mut said).unwrap(), 0, "{said}");
        }
        thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        (Self { child, addr: gate_address(world), admin, _dir: dir }, said)
    }

    fn metrics(&self, world: &World) -> String {
        ask(world, SocketAddr::from(([127, 0, 0, 1], self.admin)), "/metrics", "")
    }

    /// The first line of the answer to a user.
    fn answers(&self, world: &World) -> String {
        let login = format!("Authorization: {}\r\n", basic("testuser:testpassword"));
        ask(world, self.addr, "/v2/", &login).lines().next().unwrap_or_default().to_owned()
    }
}

/// Asks from inside the namespace; the whole answer.
fn ask(world: &World, addr: SocketAddr, target: &'static str, fields: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{fields}\r\n");
    world.within("in", move || {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn serve_tells_of_the_guard_and_can_insist_on_one() {
    let Some(world) = World::new("serve_tells_of_the_guard_and_can_insist_on_one") else {
        return;
    };
    world.serve("in", world.port);
    told(&world.guard(&world.policy("audit", "")), 0);
    let (mut command, _, _dir) = serve_command(&world, true);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("[guard] require: guard auditing"), "{}", text(&output.stderr));

    told(&world.guard("enforce"), 0);
    let (gate, said) = Serve::start(&world);
    assert!(said.contains(&format!("guard enforced (policy 1): port {}", world.port)), "{said}");
    let metrics = gate.metrics(&world);
    assert!(metrics.contains("portcullis_guard_mode{mode=\"enforce\"} 1"), "{metrics}");
    assert!(!metrics.contains("last_verify"), "{metrics}");
    told(&world.guard("verify"), 0);
    world.shut_from_outside();
    let metrics = gate.metrics(&world);
    assert!(metrics.contains("portcullis_guard_last_verify_success 1"), "{metrics}");
    assert!(metrics.contains("portcullis_guard_last_verify_timestamp_seconds 1"), "{metrics}");
    let told = crate::monitoring::told(&metrics);
    let unknown: Vec<_> = crate::monitoring::names().into_iter().filter(|name| !told.contains(name)).collect();
    assert!(unknown.is_empty(), "the packaged rules and dashboard ask for {unknown:?}");
    let dropped =
        "portcullis_guard_packets_total{ring=\"xdp\",interface=\"in0\",reason=\"stranger\",verdict=\"refused\"} ";
    assert!(metrics.contains(dropped) && !metrics.contains(&format!("{dropped}0\n")), "{metrics}");
    world.guard("detach");
    assert!(gate.metrics(&world).contains("portcullis_guard_mode{mode=\"absent\"} 1"));
}

/// A registry in the namespace: says who has connected, and answers every request.
fn registry(world: &World) -> Receiver<SocketAddr> {
    let port = world.port;
    let listener = world.within("in", move || TcpListener::bind(("127.0.0.1", port)).unwrap());
    let (came, who) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if came.send(stream.peer_addr().unwrap()).is_err() {
                return;
            }
            thread::spawn(move || {
                while !read_head(&mut stream).is_empty() {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").is_err() {
                        return;
                    }
                }
                // An orderly end would keep the gate's port taken for a minute.
                reset(stream);
            });
        }
    });
    who
}

/// A gate is known by nothing but its sockets: a number, a name, a port or a cgroup would outlive it.
#[test]
fn nothing_that_a_killed_gate_leaves_behind_opens_the_door() {
    const NAME: &str = "nothing_that_a_killed_gate_leaves_behind_opens_the_door";
    let Some(world) = World::new(NAME) else {
        return;
    };
    let who = registry(&world);
    world.enforce("");
    let (mut gate, _) = Serve::start(&world);
    assert_eq!(gate.answers(&world), "HTTP/1.1 200 OK");
    // It also connects once when it starts.
    let from = who.try_iter().last().expect("the gate's connection");
    let pid = gate.child.id();
    gate.child.kill().unwrap();
    gate.child.wait().unwrap();

    let door = SocketAddr::from(([127, 0, 0, 1], world.port));
    // Its port, by root in its cgroup, which is this test's as well.
    let end = Instant::now() + PATIENCE;
    let reused = loop {
        let error = world.within("in", move || open(None, Some(from), door).map(drop)).expect_err("its port");
        if error.kind() != io::ErrorKind::AddrInUse || Instant::now() > end {
            break error;
        }
    };
    assert_eq!(reused.kind(), io::ErrorKind::PermissionDenied);
    // Its user.
    world.shut_from_inside();
    // Its process number.
    let knock = format!("exec 3<>/dev/tcp/127.0.0.1/{}", world.port);
    match as_process(&world, pid, &knock) {
        Some(said) => assert!(said.contains("Operation not permitted"), "{said}"),
        None => skipped(NAME, &format!("none of {TRIES} processes got the number {pid}")),
    }
    assert!(who.try_recv().is_err(), "somebody has reached the registry");

    let (gate, _) = Serve::start(&world);
    assert_eq!(gate.answers(&world), "HTTP/1.1 200 OK", "the next gate");
}

/// Runs a script as nobody under a number that a dead process had; what it says on standard error.
fn as_process(world: &World, pid: u32, script: &str) -> Option<String> {
    let space = format!("--net=/run/netns/{}", world.space("in"));
    for _ in 0..TRIES {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut child = Command::new("nsenter")
            .args([&space, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        child.stderr.take().unwrap().read_to_end(&mut said).unwrap();
        let refused = !child.wait().unwrap().success();
        if child.id() == pid {
            assert!(refused, "process {pid} has reached the registry");
            return Some(text(&said));
        }
    }
    None
}
