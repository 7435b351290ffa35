//! Network namespaces with a guard in one of them, and ways to knock at its door.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use portcullis::edge::guard::vouch::Voucher;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");
const PATIENCE: Duration = Duration::from_millis(700);
static COUNT: AtomicU16 = AtomicU16::new(0);

/// A guarded namespace and one outside, joined by a cable: `in0` is the guarded end of it, `out0` the other.
pub(super) struct World {
    name: String,
    subnet: u16,
    pub(super) port: u16,
    pub(super) pin: PathBuf,
}

impl World {
    /// `None`, with a line that says why, where this machine cannot run such a test.
    pub(super) fn new(test: &str) -> Option<Self> {
        if let Some(reason) = why_not() {
            skipped(test, &reason);
            return None;
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let unique = u16::try_from(std::process::id() % 199).unwrap() + number;
        let world = Self {
            name: format!("pc{}-{number}", std::process::id()),
            subnet: unique % 200 + 1,
            port: 21_000 + (unique * 37) % 9_000,
            pin: PathBuf::from(format!("/sys/fs/bpf/portcullis-test-{}-{number}", std::process::id())),
        };
        for space in ["in", "out"] {
            world.add_namespace(space);
        }
        world.cable(("in", "in0", 0, 1), ("out", "out0", 0, 2));
        world.ip("out", &format!("route add default via {}", world.address(0, 1)));
        Some(world)
    }

    pub(super) fn space(&self, space: &str) -> String {
        format!("{}-{space}", self.name)
    }

    pub(super) fn add_namespace(&self, space: &str) {
        run(Command::new("ip").args(["netns", "add", &self.space(space)]));
        self.ip(space, "link set lo up");
    }

    /// Joins two namespaces; each end is (namespace, interface, network, host).
    pub(super) fn cable(&self, a: (&str, &str, u8, u8), b: (&str, &str, u8, u8)) {
        let peer = self.space(b.0);
        self.ip(a.0, &format!("link add {} type veth peer name {} netns {peer}", a.1, b.1));
        for (space, interface, network, host) in [a, b] {
            self.ip(space, &format!("addr add {}/24 dev {interface}", self.address(network, host)));
            self.ip(space, &format!("addr add {}/64 dev {interface} nodad", self.address6(network, host)));
            self.ip(space, &format!("link set {interface} up"));
        }
    }

    pub(super) fn ip(&self, space: &str, args: &str) {
        run(Command::new("ip").args(["-n", &self.space(space)]).args(args.split(' ')));
    }

    /// The same where this kernel may not know what is asked for.
    pub(super) fn try_ip(&self, space: &str, args: &str) -> Result<(), String> {
        let output = Command::new("ip").args(["-n", &self.space(space)]).args(args.split(' ')).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    }

    pub(super) fn address(&self, network: u8, host: u8) -> IpAddr {
        IpAddr::from([10, u8::try_from(self.subnet).unwrap(), network, host])
    }

    pub(super) fn address6(&self, network: u8, host: u8) -> IpAddr {
        IpAddr::from([0xfd00, self.subnet, u16::from(network), 0, 0, 0, 0, u16::from(host)])
    }

    /// The guarded end, at the guarded port.
    pub(super) fn door(&self) -> SocketAddr {
        SocketAddr::new(self.address(0, 1), self.port)
    }

    pub(super) fn door6(&self) -> SocketAddr {
        SocketAddr::new(self.address6(0, 1), self.port)
    }

    /// Runs `task` on a thread of its own inside a namespace.
    pub(super) fn within<T: Send + 'static>(&self, space: &str, task: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn_within(space, task).join().unwrap()
    }

