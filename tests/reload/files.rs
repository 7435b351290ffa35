//! The access log as a file: lines in batches, none lost, and a new file when the old one was moved away. And what the
//! service manager hears and passes.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use super::world::{Room, TAGS, signal};
use crate::support::cmd::Cmd;
use crate::support::http::{Connection, get};
use crate::support::{program, random, wait_for};

fn lines(path: &std::path::Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn the_access_log_goes_on_in_a_new_file_and_loses_nothing() {
    let room = Room::new();
    let (log, old) = (room.dir.path().join("access.log"), room.dir.path().join("access.log.1"));
    let gate = room.run(room.serve_with_log(&log));
    let mut open = Connection::open(room.addr).unwrap();
    (0..30).for_each(|_| assert_eq!(room.ask(&mut open, "alice"), 200));
    wait_for("the lines are written", || lines(&log) == 30);
    fs::rename(&log, &old).unwrap();
    assert_eq!(room.ask(&mut open, "alice"), 200);
    wait_for("the moved file is written on", || lines(&old) == 31);
    signal(&gate, "USR1");
    assert!(gate.says("access.log: opened again"), "{}", gate.log());
    (0..40).for_each(|_| assert_eq!(room.ask(&mut open, "alice"), 200));
    drop(open);
    // Not one of the last lines may be lost, though they wait for company.
    assert!(gate.stop().success());
    assert_eq!((lines(&old), lines(&log)), (31, 40));
}

/// Collects what a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn hears(&self) -> String {
        let mut bytes = [0; 512];
        let n = self.0.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }

    fn hears_until(&self, wanted: &str) -> Vec<String> {
        let mut heard = Vec::new();
        while heard.last().is_none_or(|last: &String| !last.starts_with(wanted)) {
            heard.push(self.hears());
        }
        heard
    }
}

#[test]
fn the_service_manager_is_told() {
    for named in [true, false] {
        let room = Room::new();
        let (path, name) = (room.dir.path().join("notify"), format!("portcullis-test-{:x}", random()));
        let (socket, told) = if named {
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string())
        } else {
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
        };
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let manager = Manager(socket);
        room.configure("");
        let gate = room.run(room.serve().env("NOTIFY_SOCKET", told).env("WATCHDOG_USEC", "200000"));
        assert!(get(room.addr, TAGS, Some("a:b")).is_ok());
        let heard = manager.hears_until("READY=1");
        assert!(heard.iter().all(|line| line == "READY=1" || line == "WATCHDOG=1"), "{heard:?}");
        // Twice: it goes on.
        assert_eq!(manager.hears_until("WATCHDOG=1").len(), 1);
        assert_eq!(manager.hears_until("WATCHDOG=1").len(), 1);
        room.hang_up(&gate);
        let heard = manager.hears_until("RELOADING=1");
        assert!(heard.last().unwrap().starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        manager.hears_until("READY=1");
        signal(&gate, "TERM");
        manager.hears_until("STOPPING=1");
    }
}

/// The gate with this socket as its descriptor 3, as a service manager passes it.
fn passing(room: &Room, socket: &(impl AsFd + AsRawFd)) -> Cmd {
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
    let script = format!(
        "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec '{}' serve --config '{}'",
        socket.as_raw_fd(),
        program().display(),
        room.file.display()
    );
    Cmd::new("bash").args(["-c", &script])
}

#[test]
fn sockets_of_the_service_manager_outlive_the_gate() {
    let room = Room::new();
    room.configure("");
    let listener = TcpListener::bind(room.addr).unwrap();
    let gate = room.run(passing(&room, &listener));
    assert_eq!(get(room.addr, TAGS, Some("a:b")).unwrap().status, 200);
    assert!(gate.stop().success());
    // Nobody accepts now, and nobody is refused: the next gate serves who waits.
    let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nConnection: close\r\n\r\n");
    let mut waiting = Connection::open(room.addr).unwrap();
    waiting.send(request).unwrap();
    let gate = room.run(passing(&room, &listener));
    assert_eq!(waiting.receive(false).unwrap().status, 200);
    drop(gate);
}

#[test]
fn a_socket_that_the_configuration_does_not_name_is_an_error() {
    let room = Room::new();
    room.configure("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = listener.local_addr().unwrap();
    let output = passing(&room, &listener).output().unwrap();
    let text = output.everything();
    assert!(!output.status.success() && text.contains(&format!("passes a socket for {other}, which no")), "{text}");
    let (stream, _other) = UnixStream::pair().unwrap();
    let output = passing(&room, &stream).output().unwrap();
    assert!(!output.status.success() && output.everything().contains("is no listening TCP socket"));
}
