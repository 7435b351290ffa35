//! Whole images, pulled and pushed by real clients: wall time and whose processor time.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::bare::Moves;
use super::clients::{Client, Place};
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{Placing, World};
use super::{Args, Outcome};
use crate::lab::cmd::Cmd;
use crate::lab::containerd::Containerd;
use crate::lab::den::Den;
use crate::lab::docker::Docker;
use crate::lab::image;
use crate::lab::process::{Usage, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::skopeo::{Skopeo, Trust};
use crate::lab::ui::{Step, say};

const LAYERS: usize = 5;
/// The last of the field.
const RELAYS: usize = 2;
const DIRECT_TLS: &str = "direct, the registry's own TLS";
const TLS: &str = "portcullis, TLS";
const NGINX_TLS: &str = "nginx tuned, TLS";
const BARE_TLS: &str = "a relay that does nothing but TLS";
/// The kernel's part of a relay over TLS that this process encrypts; sealing comes on top.
const COPIES: &str = "a relay that only copies, plain";
const IMAGE: &str = "bench/pull";

#[derive(Default)]
struct Row {
    wall: Samples,
    proxy: Samples,
    client: Samples,
    registry: Samples,
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let args = &Args { rounds: args.rounds.min(3), ..args.clone() };
    if let Some(reason) = Den::why_not() {
        say(format!("docker and ctr are left out: {reason}"));
        return measure(args, program, noise, &[Client::Skopeo], format!("docker and ctr were left out: {reason}"));
    }
    // The daemons' fixed places are hidden in a mount namespace; the network is the bench's.
    let den = Den::start_in_this_network()?;
    let step = Step::begin("dockerd and containerd");
    let docker = Docker::start(&den)?;
    let clients = [Client::Skopeo, Client::Docker(docker), Client::Ctr(Containerd::start(&den)?, &den)];
    step.done("");
    measure(args, program, noise, &clients, "dockerd and containerd in namespaces of their own".to_owned())
}

fn measure(
    args: &Args,
    program: &Path,
    noise: &mut Noise,
    clients: &[Client<'_>],
    remark: String,
) -> anyhow::Result<Outcome> {
    let megabytes = if args.quick { 10 } else { 100 };
    // Everybody may run everywhere: a pull is what its user waits for.
    let world = World::start(program, Placing::Free, 0)?;
    let registry = Registry::start()?;
    let step = Step::begin("an image to move");
    let image = scratch("image")?;
    image::write(image.path(), &[megabytes * 1_000_000; LAYERS], random())?;
    let secure = registry.secure_sibling(&world.identity)?;
    let to = format!("{}/{IMAGE}:1", registry.addr());
    Skopeo::new()?.push(image.path(), &to, None, Trust::Plain)?.ok()?;
    step.done("");
    let field = [
        Candidate::new("direct, plain", Kind::Direct).without_login(),
        Candidate::new(DIRECT_TLS, Kind::Direct).without_login().tls().before(secure.addr()),
        Candidate::gate("portcullis, plain"),
        Candidate::gate(TLS).tls(),
        Candidate::new(NGINX_TLS, Kind::Nginx(conf::NGINX_CACHED)).tls(),
        Candidate::new("nginx, recipe of 2014, plain", Kind::Nginx(conf::NGINX_2014)),
        // The relays come last, since nothing is pushed through them: the first tells the registry nothing of its TLS, which
        // then names the wrong place to send to.
        Candidate::new(BARE_TLS, Kind::BareTls).without_login().tls(),
        Candidate::new(COPIES, Kind::Bare(Moves::Copied)).without_login(),
    ];
    let start = |candidate: &Candidate| candidate.clone().or_before(registry.addr()).start(&world);
    let peers: Vec<Peer> = field.iter().map(start).collect::<anyhow::Result<_>>()?;
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let trust = world.dir.path().join("certs.d");
    fs::create_dir_all(&trust).context("cannot create a directory")?;
    fs::copy(&world.ca, trust.join("ca.crt")).context("cannot copy the CA's certificate")?;
    let sealing = megabytes as f64 * 1e6 * LAYERS as f64 / sealed_in_a_second()?;
    let (mut tables, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    for client in clients {
        for peer in &peers {
            client.meet(&Place::new(peer, &world, &trust))?;
        }
        for push in [false, true] {
            let title = format!("{} by {}", if push { "pushes" } else { "pulls" }, client.name());
            let names = &names[..names.len() - if push { RELAYS } else { 0 }];
            let samples = interleave(args, noise, &title, names, |index| {
                let place = Place::new(&peers[index], &world, &trust);
                let server = if peers[index].addr == secure.addr() { &secure } else { &registry };
                let shot = transfer(client, &place, &peers[index], server, megabytes, push)?;
                Ok((shot, format!("{:.2} s, proxy {:.2} s", shot[0], shot[1])))
            })?;
            let rows: Vec<(&str, Row)> = names.iter().copied().zip(samples.iter().map(|shots| row(shots))).collect();
            tables.push(table(&title, megabytes, &rows));
            if !push {
                goals.extend(self::goals(client.name(), &rows, sealing));
            }
            let bars = rows.iter().map(|(name, row)| bar(name, &row.wall)).collect();
            plots.push(Plot::bars(format!("{title}: seconds"), bars));
        }
    }
    let report = Report {
        name: "pulls",
        title: "Images by skopeo, docker and ctr",
        tables,
        plots,
        goals: goals.clone(),
        remarks: vec![
            format!(
                "each client begins without the image and without memory of it, docker-registry behind; {LAYERS} layers \
                 of {megabytes} MB that do not compress; everybody on all cores; medians (least–most) of {} interleaved \
                 rounds",
                args.rounds
            ),
            remark,
            versions(),
            "a client's CPU is that of its commands and of its daemons; docker and ctr unpack what they pull"
                .to_owned(),
        ],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

/// What the clients and the registry say that they are.
fn versions() -> String {
    let ask = |words: &[&str]| Cmd::new(words[0]).args(&words[1..]).output().ok().map(|output| output.everything());
    let first = |text: String| text.lines().next().unwrap_or_default().trim().to_owned();
    let all = [
        ["docker-registry", "--version"],
        ["skopeo", "--version"],
        ["dockerd", "--version"],
        ["containerd", "--version"],
    ];
    all.iter().filter_map(|words| ask(words)).map(first).collect::<Vec<_>>().join("; ")
}

/// Wall, proxy, client and registry, in seconds.
fn transfer(
    client: &Client<'_>,
    place: &Place<'_>,
    peer: &Peer,
    registry: &Registry,
    megabytes: u64,
    push: bool,
) -> anyhow::Result<[f64; 4]> {
    // A layer that the registry has is not sent again: a push needs an image of its own.
    let repository = if push { format!("bench/push-{:x}", random()) } else { IMAGE.to_owned() };
    let loaded = if push {
        let layout = scratch("image")?;
        image::write(layout.path(), &[megabytes * 1_000_000; LAYERS], random())?;
        Some(client.load(place, &repository, layout)?)
    } else {
        None
    };
    let registry_cpu = || Usage::of(registry.service().pid()).map(|usage| usage.cpu);
    let (proxy, spent, server) = (peer.usage()?.cpu, client.cpu()?, registry_cpu()?);
    let begun = Instant::now();
    match &loaded {
        Some(image) => client.push(place, image)?,
        None => client.pull(place, &repository)?,
    }
    let wall = begun.elapsed().as_secs_f64();
    let shot = [wall, peer.usage()?.cpu - proxy, client.cpu()? - spent, registry_cpu()? - server];
    client.forget(place, &repository)?;
    Ok(shot)
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

/// `sealing` is how long it takes to encrypt the image, in seconds.
fn goals(client: &str, rows: &[(&str, Row)], sealing: f64) -> Vec<Goal> {
    let of = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| &row.1);
    let wall = |name: &str| of(name).map_or(f64::NAN, |row| row.wall.median());
    let proxy = |name: &str| of(name).map_or(f64::NAN, |row| row.proxy.median());
    let direct = rows.first().map_or(f64::NAN, |(_, row)| row.wall.median());
    let what = format!("{client} pull");
    // How much of it is TLS itself, which costs this client the decrypting whoever encrypts.
    let without_proxy = wall(DIRECT_TLS) / direct;
    vec![
        Goal::at_most(1.03, wall(TLS) / direct, format!("{what} through the gate with TLS, wall, of direct plain"))
            .beside(without_proxy, "the registry's own TLS, without a proxy,")
            .beside(wall(BARE_TLS) / direct, BARE_TLS),
        Goal::at_most(0.5, proxy(TLS) / proxy(NGINX_TLS), format!("{what} with TLS, proxy CPU, of {NGINX_TLS}"))
            .beside(proxy(BARE_TLS) / proxy(NGINX_TLS), BARE_TLS)
            .beside((proxy(COPIES) + sealing) / proxy(NGINX_TLS), "copying and AES-128-GCM alone"),
    ]
}

/// How many bytes are encrypted in a second of processor time with AES-128-GCM in records of TLS' size, by OpenSSL.
fn sealed_in_a_second() -> anyhow::Result<f64> {
    let step = Step::begin("openssl speed");
    let options = ["speed", "-mr", "-seconds", "2", "-bytes", "16384", "-evp", "aes-128-gcm"];
    let output = Cmd::new("openssl").args(options).output()?.everything();
    // "+F:22:aes-128-gcm:4535533568.00"
    let line = output.lines().find(|line| line.starts_with("+F:")).context("openssl speed tells no speed")?;
    let speed: f64 = line.rsplit(':').next().unwrap_or_default().parse().context("openssl speed tells no speed")?;
    step.done(&format!("{:.2} GB/s", speed / 1e9));
    Ok(speed)
}
