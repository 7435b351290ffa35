//! Blobs, plain and over TLS: what a GB costs each proxy. The clients only read and throw away, so that neither a hash
//! nor a disk of theirs stands between the proxies and their speed.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use super::bare::Moves;
use super::load::{Bodies, Haul};
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{CREDS, Placing, World};
use super::{Args, Behind, Outcome};
use crate::lab::image;
use crate::lab::process::{Usage, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::skopeo::{Skopeo, Trust};
use crate::lab::ui::Step;

const REPOSITORY: &str = "bench/blob";
const OURS: &str = "portcullis";
const RECIPE: &str = "nginx, recipe of 2014";
const HAPROXY: &str = "HAProxy splice, no login";
const TUNED: &str = "nginx, tuned";
const BARE: &str = "a relay that only splices";
const MIB: f64 = 1_048_576.0;

/// Blobs over plain HTTP, as docker-registry or a stub sends them.
pub(super) fn plain(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let size = args.size << 20;
    let world = World::start(program, Placing::Pinned, size)?;
    let registry = Registry::start()?;
    let (blob, memory) = push_and_pull(&world, &registry, size)?;
    let (backend, bytes, behind) = match args.behind {
        Behind::Registry => (registry.addr(), fs::metadata(registry.blob_file(&blob))?.len(), "docker-registry"),
        Behind::Stub => (world.registry, size, "nginx with a file in memory"),
    };
    let field = [
        Candidate::gate(OURS),
        Candidate::new(HAPROXY, Kind::Haproxy(conf::HAPROXY_PLAIN)).without_login(),
        Candidate::new(TUNED, Kind::Nginx(conf::NGINX_CACHED)),
        Candidate::new(RECIPE, Kind::Nginx(conf::NGINX_2014)),
        Candidate::new(BARE, Kind::Bare(Moves::Spliced)).without_login(),
        Candidate::new("direct", Kind::Direct).without_login(),
    ];
    let bodies = Bodies { target: format!("/v2/{REPOSITORY}/blobs/{blob}"), bytes, streams: args.streams };
    let rows = measure(args, noise, &world, "blobs", &field, backend, &bodies)?;
    let kernel = median(&rows, OURS, |row| &row.kernel);
    let goals = vec![
        Goal::at_most(0.08, ratio(&rows, OURS, RECIPE), format!("blob GET, plain, CPU for each GB, of {RECIPE}"))
            .beside(kernel / median(&rows, RECIPE, |row| &row.cpu), "the kernel's part of it")
            .beside(ratio(&rows, BARE, RECIPE), BARE),
        Goal::at_most(1.0, ratio(&rows, OURS, HAPROXY), "blob GET, plain, CPU for each GB, of HAProxy splice-response")
            .beside(ratio(&rows, BARE, HAPROXY), BARE),
    ];
    let name = if args.behind == Behind::Stub { "blobs-stub" } else { "blobs" };
    let mut remarks = vec![remark(args, behind)];
    remarks.push(format!("all pipes are of 1 MiB; the gate's RSS {memory}"));
    publish(args, noise, (name, "Blobs over plain HTTP"), &rows, goals, remarks)
}

/// Blobs over TLS 1.3 with AES-128-GCM.
pub(super) fn tls(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let size = args.size << 20;
    let world = World::start(program, Placing::Pinned, size)?;
    let field = [
        Candidate::gate(OURS).tls(),
        Candidate::new(HAPROXY, Kind::Haproxy(conf::HAPROXY_PLAIN)).without_login().tls(),
        Candidate::new(TUNED, Kind::Nginx(conf::NGINX_CACHED)).tls(),
        Candidate::new(RECIPE, Kind::Nginx(conf::NGINX_2014)).tls(),
    ];
    let digest = "0".repeat(64);
    let target = format!("/v2/{REPOSITORY}/blobs/sha256:{digest}");
    let bodies = Bodies { target, bytes: size, streams: args.streams };
    let rows = measure(args, noise, &world, "blobs over TLS", &field, world.registry, &bodies)?;
    let what = "blob GET, TLS 1.3 AES-128-GCM, CPU for each GB, of nginx's best";
    let goals = vec![Goal::at_most(0.6, ratio(&rows, OURS, TUNED), what)];
    let remarks =
        vec![remark(args, "nginx with a file in memory"), "the clients are curl, one for each download".into()];
    publish(args, noise, ("tls", "Blobs over TLS 1.3, AES-128-GCM"), &rows, goals, remarks)
}

struct Row {
    name: String,
    cpu: Samples,
    kernel: Samples,
    speed: Samples,
    peak: f64,
}

fn measure(
    args: &Args,
    noise: &mut Noise,
    world: &World,
    title: &str,
    field: &[Candidate],
    backend: SocketAddr,
    bodies: &Bodies,
) -> anyhow::Result<Vec<Row>> {
    let start = |candidate: &Candidate| {
        // Before the stub it can be asked for the manifest that the stub has; then it is started before what counts.
        drop(candidate.start_checked(world)?);
        candidate.clone().before(backend).start(world)
    };
    let peers: Vec<Peer> = field.iter().map(start).collect::<anyhow::Result<_>>()?;
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let samples = interleave(args, noise, title, &names, |index| {
        let haul: Haul = bodies.download(world, &peers[index])?;
        Ok((haul, format!("{:.3} s/GB, {:.2} GB/s", haul.cpu, haul.speed)))
    })?;
    let mut rows = Vec::new();
    for (peer, hauls) in peers.iter().zip(samples) {
        let peak = if peer.is_direct() { f64::NAN } else { peer.usage()?.peak_rss as f64 / MIB };
        let none = Samples::default;
        let mut row = Row { name: peer.name.clone(), cpu: none(), kernel: none(), speed: none(), peak };
        for haul in hauls {
            let of_proxy = |seconds: f64| if peer.is_direct() { f64::NAN } else { seconds };
            row.cpu.push(of_proxy(haul.cpu));
            row.kernel.push(of_proxy(haul.kernel));
            row.speed.push(haul.speed);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn ratio(rows: &[Row], ours: &str, theirs: &str) -> f64 {
    median(rows, ours, |row| &row.cpu) / median(rows, theirs, |row| &row.cpu)
}

fn median(rows: &[Row], name: &str, what: impl Fn(&Row) -> &Samples) -> f64 {
    rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| what(row).median())
}

fn remark(args: &Args, behind: &str) -> String {
    format!(
        "{} downloads at once of a blob of {} MiB from {behind}; the proxy alone on one core, load and registry on the \
         others; medians (least–most) of {} interleaved rounds after a warm-up",
        args.streams, args.size, args.rounds
    )
}

fn publish(
    args: &Args,
    noise: &Noise,
    (name, title): (&'static str, &'static str),
    rows: &[Row],
    goals: Vec<Goal>,
    remarks: Vec<String>,
) -> anyhow::Result<Outcome> {
    let ours = median(rows, OURS, |row| &row.cpu);
    let cells = |row: &Row| {
        let of = figure(ours / row.cpu.median(), 3);
        let kernel = figure(row.kernel.median(), 3);
        vec![row.name.clone(), row.cpu.shown(3), kernel, of, row.speed.shown(2), figure(row.peak, 1)]
    };
    let report = Report {
        name,
        title,
        tables: vec![Table {
            caption: "What a GB costs.".into(),
            heading: vec!["proxy", "CPU s/GB", "of it in the kernel", "portcullis is of it", "GB/s", "peak RSS MiB"],
            rows: rows.iter().map(cells).collect(),
        }],
        plots: vec![Plot::bars(
            format!("{title}: processor time for each GB, s"),
            rows.iter().map(|row| bar(&row.name, &row.cpu)).collect(),
        )],
        goals: goals.clone(),
        remarks,
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

/// What the gate's memory is after a blob went through it each way, and the blob's digest.
fn push_and_pull(world: &World, registry: &Registry, size: u64) -> anyhow::Result<(String, String)> {
    let step = Step::begin("push and pull a blob through the gate");
    let gate = Candidate::gate(OURS).before(registry.addr()).start(world)?;
    let (there, back) = (scratch("image")?, scratch("image")?);
    let written = image::write(there.path(), &[size], random())?;
    let skopeo = Skopeo::new()?;
    let name = format!("{}/{REPOSITORY}:1", gate.addr);
    skopeo.push(there.path(), &name, Some(CREDS), Trust::Plain)?.ok()?;
    let after_push = gate.usage()?;
    skopeo.pull(&name, back.path(), Some(CREDS), Trust::Plain)?.ok()?;
    let after_pull = gate.usage()?;
    image::compare(there.path(), back.path())?;
    let blob = written.layers.into_iter().next().context("an image without a layer")?;
    let shown = |usage: Usage| format!("{:.1} MiB (peak {:.1})", usage.rss as f64 / MIB, usage.peak_rss as f64 / MIB);
    let memory = format!("after a push of the blob {}, after the pull {}", shown(after_push), shown(after_pull));
    step.done(&memory);
    Ok((blob, memory))
}
