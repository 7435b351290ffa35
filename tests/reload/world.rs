//! A gate with a configuration file that may change.

use std::fs;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::cmd::{Cmd, Output};
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic};
use crate::support::{Service, free_address, program, scratch};

pub(crate) const TAGS: &str = "/v2/a/tags/list";

/// A directory with a configuration, and what it names.
pub(crate) struct Room {
    pub(crate) dir: TempDir,
    pub(crate) file: PathBuf,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) hello: Stub,
    auth: Stub,
}

/// A gate of such a room.
pub(crate) struct Running {
    service: Service,
    _dir: TempDir,
}

impl Deref for Running {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

impl Running {
    /// Asks it to drain and end, and waits for that.
    pub(crate) fn stop(self) -> ExitStatus {
        self.service.stop(Duration::from_secs(60)).unwrap()
    }

    /// Waits until it has written `text`.
    pub(crate) fn says(&self, text: &str) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.log().contains(text) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.log().contains(text)
    }
}

impl Room {
    pub(crate) fn new() -> Self {
        let dir = scratch("reload").unwrap();
        let file = dir.path().join("gate.toml");
        let (addr, admin) = (free_address().unwrap(), free_address().unwrap());
        let auth = Stub::start(|_| Reply::text(200, "")).unwrap();
        Self { dir, file, addr, admin, hello: Stub::hello().unwrap(), auth }
    }

    fn common(&self) -> String {
        format!(
            "workers = 2\nadmin = \"{}\"\n[[listen]]\naddress = \"{}\"\n[[site]]\nupstreams = [\"{}\"]\n",
            self.admin,
            self.addr,
            self.hello.url()
        )
    }

    /// The usual configuration, nine lines, and more.
    pub(crate) fn text(&self, more: &str) -> String {
        format!("{}[auth]\nbackend = \"{}\"\n\n{more}", self.common(), self.auth.url())
    }

    pub(crate) fn configure(&self, more: &str) {
        fs::write(&self.file, self.text(more)).unwrap();
    }

    /// Without the usual authenticator.
    pub(crate) fn write(&self, more: &str) {
        fs::write(&self.file, format!("{}{more}", self.common())).unwrap();
    }

    pub(crate) fn serve(&self) -> Cmd {
        let mut cmd = Cmd::new(program());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PORTCULLIS_") {
                cmd = cmd.env_remove(&name);
            }
        }
        cmd.args(["serve", "--config"]).arg(&self.file)
    }

    /// With the access log in a file.
    pub(crate) fn serve_with_log(&self, path: &std::path::Path) -> Cmd {
        self.configure("");
        self.serve().arg("--access-log").arg(path)
    }

    pub(crate) fn run(&self, cmd: Cmd) -> Running {
        let dir = scratch("reload-gate").unwrap();
        let mut service = Service::start("portcullis-serve", cmd, dir.path()).unwrap();
        let log = dir.path().to_owned();
        service.wait_until("ready", || reads(&log).contains("portcullis: ready: ")).unwrap();
        Running { service, _dir: dir }
    }

    pub(crate) fn start(&self, more: &str) -> Running {
        self.configure(more);
        self.start_as_written()
    }

    pub(crate) fn start_as_written(&self) -> Running {
        self.run(self.serve())
    }

    /// The status of one request on an open connection.
    pub(crate) fn ask(&self, connection: &mut Connection, user: &str) -> u16 {
        let authorization = basic(&format!("{user}:secret"));
        let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\n\r\n");
        connection.exchange(request).unwrap().status
    }

    pub(crate) fn reload(&self) -> Output {
        Cmd::new(program()).args(["reload", "--admin", &self.admin.to_string()]).output().unwrap()
    }

    pub(crate) fn hang_up(&self, gate: &Running) {
        signal(gate, "HUP");
    }
}

pub(crate) fn signal(gate: &Running, name: &str) {
    Cmd::new("kill").args([&format!("-{name}"), &gate.pid().to_string()]).run().unwrap();
}

fn reads(dir: &std::path::Path) -> String {
    let files = fs::read_dir(dir).unwrap().filter_map(|entry| fs::read(entry.ok()?.path()).ok());
    files.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}
