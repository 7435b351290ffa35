//! Load: wrk for small requests, threads of our own and curl for large bodies. What it costs is measured in a window in
//! the middle, when every connection is open and warm.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};

use super::peers::Peer;
use super::world::{CREDS, MANIFEST_TARGET, World};
use crate::lab::cmd::{Cmd, Output};
use crate::lab::http::{Connection, basic};
use crate::lab::interrupt;

/// From the start of the load to the window.
const WARM: Duration = Duration::from_millis(1200);

/// Keeps connections busy with small requests.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    pub(super) connections: usize,
    pub(super) window: Duration,
    /// Lua that replaces `request`.
    pub(super) script: String,
    /// Opens a connection for each request.
    pub(super) close: bool,
    /// More time before the window.
    pub(super) settle: Duration,
}

/// What a window showed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shot {
    /// Microseconds of the proxy's processor time for each request.
    pub(super) cpu: f64,
    /// The part of them outside of the kernel.
    pub(super) user: f64,
    /// Requests a second.
    pub(super) rate: f64,
    /// Milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
}

impl Requests {
    pub(super) fn new(connections: usize, window: Duration) -> Self {
        Self { connections, window, script: String::new(), close: false, settle: Duration::ZERO }
    }

    /// Drives one proxy.
    pub(super) fn drive(&self, world: &World, peer: &Peer) -> anyhow::Result<Shot> {
        let cmd = self.command(world, peer)?;
        let load = thread::spawn(move || cmd.output());
        let shot = window(world, peer, WARM + self.settle, self.window);
        let output = load.join().map_err(|_| anyhow!("the thread of wrk panicked"))??.ok()?;
        let mut shot = shot.with_context(|| peer.name.clone())?;
        let latencies = latencies(&output).with_context(|| peer.name.clone())?;
        [shot.p50, shot.p99, shot.p999] = latencies;
        Ok(shot)
    }

    /// The command that makes this load.
    pub(super) fn command(&self, world: &World, peer: &Peer) -> anyhow::Result<Cmd> {
        let script = world.dir.path().join("load.lua");
        let close = if self.close { "wrk.headers['Connection'] = 'close'\n" } else { "" };
        let text = format!(
            "wrk.headers['Authorization'] = '{}'\n{close}{}\n\
             done = function(s, l, r)\n\
             local e = s.errors\n\
             io.write(string.format('RESULT %d %d %d %d %d %d %d\\n', e.connect + e.read + e.write,\n\
             e.status, e.timeout, l:percentile(50), l:percentile(99), l:percentile(99.9), s.requests))\n\
             end\n",
            basic(CREDS),
            self.script,
        );
        fs::write(&script, text).context("cannot write the script of wrk")?;
        let threads = world.cores.load_threads().min(self.connections);
        let seconds = (WARM + self.settle + self.window).as_secs() + 1;
        Ok(world
            .as_load()
            .env("OPENSSL_CONF", openssl_configuration(world)?)
            .args(["wrk", "--timeout", "20s", "--latency", "-t", &threads.to_string()])
            .args(["-c", &self.connections.to_string(), "-d", &format!("{seconds}s"), "-s"])
            .arg(script)
            .arg(peer.url(MANIFEST_TARGET)))
    }
}

/// One cipher suite for everybody, by way of OpenSSL's configuration: wrk has no option for it.
pub(super) fn openssl_configuration(world: &World) -> anyhow::Result<PathBuf> {
    let file = world.dir.path().join("openssl.cnf");
    let text =
        "openssl_conf = d\n[d]\nssl_conf = s\n[s]\nsystem_default = x\n[x]\nCiphersuites = TLS_AES_128_GCM_SHA256\n";
    fs::write(&file, text).context("cannot write an OpenSSL configuration")?;
    Ok(file)
}

/// Measures a proxy under a load that runs.
pub(super) fn window(world: &World, peer: &Peer, warm: Duration, window: Duration) -> anyhow::Result<Shot> {
    let begun = Instant::now();
    let mut counter = world.counter()?;
    counter.read()?;
    interrupt::sleep(warm.saturating_sub(begun.elapsed()));
    let (from, begun, before) = (counter.read()?, Instant::now(), peer.usage()?);
    interrupt::sleep(window);
    let (to, seconds, after) = (counter.read()?, begun.elapsed().as_secs_f64(), peer.usage()?);
    interrupt::check()?;
    // One of them asked for the counters.
    let requests = to.saturating_sub(from).saturating_sub(1) as f64;
    ensure!(requests > 0.0, "not one request came through");
    let each = |seconds: f64| seconds * 1e6 / requests;
    let (cpu, user) = (each(after.cpu - before.cpu), each(after.user - before.user));
    Ok(Shot { cpu, user, rate: requests / seconds, ..Shot::default() })
}