    /// The same without waiting for its end.
    pub(super) fn spawn_within<T: Send + 'static>(
        &self,
        space: &str,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.space(space));
        thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            task()
        })
    }

    /// Puts frames, in hexadecimal, on the wire.
    pub(super) fn send_frames(&self, space: &str, interface: &str, frames: &[String]) {
        let script = "import socket, sys\n\
                      s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                      s.bind((sys.argv[1], 0))\n\
                      for frame in sys.argv[2:]: s.send(bytes.fromhex(frame))";
        let namespace = format!("--net=/run/netns/{}", self.space(space));
        run(Command::new("nsenter").args([&namespace, "python3", "-c", script, interface]).args(frames));
    }

    /// The hardware address of an interface.
    pub(super) fn mac(&self, space: &str, interface: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.space(space), "-j", "link", "show", interface]).output();
        let links: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        links[0]["address"].as_str().unwrap().to_owned()
    }

    /// Something that listens on every address and answers each connection with a letter.
    pub(super) fn serve(&self, space: &str, port: u16) {
        let listener = self.within(space, move || TcpListener::bind(("::", port)).unwrap());
        thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming().flatten() {
                (&stream).write_all(b"R").ok();
                stream.set_nonblocking(true).unwrap();
                // Some tests come ten thousand times: what they hung up must not use up this process' open files.
                open.retain(|one: &TcpStream| {
                    matches!(one.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
                });
                open.push(stream);
            }
        });
    }

    /// Opens a connection from inside a namespace, and reads the letter.
    pub(super) fn reach(&self, space: &str, to: SocketAddr) -> io::Result<TcpStream> {
        self.within(space, move || {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            answered(stream)
        })
    }

    /// The same from a process that is nobody: what it was told when it failed.
    pub(super) fn reach_as_nobody(&self, space: &str, host: &str, port: u16) -> Result<(), String> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.space(space)))
            .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "timeout", "3"])
            .args(["bash", "-c", &format!("exec 3<>/dev/tcp/{host}/{port} && read -rN1 -u3 letter && [ $letter = R ]")])
            .output()
            .unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    pub(super) fn guard_command(&self, space: &str, args: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.space(space)))
            .arg(BINARY)
            .arg("guard")
            .args(args.split(' '))
            .arg("--pin")
            .arg(&self.pin);
        command
    }

    pub(super) fn guard(&self, args: &str) -> Output {
        self.guard_command("in", args).output().unwrap()
    }

    pub(super) fn enforce(&self, more: &str) -> String {
        let output = self.guard(format!("enforce --port {} --interface in0 {more}", self.port).trim_end());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub(super) fn refused(&self, args: &str, because: &str) {
        let output = self.guard(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
        assert!(stderr.contains(because), "{args}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }

    /// Comes from another host as far as the guard can tell: a socket that this host's connect ring lets go.
    pub(super) fn reach_from_afar(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let voucher = if self.pin.exists() { Voucher::open(Some(&self.pin)).unwrap() } else { None };
        self.within("out", move || open(voucher.as_ref(), None, to))
    }

    /// Starts the agent that stays, and waits for it to say that a policy is in force.
    pub(super) fn agent(&self, options: &str) -> Agent {
        let args = format!("run --port {} {options}", self.port);
        let mut child = self.guard_command("in", &args).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        said.read_line(&mut first).unwrap();
        assert!(first.contains("is in force"), "{first}");
        Agent { child, said }
    }

    /// Whether the XDP ring holds on an interface.
    pub(super) fn guards(&self, interface: &str) -> bool {
        let status = self.status();
        let rings = status["rings"].as_array().unwrap();
        rings.iter().any(|ring| ring["ring"] == "xdp" && ring["place"] == interface && ring["holds"] == true)
    }

    #[track_caller]
    pub(super) fn shut_from_outside(&self) {
        for door in [self.door(), self.door6()] {
            let error = self.reach_from_afar(door).expect_err("the door is open");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{door}: {error}");
        }
    }

    #[track_caller]
    pub(super) fn shut_from_inside(&self) {
        for host in self.inside_hosts() {
            let told = self.reach_as_nobody("in", &host, self.port).expect_err(&host);
            assert!(told.contains("Operation not permitted"), "{host}: {told}");
        }
    }

    #[track_caller]
    pub(super) fn open_everywhere(&self) {
        for door in [self.door(), self.door6()] {
            self.reach_from_afar(door).unwrap();
        }
        for host in self.inside_hosts() {
            self.reach_as_nobody("in", &host, self.port).unwrap();
        }
    }

    fn inside_hosts(&self) -> Vec<String> {
        let fixed = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0"];
        let own = [self.address(0, 1).to_string(), self.address6(0, 1).to_string()];
        let mapped = format!("::ffff:{}", own[0]);
        fixed.into_iter().map(str::to_owned).chain(own).chain([mapped]).collect()
    }

    pub(super) fn status(&self) -> serde_json::Value {
        // A policy that is swapped while it is read cannot be read to its end.
        let read = || serde_json::from_slice(&self.guard("status --json").stdout).ok();
        (0..5).find_map(|_| read()).expect("JSON")
    }

    /// What all rings have counted for a reason.
    pub(super) fn count(&self, reason: &str) -> u64 {
        self.count_where(|counter| counter["reason"] == reason)
    }

    /// What one ring has counted for a reason.
    pub(super) fn count_in(&self, ring: &str, reason: &str) -> u64 {
        self.count_where(|counter| counter["ring"] == ring && counter["reason"] == reason)
    }

    /// What one ring has refused.
    pub(super) fn dropped(&self, ring: &str) -> u64 {
        self.count_where(|counter| counter["ring"] == ring && counter["passed"] == false)
    }

    fn count_where(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> u64 {
        let status = self.status();
        let counters = status["counters"].as_array().unwrap();
        counters.iter().filter(|counter| wanted(counter)).map(|counter| counter["count"].as_u64().unwrap()).sum()
    }
}

/// A running `guard run`.
pub(super) struct Agent {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Agent {
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it as a service manager does; what it has said.
    pub(super) fn stop(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{said}");
        said
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.pin.exists() {
            self.guard("detach");
        }
        for space in ["in", "out", "box", "gate1", "gate2", "lb1", "lb2"] {
            Command::new("ip").args(["netns", "del", &self.space(space)]).stderr(Stdio::null()).status().ok();
        }
    }
}

fn answered(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut letter = [0];
    stream.read_exact(&mut letter)?;
    Ok(stream)
}

/// Opens a connection as the gate does: vouched for, where there is a voucher, before connect(2).
pub(super) fn open(voucher: Option<&Voucher>, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    if let Some(from) = from {
        bind(&socket, &from)?;
    }
    if let Some(voucher) = voucher {
        voucher.vouch(socket.as_fd())?;
    }
    match connect(&socket, &to) {
        Err(Errno::INPROGRESS) => return Err(io::ErrorKind::TimedOut.into()),
        result => result?,
    }
    answered(TcpStream::from(socket))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes past the capture of the test harness: whoever reads the log must see it.
pub(super) fn skipped(test: &str, reason: &str) {
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "skipped: guard::{test}: {reason}").unwrap();
}

fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    for tool in ["ip", "nsenter", "setpriv", "bash"] {
        if Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            return Some(format!("needs {tool} (Debian packages iproute2, util-linux, bash)"));
        }
    }
    let probe = Command::new(BINARY)
        .args(["guard", "enforce", "--port", "1", "--interface", "no-such-interface", "--no-local"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&probe.stderr).trim_end().to_owned();
    (!told.contains("there is no interface")).then_some(told)
}
