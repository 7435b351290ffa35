//! Idle connections: what ten thousand of them hold in memory.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::load::openssl_configuration;
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{CREDS, MANIFEST, MANIFEST_TARGET, Placing, World};
use super::{Args, Outcome};
use crate::lab::http::basic;
use crate::lab::interrupt;

const QUICK: usize = 2_000;
const MANY: usize = 10_000;
const KIB: f64 = 1024.0;

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let many = if args.quick { QUICK } else { MANY };
    // Memory does not vary as time does: one round that counts is enough, each of a fresh process.
    let args = &Args { rounds: args.rounds.min(2), ..args.clone() };
    let world = World::start(program, Placing::Pinned, 0)?;
    let field = |tls: bool| {
        let as_asked = |candidate: Candidate| if tls { candidate.tls() } else { candidate };
        [
            as_asked(Candidate::gate("portcullis")),
            as_asked(Candidate::new("nginx", Kind::Nginx(conf::NGINX_CACHED))),
            as_asked(Candidate::new("HAProxy", Kind::Haproxy(conf::HAPROXY_AUTH))),
        ]
    };
    let (mut rows, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    for (how, tls) in [("plain, after one request each", false), ("TLS 1.3, after the handshake", true)] {
        let field = field(tls);
        let names: Vec<&str> = field.iter().map(|candidate| candidate.name.as_str()).collect();
        let samples = interleave(args, noise, &format!("idle, {how}"), &names, |index| {
            let peer = field[index].start_checked(&world)?;
            let (empty, full) = if tls { handshaken(&world, &peer, many)? } else { after_a_request(&peer, many)? };
            Ok(((empty, full), format!("{:.1} MiB", full / KIB / KIB)))
        })?;
        let mut full = Vec::new();
        for (name, shots) in names.iter().zip(&samples) {
            let (mut all, mut each) = (Samples::default(), Samples::default());
            for (empty, full) in shots {
                all.push(full / KIB / KIB);
                each.push((full - empty) / many as f64 / KIB);
            }
            rows.push(vec![(*name).to_owned(), how.to_owned(), all.shown(1), figure(each.median(), 2)]);
            full.push(all);
        }
        let what = format!("RSS at {many} idle connections ({how}), of nginx's");
        goals.push(Goal::at_most(1.0, full[0].median() / full[1].median(), what));
        let bars = names.iter().zip(&full).map(|(name, samples)| bar(name, samples)).collect();
        plots.push(Plot::bars(format!("RSS with {many} idle connections ({how}), MiB"), bars));
    }
    let report = Report {
        name: "idle",
        title: "Idle connections",
        tables: vec![Table {
            caption: format!("Resident memory of the proxy with {many} connections that say nothing."),
            heading: vec!["proxy", "connections", "RSS MiB", "KiB for each"],
            rows,
        }],
        plots,
        goals: goals.clone(),
        remarks: vec![format!("a fresh process each time, one worker; medians (least–most) of {}", args.rounds)],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

fn rss(peer: &Peer) -> anyhow::Result<f64> {
    Ok(peer.usage()?.rss as f64)
}

/// Before and after; the connections are closed before we return.
fn after_a_request(peer: &Peer, many: usize) -> anyhow::Result<(f64, f64)> {
    let empty = rss(peer)?;
    let authorization = basic(CREDS);
    let request = format!("GET {MANIFEST_TARGET} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\r\n");
    let mut open = Vec::with_capacity(many);
    for _ in 0..many {
        interrupt::check()?;
        let mut stream = TcpStream::connect(peer.addr).with_context(|| peer.name.clone())?;
        stream.write_all(request.as_bytes())?;
        read_answer(&stream).with_context(|| peer.name.clone())?;
        open.push(stream);
    }
    Ok((empty, settled(peer)?))
}

fn read_answer(mut stream: &TcpStream) -> anyhow::Result<()> {
    use std::io::Read as _;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut got, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection was closed instead of an answer");
        got.extend_from_slice(&buffer[..read]);
        if let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n")
            && got.len() >= end + 4 + MANIFEST
        {
            ensure!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
            return Ok(());
        }
    }
}

/// wrk shakes hands on all connections and then thinks for longer than we watch.
fn handshaken(world: &World, peer: &Peer, many: usize) -> anyhow::Result<(f64, f64)> {
    let empty = rss(peer)?;
    let script = world.dir.path().join("idle.lua");
    std::fs::write(&script, "function delay() return 600000 end\n").context("cannot write the script of wrk")?;
    let mut cmd = world.as_load().env("OPENSSL_CONF", openssl_configuration(world)?);
    cmd = cmd.args(["wrk", "-t", "1", "-c", &many.to_string(), "-d", "600s", "--timeout", "600s", "-s"]);
    let home = crate::lab::process::scratch("wrk")?;
    let cmd = cmd.arg(script).arg(peer.url(MANIFEST_TARGET));
    let load = crate::lab::process::Service::start("wrk", cmd, home.path())?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while established(peer)? < many {
        interrupt::check()?;
        if Instant::now() > deadline {
            bail!("{}: {} of {many} connections after 120 s\n{}", peer.name, established(peer)?, load.log());
        }
        thread::sleep(Duration::from_millis(200));
    }
    let full = settled(peer)?;
    drop(load);
    Ok((empty, full))
}

/// The server's ends of established connections to a proxy, as the kernel lists them.
fn established(peer: &Peer) -> anyhow::Result<usize> {
    const ESTABLISHED: &str = "01";
    let text = std::fs::read_to_string("/proc/net/tcp").context("cannot read /proc/net/tcp")?;
    let port = format!(":{:04X}", peer.addr.port());
    let ours = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|address| address.ends_with(&port));
        local && fields.nth(1) == Some(ESTABLISHED)
    };
    Ok(text.lines().filter(ours).count())
}

/// The RSS once the proxy has come to rest: handshakes go on for a while after the connections are there.
fn settled(peer: &Peer) -> anyhow::Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut before, mut quiet) = (peer.usage()?, 0);
    loop {
        interrupt::sleep(Duration::from_millis(700));
        interrupt::check()?;
        let now = peer.usage()?;
        // On a busy machine one quiet look may only mean that nobody had his turn.
        quiet = if now.cpu - before.cpu < 0.03 && now.rss == before.rss { quiet + 1 } else { 0 };
        if quiet == 3 || Instant::now() > deadline {
            return Ok(now.rss as f64);
        }
        before = now;
    }
}
