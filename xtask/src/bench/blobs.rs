//! Blobs over plain HTTP: what a GB costs the gate, and what it costs nginx in the recipe of 2014.
//!
//! Both ask the same auth service. The clients only read and throw away, so that neither a hash nor a disk of theirs
//! stands between the proxies and their speed.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use tempfile::TempDir;

use super::{Args, Behind, machine};
use crate::lab::cmd::Cmd;
use crate::lab::gate::{Gate, Serve};
use crate::lab::hello::{Reply, Stub};
use crate::lab::http::{Connection, basic};
use crate::lab::process::{Service, Usage, free_address, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::skopeo::{Skopeo, Trust};
use crate::lab::ui::{Step, say, table};
use crate::lab::{image, interrupt};
use crate::workspace;

const CREDS: &str = "bench:bench";
const REPOSITORY: &str = "bench/blob";
const TEMPLATE: &str = include_str!("../../../benches/peers/nginx-2014.conf");

/// A proxy under test.
struct Peer {
    name: &'static str,
    addr: SocketAddr,
    process: Process,
    samples: Vec<Sample>,
}

enum Process {
    Gate(Gate),
    Nginx(Service, #[expect(dead_code, reason = "removed when dropped")] TempDir),
}

#[derive(Clone, Copy)]
struct Sample {
    cpu_per_gb: f64,
    gb_per_second: f64,
}

impl Peer {
    fn usage(&self) -> anyhow::Result<Usage> {
        match &self.process {
            Process::Gate(gate) => gate.usage(),
            Process::Nginx(service, _) => Usage::of_tree(service.pid()),
        }
    }
}

/// What is measured, all of it running.
struct Field {
    _auth: Stub,
    _stub: Option<Stub>,
    _registry: Registry,
    target: String,
    bytes: u64,
    peers: Vec<Peer>,
    memory: Memory,
}

struct Memory {
    after_push: Usage,
    after_pull: Usage,
}

pub(super) fn run(args: &Args, program: &Path) -> anyhow::Result<()> {
    let mut field = prepare(args, program)?;
    for round in 0..=args.rounds {
        let label = if round == 0 { "warm-up".to_owned() } else { format!("round {round} of {}", args.rounds) };
        let step = Step::begin(label);
        let mut figures = Vec::new();
        for index in 0..field.peers.len() {
            // The order turns with each round: nobody always runs on a cold or a hot machine.
            let index = (index + round) % field.peers.len();
            interrupt::check()?;
            let sample = download(&field.peers[index], &field.target, field.bytes, args.streams)?;
            let peer = &mut field.peers[index];
            figures.push(format!("{} {:.3} s/GB", peer.name, sample.cpu_per_gb));
            if round > 0 {
                peer.samples.push(sample);
            }
        }
        step.done(&figures.join(", "));
    }
    publish(args, &field)
}

fn prepare(args: &Args, program: &Path) -> anyhow::Result<Field> {
    let auth = Stub::start(|request| match request.field("authorization") {
        Some(value) if value == basic(CREDS) => Reply::text(200, "User authenticated successfully"),
        _ => Reply::text(401, "who are you?").with("WWW-Authenticate", "Basic realm=\"bench\""),
    })?;
    let registry = Registry::start()?;
    let step = Step::begin(format!("push and pull {} MiB through the gate", args.size));
    let gate = start_gate(program, registry.addr(), auth.addr())?;
    let (blob, memory) = push_and_pull(&gate, args.size << 20)?;
    drop(gate);
    let resident = |usage: Usage| format!("{:.1} MiB", usage.peak_rss as f64 / f64::from(1 << 20));
    step.done(&format!("the gate's peak RSS: {}", resident(memory.after_pull)));

    let stub = match args.behind {
        Behind::Stub => Some(Stub::blob(args.size << 20)?),
        Behind::Registry => None,
    };
    let backend = stub.as_ref().map_or(registry.addr(), Stub::addr);
    let bytes = if stub.is_some() { args.size << 20 } else { fs::metadata(registry.blob_file(&blob))?.len() };
    let gate = start_gate(program, backend, auth.addr())?;
    let peers = vec![
        Peer { name: "portcullis", addr: gate.addr(), process: Process::Gate(gate), samples: vec![] },
        start_nginx(backend, auth.addr())?,
    ];
    let target = format!("/v2/{REPOSITORY}/blobs/{blob}");
    Ok(Field { _auth: auth, _stub: stub, _registry: registry, target, bytes, peers, memory })
}

fn start_gate(program: &Path, backend: SocketAddr, auth: SocketAddr) -> anyhow::Result<Gate> {
    let serve = Serve::new(program)?.flag("--backend", format!("http://{backend}"));
    serve.flag("--auth-backend", format!("http://{auth}")).flag("--access-log", "off").start()
}

fn start_nginx(backend: SocketAddr, auth: SocketAddr) -> anyhow::Result<Peer> {
    let dir = scratch("nginx")?;
    let addr = free_address()?;
    let config = TEMPLATE
        .replace("@PORT@", &addr.port().to_string())
        .replace("@BACKEND@", &backend.to_string())
        .replace("@AUTH@", &auth.to_string())
        .replace("@DIR@", &dir.path().display().to_string());
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let cmd = Cmd::new("nginx").arg("-p").arg(dir.path()).arg("-c").arg(&file);
    let mut service = Service::start("nginx", cmd, dir.path())?;
    service.wait_listening(addr)?;
    let name = "nginx 2014";
    Ok(Peer { name, addr, process: Process::Nginx(service, dir), samples: vec![] })
}

fn push_and_pull(gate: &Gate, size: u64) -> anyhow::Result<(String, Memory)> {
    let (there, back) = (scratch("image")?, scratch("image")?);
    let written = image::write(there.path(), &[size], random())?;
    let skopeo = Skopeo::new()?;
    let name = format!("{}/{REPOSITORY}:1", gate.addr());
    skopeo.push(there.path(), &name, Some(CREDS), Trust::Plain)?.ok()?;
    let after_push = gate.usage()?;
    skopeo.pull(&name, back.path(), Some(CREDS), Trust::Plain)?.ok()?;
    let after_pull = gate.usage()?;
    image::compare(there.path(), back.path())?;
    let blob = written.layers.into_iter().next().context("an image without a layer")?;
    Ok((blob, Memory { after_push, after_pull }))
}

fn download(peer: &Peer, target: &str, bytes: u64, streams: usize) -> anyhow::Result<Sample> {
    let before = peer.usage()?;
    let begun = Instant::now();
    let readers: Vec<_> = (0..streams)
        .map(|_| {
            let (addr, target) = (peer.addr, target.to_owned());
            thread::spawn(move || sink(addr, &target))
        })
        .collect();
    for reader in readers {
        let read = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        ensure!(read == bytes, "{}: {read} bytes instead of {bytes}", peer.name);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let gigabytes = bytes as f64 * streams as f64 / 1e9;
    let cpu = peer.usage()?.cpu - before.cpu;
    Ok(Sample { cpu_per_gb: cpu / gigabytes, gb_per_second: gigabytes / seconds })
}

fn sink(addr: SocketAddr, target: &str) -> anyhow::Result<u64> {
    let mut connection = Connection::open(addr)?;
    let authorization = basic(CREDS);
    connection.send(format!("GET {target} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n\r\n"))?;
    let (status, length, mut got) = connection.receive_head()?;
    ensure!(status == 200, "{addr}{target}: status {status}");
    let mut buffer = vec![0; 1 << 20];
    let mut socket = connection.socket();
    while got < length {
        let read = socket.read(&mut buffer).context("cannot read a blob")?;
        ensure!(read > 0, "the blob ended after {got} of {length} bytes");
        got += read as u64;
    }
    Ok(got)
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn publish(args: &Args, field: &Field) -> anyhow::Result<()> {
    let cpu = |peer: &Peer| median(&peer.samples, |sample| sample.cpu_per_gb);
    let recipe = field.peers.last().map_or(f64::NAN, cpu);
    let mut rows = Vec::new();
    for peer in &field.peers {
        let speed = median(&peer.samples, |sample| sample.gb_per_second);
        let peak = peer.usage()?.peak_rss as f64 / f64::from(1 << 20);
        rows.push(vec![
            peer.name.to_owned(),
            format!("{:.3}", cpu(peer)),
            format!("{:.3}", cpu(peer) / recipe),
            format!("{speed:.2}"),
            format!("{peak:.1}"),
        ]);
    }
    let heading = ["proxy", "CPU s/GB", "of nginx", "GB/s", "peak RSS MiB"];
    let mebi = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let behind = if args.behind == Behind::Stub { "a stub that sends zeros" } else { "docker-registry" };
    let (push, pull) = (field.memory.after_push, field.memory.after_pull);
    let remarks = format!(
        "{machine}- {streams} downloads at once of a blob of {size} MiB from {behind}; medians of {rounds} interleaved \
         rounds after a warm-up; both proxies ask the same auth service\n\
         - the gate's RSS after a push of {size} MiB: {} (peak {}); after the pull: {} (peak {})\n",
        mebi(push.rss),
        mebi(push.peak_rss),
        mebi(pull.rss),
        mebi(pull.peak_rss),
        machine = machine::describe(),
        streams = args.streams,
        size = args.size,
        rounds = args.rounds,
    );
    say("");
    say(table(&heading, &rows));
    say(&remarks);
    let file = workspace::root().join("benches/results").join(match args.behind {
        Behind::Registry => "blobs.md",
        Behind::Stub => "blobs-stub.md",
    });
    fs::write(&file, format!("# Blobs over plain HTTP\n\n{}\n{remarks}", markdown(&heading, &rows)))
        .with_context(|| format!("cannot write {}", file.display()))?;
    say(format!("Written to {}.", file.display()));
    Ok(())
}

fn markdown(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rule = vec!["---"; heading.len()].join(" | ");
    let rows: String = rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    format!("| {} |\n| {rule} |\n{rows}", heading.join(" | "))
}
