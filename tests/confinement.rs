//! What a gate takes from itself once it runs, as the kernel tells of it, and what a reload cannot give back.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::support::http::{Connection, basic, get};
use crate::support::packages::PYTHON;
use crate::support::{
    AuthService, Gate, Serve, free_address, hello::Stub, htpasswd, is_root, misses, program, refused, scratch, skips,
    wait_for,
};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
const TAGS: &str = "/v2/a/tags/list";
const NOBODY: &str = "65534";

/// One thread, as the kernel tells of it.
struct Thread(HashMap<String, String>);

impl Thread {
    fn all(pid: u32) -> Vec<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        tasks.map(|task| Self::at(&task.unwrap().path())).collect()
    }

    fn at(path: &Path) -> Self {
        let text = fs::read_to_string(path.join("status")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    fn is(&self, name: &str, value: &str) {
        assert_eq!(self.0[name], value, "{name} of {}", self.0["Name"]);
    }
}

/// All that holds for every thread of a gate and of an auth service, whoever started it.
#[track_caller]
fn holds_nothing(pid: u32, threads: usize) {
    let all = Thread::all(pid);
    assert!(all.len() >= threads, "{} threads", all.len());
    for thread in all {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            thread.is(set, "0000000000000000");
        }
        thread.is("NoNewPrivs", "1");
        thread.is("Seccomp", "2");
        if may_empty_bounding_sets() {
            thread.is("CapBnd", "0000000000000000");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    // The memory of a process that cannot be dumped is root's, whoever it runs as.
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0);
}

fn may_empty_bounding_sets() -> bool {
    const SETPCAP: u32 = 8;
    let own = Thread::at(Path::new("/proc/self"));
    u64::from_str_radix(&own.0["CapEff"], 16).unwrap() >> SETPCAP & 1 == 1
}

struct Room {
    dir: tempfile::TempDir,
    hello: Stub,
}

impl Room {
    fn new() -> Self {
        let dir = scratch("confinement").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("gate")).unwrap();
        htpasswd(&dir.path().join("gate"), LINE);
        Self { dir, hello: Stub::hello().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, users: &str, more: &str) {
        let text = format!("{more}\n[auth]\nhtpasswd = {:?}\n", self.path(users));
        fs::write(self.path("gate/gate.toml"), text).unwrap();
    }

    fn serve(&self, program: &Path, backend: &str) -> Serve {
        Serve::new(program).unwrap().flag("--config", self.path("gate/gate.toml")).flag("--backend", backend)
    }

    fn start(&self) -> Gate {
        self.serve(program(), &self.hello.url()).start().unwrap()
    }
}

/// Reloads, and gives what it says until the end of it.
fn reload(gate: &Gate) -> String {
    let before = gate.log().len();
    let done = |text: &str| text.contains("reload: changed") || text.contains("stays as it was");
    crate::support::cmd::Cmd::new("kill").args(["-HUP", &gate.pid().to_string()]).run().unwrap();
    wait_for("the reload", || done(&gate.log()[before..]));
    gate.log()[before..].to_owned()
}

#[test]
fn a_running_gate_and_an_auth_service_hold_no_right() {
    let room = Room::new();
    room.configure("gate/users.htpasswd", "workers = 2");
    let gate = room.start();
    assert_eq!(get(gate.addr(), TAGS, Some(CREDS)).unwrap().status, 200);
    holds_nothing(gate.pid(), 4);
    let service = AuthService::start(program(), &room.path("gate/users.htpasswd")).unwrap();
    assert_eq!(get(service.addr(), "/", Some(CREDS)).unwrap().status, 200);
    holds_nothing(service.pid(), 2);
}

#[test]
fn a_gate_started_as_root_is_somebody_else() {
    if !is_root() {
        return skips::skip("needs root");
    }
    let room = Room::new();
    room.configure("gate/users.htpasswd", "user = \"nobody\"");
    let gate = room.start();
    assert_eq!(get(gate.addr(), TAGS, Some(CREDS)).unwrap().status, 200);
    holds_nothing(gate.pid(), 3);
    for thread in Thread::all(gate.pid()) {
        thread.is("Uid", &[NOBODY; 4].join("\t"));
        thread.is("Gid", &[NOBODY; 4].join("\t"));
        thread.is("Groups", "");
    }
}

#[test]
fn files_elsewhere_are_out_of_reach_and_the_log_says_what_to_do() {
    let room = Room::new();
    room.configure("gate/users.htpasswd", "");
    let gate = room.start();
    assert!(gate.says(&format!("confined: reads beneath {}\n", room.path("gate").display())), "{}", gate.log());
    let mut open = Connection::open(gate.addr()).unwrap();
    let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(CREDS));
    assert_eq!(open.exchange(request.clone()).unwrap().status, 200);

    // Anybody else on this machine may read it.
    htpasswd(room.dir.path(), LINE);
    room.configure("users.htpasswd", "");
    let said = reload(&gate);
    let remedy = "Permission denied; it lies outside of what this gate may use since its start";
    assert!(said.contains(remedy) && said.contains("move it there, or restart the gate"), "{said}");
    // Nor by a link from where it may read.
    std::os::unix::fs::symlink(room.path("users.htpasswd"), room.path("gate/link")).unwrap();
    room.configure("gate/link", "");
    let said = reload(&gate);
    assert!(said.contains(remedy), "{said}");
    room.configure("gate/users.htpasswd", &format!("access_log = {:?}", room.path("access.log")));
    let said = reload(&gate);
    assert!(said.contains("cannot open the access log") && said.contains("lies outside"), "{said}");
    assert!(!room.path("access.log").exists());
    assert_eq!(open.exchange(request.clone()).unwrap().status, 200);

    fs::remove_file(room.path("gate/link")).unwrap();
    fs::rename(room.path("users.htpasswd"), room.path("gate/others")).unwrap();
    room.configure("gate/others", "");
    let said = reload(&gate);
    assert!(said.contains("changed: auth"), "{said}");
    assert_eq!(open.exchange(request).unwrap().status, 200);
}

#[test]
fn names_are_looked_up_from_inside() {
    let room = Room::new();
    room.configure("gate/users.htpasswd", "[limits]\nresolve_interval = \"1s\"\n");
    let port = room.hello.url().rsplit(':').next().unwrap().to_owned();
    let backend = format!("http://localhost:{port}");
    let gate = room.serve(program(), &backend).admin(free_address().unwrap()).start().unwrap();
    assert!(gate.says("confined: reads beneath /etc, "), "{}", gate.log());
    // Two look-ups later it would have said that the name is gone.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(!gate.log().contains("cannot find"), "{}", gate.log());
    assert_eq!(get(gate.addr(), TAGS, Some(CREDS)).unwrap().status, 200);
}

#[test]
fn a_kernel_without_landlock_is_said_once_and_no_reason_to_stop() {
    if misses(&[PYTHON]) {
        return;
    }
    let room = Room::new();
    room.configure("gate/users.htpasswd", "");
    let gate = room.serve(&refused("landlock", room.dir.path()), &room.hello.url()).start().unwrap();
    assert!(gate.says("warning: this kernel has no Landlock"), "{}", gate.log());
    assert_eq!(get(gate.addr(), TAGS, Some(CREDS)).unwrap().status, 200);
    holds_nothing(gate.pid(), 3);
    htpasswd(room.dir.path(), LINE);
    room.configure("users.htpasswd", "");
    assert!(reload(&gate).contains("changed: auth"), "{}", gate.log());
    assert_eq!(gate.log().matches("Landlock").count(), 1);
}
