//! Uploads: what a GB that goes up costs, and how much of it lands on a disk on the way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, ensure};

use super::load::{Bodies, Haul};
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{CREDS, Cores, Placing, World};
use super::{Args, Outcome};
use crate::lab::http::{Connection, basic, read_fields, read_line};

const OURS: &str = "portcullis";
const TUNED: &str = "nginx, tuned";
const PIECE: usize = 1 << 20;

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let world = World::start(program, Placing::Pinned, 0)?;
    let drain = Drain::start(world.cores.clone())?;
    let field = [
        Candidate::gate(OURS),
        Candidate::new("HAProxy splice, no login", Kind::Haproxy(conf::HAPROXY_PLAIN)).without_login(),
        Candidate::new(TUNED, Kind::Nginx(conf::NGINX_CACHED)),
        Candidate::new("nginx, recipe of 2014", Kind::Nginx(conf::NGINX_2014)),
    ];
    let mut peers: Vec<Peer> = Vec::new();
    for candidate in &field {
        drop(candidate.start_checked(&world)?);
        peers.push(candidate.clone().before(drain.addr).start(&world)?);
    }
    let bodies = Bodies {
        target: "/v2/bench/blob/blobs/uploads/0a1b2c3d-0000-4000-8000-000000000000".into(),
        bytes: args.size << 20,
        streams: args.streams,
    };
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let samples = interleave(args, noise, "uploads", &names, |index| {
        let (haul, disk) = send(&world, &peers[index], &bodies)?;
        Ok(((haul, disk), format!("{:.3} s/GB, {:.2} GB/s", haul.cpu, haul.speed)))
    })?;
    let (mut rows, mut bars, mut medians) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shots) in names.iter().zip(&samples) {
        let (mut cpu, mut speed, mut disk) = <(Samples, Samples, Samples)>::default();
        for (haul, share) in shots {
            cpu.push(haul.cpu);
            speed.push(haul.speed);
            disk.push(*share);
        }
        rows.push(vec![(*name).to_owned(), cpu.shown(3), speed.shown(2), figure(disk.median(), 2)]);
        bars.push(bar(name, &cpu));
        medians.push((*name, cpu.median(), disk.most()));
    }
    let of = |name: &str| medians.iter().find(|row| row.0 == name).map_or(f64::NAN, |row| row.1);
    let written = medians.first().map_or(f64::NAN, |row| row.2);
    let goals = vec![
        Goal::at_most(0.5, of(OURS) / of(TUNED), format!("uploads, CPU for each GB, of {TUNED}")),
        Goal::at_most(0.0, written, "bytes written to a disk by the gate for each byte uploaded"),
    ];
    let report = Report {
        name: "uploads",
        title: "Uploads over plain HTTP",
        tables: vec![Table {
            caption: "What a GB costs that goes up.".into(),
            heading: vec!["proxy", "CPU s/GB", "GB/s", "bytes to files for each byte"],
            rows,
        }],
        plots: vec![Plot::bars("Uploads: processor time for each GB, s", bars)],
        goals: goals.clone(),
        remarks: vec![format!(
            "{} PATCHes at once of {} MiB with Content-Length to a service that throws the bytes away; the proxy alone \
             on one core; medians (least–most) of {} interleaved rounds; bytes to files as /proc/PID/io counts them",
            args.streams, args.size, args.rounds
        )],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

/// Sends all bodies; also how much of each byte landed in a file.
fn send(world: &World, peer: &Peer, bodies: &Bodies) -> anyhow::Result<(Haul, f64)> {
    let before = peer.written();
    let haul = bodies.haul(peer, || {
        bodies.each(|| {
            let (addr, cores, bodies) = (peer.addr, world.cores.clone(), bodies.clone());
            move || {
                cores.run_load_here();
                upload(addr, &bodies)
            }
        })
    })?;
    Ok((haul, (peer.written() - before) / (bodies.bytes as f64 * bodies.streams as f64)))
}

fn upload(addr: SocketAddr, bodies: &Bodies) -> anyhow::Result<()> {
    let mut connection = Connection::open(addr)?;
    let (target, bytes, authorization) = (&bodies.target, bodies.bytes, basic(CREDS));
    connection.send(format!(
        "PATCH {target} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n\r\n"
    ))?;
    let (piece, mut left) = (vec![0; PIECE], bytes);
    while left > 0 {
        let now = usize::try_from(left.min(PIECE as u64))?;
        connection.send(&piece[..now])?;
        left -= now as u64;
    }
    let answer = connection.receive(false)?;
    ensure!(answer.status == 202, "an upload was answered with {}: {}", answer.status, answer.text());
    Ok(())
}

/// A service that reads bodies and forgets them.
struct Drain {
    addr: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Drain {
    fn start(cores: Cores) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
        let addr = listener.local_addr().context("a listener without an address")?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        thread::spawn(move || {
            cores.run_load_here();
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::SeqCst) {
                    break;
                }
                // Threads are where their parent is. A client that leaves early is its own affair.
                thread::spawn(move || drop(converse(stream)));
            }
        });
        Ok(Self { addr, ended })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

fn converse(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut buffer = vec![0; PIECE];
    while !reader.fill_buf()?.is_empty() {
        read_line(&mut reader)?;
        let fields = read_fields(&mut reader)?;
        let length = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let mut left: u64 = length.context("no Content-Length")?.1.parse()?;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left)?);
            let read = reader.read(&mut buffer[..most])?;
            ensure!(read > 0, "an upload was cut short");
            left -= read as u64;
        }
        writer.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}