fn latencies(output: &Output) -> anyhow::Result<[f64; 3]> {
    let text = output.text();
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT ")).context("wrk gave no result")?;
    let numbers: Vec<f64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
    let [sockets, status, timeouts, p50, p99, p999, _] = numbers[..] else { bail!("wrk gave {line:?}") };
    if sockets + status + timeouts > 0.0 {
        bail!("{sockets} broken connections, {status} answers that are not 2xx, {timeouts} time-outs");
    }
    Ok([p50 / 1e3, p99 / 1e3, p999 / 1e3])
}

/// Large bodies, several at once.
#[derive(Debug, Clone)]
pub(super) struct Bodies {
    pub(super) target: String,
    pub(super) bytes: u64,
    pub(super) streams: usize,
}

/// What moving them took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Haul {
    /// Seconds of the proxy's processor time for each GB.
    pub(super) cpu: f64,
    /// The part of it in the kernel.
    pub(super) kernel: f64,
    /// GB a second.
    pub(super) speed: f64,
}

impl Bodies {
    /// Downloads them and throws them away.
    pub(super) fn download(&self, world: &World, peer: &Peer) -> anyhow::Result<Haul> {
        if peer.tls { self.haul(peer, || self.curl(world, peer)) } else { self.haul(peer, || self.sink(world, peer)) }
    }

    /// Runs `act` with the clocks on.
    pub(super) fn haul(&self, peer: &Peer, act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Haul> {
        let (before, begun) = (peer.usage()?, Instant::now());
        act().with_context(|| peer.name.clone())?;
        let seconds = begun.elapsed().as_secs_f64();
        interrupt::check()?;
        let gigabytes = self.bytes as f64 * self.streams as f64 / 1e9;
        let after = peer.usage()?;
        let (cpu, user) = (after.cpu - before.cpu, after.user - before.user);
        Ok(Haul { cpu: cpu / gigabytes, kernel: (cpu - user) / gigabytes, speed: gigabytes / seconds })
    }

    fn sink(&self, world: &World, peer: &Peer) -> anyhow::Result<()> {
        self.each(|| {
            let (cores, addr, this) = (world.cores.clone(), peer.addr, self.clone());
            move || {
                cores.run_load_here();
                sink(addr, &this.target, this.bytes)
            }
        })
    }

    fn curl(&self, world: &World, peer: &Peer) -> anyhow::Result<()> {
        let configuration = openssl_configuration(world)?;
        self.each(|| {
            let cmd = world.as_load().env("OPENSSL_CONF", &configuration).args(["curl", "--silent", "--show-error"]);
            let cmd = cmd.args(["--noproxy", "*", "--http1.1", "--fail", "--user", CREDS, "--cacert"]).arg(&world.ca);
            let cmd =
                cmd.args(["--write-out", "%{size_download}", "--output", "/dev/null"]).arg(peer.url(&self.target));
            let bytes = self.bytes;
            move || {
                let got = cmd.run()?;
                ensure!(got == bytes.to_string(), "{got} bytes instead of {bytes}");
                Ok(())
            }
        })
    }

    /// Does the same in each stream.
    pub(super) fn each<F: FnOnce() -> anyhow::Result<()> + Send + 'static>(
        &self,
        make: impl Fn() -> F,
    ) -> anyhow::Result<()> {
        let threads: Vec<_> = (0..self.streams).map(|_| thread::spawn(make())).collect();
        let ends: Vec<_> =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a stream panicked"))).collect();
        ends.into_iter().try_for_each(|end| end?)
    }
}

fn sink(addr: SocketAddr, target: &str, bytes: u64) -> anyhow::Result<()> {
    let mut connection = Connection::open(addr)?;
    let authorization = basic(CREDS);
    connection.send(format!("GET {target} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\r\n"))?;
    let (status, length, mut got) = connection.receive_head()?;
    ensure!(status == 200 && length == bytes, "{addr}{target}: status {status}, {length} bytes");
    let mut buffer = vec![0; 1 << 20];
    let mut socket = connection.socket();
    while got < length {
        let read = socket.read(&mut buffer).context("cannot read a blob")?;
        ensure!(read > 0, "the blob ended after {got} of {length} bytes");
        got += read as u64;
    }
    Ok(())
}
