//! Whole images, pulled and pushed by skopeo: wall time and whose processor time.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use rustix::param::clock_ticks_per_second;

use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{CREDS, Placing, World};
use super::{Args, Outcome};
use crate::lab::image;
use crate::lab::process::{Usage, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::skopeo::{Skopeo, Trust};
use crate::lab::ui::Step;

const LAYERS: usize = 5;
const TLS: &str = "portcullis, TLS";
const NGINX_TLS: &str = "nginx tuned, TLS";

#[derive(Default)]
struct Row {
    wall: Samples,
    proxy: Samples,
    client: Samples,
    registry: Samples,
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let megabytes = if args.quick { 10 } else { 100 };
    let args = &Args { rounds: args.rounds.min(3), ..args.clone() };
    // Everybody may run everywhere: a pull is what its user waits for.
    let world = World::start(program, Placing::Free, 0)?;
    let registry = Registry::start()?;
    let image = scratch("image")?;
    let step = Step::begin("an image to move");
    image::write(image.path(), &[megabytes * 1_000_000; LAYERS], random())?;
    let skopeo = Skopeo::new()?;
    skopeo.push(image.path(), &format!("{}/bench/pull:1", registry.addr()), None, Trust::Plain)?.ok()?;
    step.done("");
    let field = [
        Candidate::new("direct, plain", Kind::Direct).without_login(),
        Candidate::gate("portcullis, plain"),
        Candidate::gate(TLS).tls(),
        Candidate::new(NGINX_TLS, Kind::Nginx(conf::NGINX_CACHED)).tls(),
        Candidate::new("nginx, recipe of 2014, plain", Kind::Nginx(conf::NGINX_2014)),
    ];
    let start = |candidate: &Candidate| candidate.clone().before(registry.addr()).start(&world);
    let peers: Vec<Peer> = field.iter().map(start).collect::<anyhow::Result<_>>()?;
    let certificates = world.dir.path().join("certs.d");
    fs::create_dir_all(&certificates).context("cannot create a directory")?;
    fs::copy(&world.ca, certificates.join("ca.crt")).context("cannot copy the CA's certificate")?;
    let (mut tables, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    for push in [false, true] {
        let title = if push { "pushes" } else { "pulls" };
        let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        let samples = interleave(args, noise, title, &names, |index| {
            let shot = transfer(&peers[index], &registry, image.path(), &certificates, push)?;
            Ok((shot, format!("{:.2} s, proxy {:.2} s", shot[0], shot[1])))
        })?;
        let rows: Vec<(&str, Row)> = names.into_iter().zip(samples.iter().map(|shots| row(shots))).collect();
        tables.push(table(title, megabytes, &rows));
        goals.extend(self::goals(push, &rows));
        let bars = rows.iter().map(|(name, row)| bar(name, &row.wall)).collect();
        plots.push(Plot::bars(format!("{title} by skopeo: seconds"), bars));
    }
    let report = Report {
        name: "pulls",
        title: "Images by skopeo",
        tables,
        plots,
        goals: goals.clone(),
        remarks: vec![format!(
            "a fresh skopeo without memory each time, docker-registry behind; {LAYERS} layers of {megabytes} MB that do \
             not compress; everybody on all cores; medians (least–most) of {} interleaved rounds",
            args.rounds
        )],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

/// Wall, proxy, client and registry, in seconds.
fn transfer(peer: &Peer, registry: &Registry, image: &Path, certs: &Path, push: bool) -> anyhow::Result<[f64; 4]> {
    let trust = if peer.tls { Trust::CertDir(certs) } else { Trust::Plain };
    let creds = (!peer.is_direct()).then_some(CREDS);
    let host = if peer.tls { format!("localhost:{}", peer.addr.port()) } else { peer.addr.to_string() };
    let (skopeo, back) = (Skopeo::new()?, scratch("image")?);
    // A layer that the registry has is not sent again: a push needs an image of its own.
    let fresh = scratch("image")?;
    if push {
        image::write(fresh.path(), &layers(image)?, random())?;
    }
    let registry_cpu = || Usage::of(registry.service().pid()).map(|usage| usage.cpu);
    let (proxy, client, server) = (peer.usage()?.cpu, children()?, registry_cpu()?);
    let begun = Instant::now();
    if push {
        let name = format!("{host}/bench/push-{:x}:1", random());
        skopeo.push(fresh.path(), &name, creds, trust)?.ok()?;
    } else {
        skopeo.pull(&format!("{host}/bench/pull:1"), back.path(), creds, trust)?.ok()?;
    }
    let wall = begun.elapsed().as_secs_f64();
    Ok([wall, peer.usage()?.cpu - proxy, children()? - client, registry_cpu()? - server])
}

/// The sizes of an image's layers.
fn layers(image: &Path) -> anyhow::Result<Vec<u64>> {
    let dir = image.join("blobs/sha256");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let sizes: Vec<u64> = entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.len())).collect();
    Ok(sizes.into_iter().filter(|size| *size > 1_000_000).map(|size| size - size % 1_000_000).collect())
}

/// Processor time of our children that have ended: skopeo alone ends while we look.
fn children() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok((ticks(13) + ticks(14)) as f64 / clock_ticks_per_second() as f64)
}

fn row(shots: &[[f64; 4]]) -> Row {
    let mut row = Row::default();
    for [wall, proxy, client, registry] in shots {
        row.wall.push(*wall);
        row.proxy.push(*proxy);
        row.client.push(*client);
        row.registry.push(*registry);
    }
    row
}

fn table(title: &str, megabytes: u64, rows: &[(&str, Row)]) -> Table {
    let direct = rows.first().map_or(f64::NAN, |(_, row)| row.wall.median());
    let cells = |(name, row): &(&str, Row)| {
        vec![
            (*name).to_owned(),
            row.wall.shown(2),
            figure(row.wall.median() / direct, 2),
            row.proxy.shown(2),
            row.client.shown(2),
            row.registry.shown(2),
        ]
    };
    Table {
        caption: format!("{title} of {LAYERS} × {megabytes} MB, seconds."),
        heading: vec!["way", "wall", "of direct", "proxy CPU", "client CPU", "registry CPU"],
        rows: rows.iter().map(cells).collect(),
    }
}

fn goals(push: bool, rows: &[(&str, Row)]) -> Vec<Goal> {
    let of = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| &row.1);
    let wall = |name: &str| of(name).map_or(f64::NAN, |row| row.wall.median());
    let proxy = |name: &str| of(name).map_or(f64::NAN, |row| row.proxy.median());
    let direct = rows.first().map_or(f64::NAN, |(_, row)| row.wall.median());
    let what = if push { "push" } else { "pull" };
    vec![
        Goal::at_most(
            1.03,
            wall(TLS) / direct,
            format!("skopeo {what} through the gate with TLS, wall, of direct plain"),
        ),
        Goal::at_most(0.5, proxy(TLS) / proxy(NGINX_TLS), format!("skopeo {what} with TLS, proxy CPU, of {NGINX_TLS}")),
    ]
}
