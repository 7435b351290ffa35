//! Whole images, pulled and pushed by real clients: wall time and whose processor time.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::clients::{Client, Place};
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::samples::{self, Spent};
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
/// At most so many rounds of pushes: each takes an image of its own, and no goal is about them.
const PUSHES: usize = 3;
const DIRECT_TLS: &str = "direct, the registry's own TLS";
const PLAIN: &str = "portcullis, plain";
const TLS: &str = "portcullis, TLS";
const NGINX_TLS: &str = "nginx tuned, TLS";
const BARE_TLS: &str = "a relay that does nothing but TLS";
/// What is sampled, too.
const SAMPLED: [&str; 4] = [PLAIN, TLS, NGINX_TLS, BARE_TLS];
const FLOOR: &str = "copying and sealing each byte in a process, and the kernel's part of moving it uncopied, by samples and \
                     without anything else,";
const SAMPLING: &str = "samples are of `perf record --event cpu-clock` in pulls of their own; the sealing of programs whose \
                        functions have no names is in \"else\"";
const IMAGE: &str = "bench/pull";

#[derive(Default)]
struct Row {
    wall: Samples,
    proxy: Samples,
    client: Samples,
    registry: Samples,
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
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
        Candidate::gate(PLAIN),
        Candidate::gate(TLS).tls(),
        Candidate::new(NGINX_TLS, Kind::Nginx(conf::NGINX_CACHED)).tls(),
        Candidate::new("nginx, recipe of 2014, plain", Kind::Nginx(conf::NGINX_2014)),
        // The last, since nothing is pushed through it: it tells the registry nothing of its TLS, which then names the wrong
        // place to send to.
        Candidate::new(BARE_TLS, Kind::BareTls).without_login().tls(),
    ];
    let start = |candidate: &Candidate| candidate.clone().or_before(registry.addr()).start(&world);
    let peers: Vec<Peer> = field.iter().map(start).collect::<anyhow::Result<_>>()?;
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let trust = world.dir.path().join("certs.d");
    fs::create_dir_all(&trust).context("cannot create a directory")?;
    fs::copy(&world.ca, trust.join("ca.crt")).context("cannot copy the CA's certificate")?;
    let unsampled = samples::why_not();
    let pushes = args.rounds.min(PUSHES);
    let (mut tables, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    for client in clients {
        for peer in &peers {
            client.meet(&Place::new(peer, &world, &trust))?;
        }
        for push in [false, true] {
            let title = format!("{} by {}", if push { "pushes" } else { "pulls" }, client.name());
            let names = if push { &names[..names.len() - 1] } else { &names };
            let args = &Args { rounds: if push { pushes } else { args.rounds }, ..args.clone() };
            let samples = interleave(args, noise, &title, names, |index| {
                let place = Place::new(&peers[index], &world, &trust);
                let server = if peers[index].addr == secure.addr() { &secure } else { &registry };
                let shot = transfer(client, &place, &peers[index], server, megabytes, push)?;
                Ok((shot, format!("{:.2} s, proxy {:.2} s", shot[0], shot[1])))
            })?;
            let rows: Vec<(&str, Row)> = names.iter().copied().zip(samples.iter().map(|shots| row(shots))).collect();
            tables.push(table(&title, megabytes, &rows));
            if !push {
                let spent = match unsampled {
                    Some(_) => Vec::new(),
                    None => sample(args, noise, client, &peers, |peer| Place::new(peer, &world, &trust))?,
                };
                tables.extend(spent_table(&title, &spent));
                goals.extend(self::goals(client.name(), &rows, floor(&spent)));
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
            unsampled.map_or_else(|| SAMPLING.to_owned(), |reason| format!("nothing was sampled: {reason}")),
            format!(
                "each client begins without the image and without memory of it, docker-registry behind; {LAYERS} layers \
                 of {megabytes} MB that do not compress; everybody on all cores; medians (least–most) of {} interleaved \
                 rounds, of pushes {pushes}",
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
    let pulled = match &loaded {
        Some(image) => client.push(place, image).map(|()| None)?,
        None => client.pull(place, &repository)?,
    };
    let wall = begun.elapsed().as_secs_f64();
    let shot = [wall, peer.usage()?.cpu - proxy, client.cpu()? - spent, registry_cpu()? - server];
    drop(pulled);
    client.forget(place, &repository)?;
    Ok(shot)
}

/// Where the time of a pull goes in each of [`SAMPLED`]: the mean of all rounds.
fn sample<'p>(
    args: &Args,
    noise: &mut Noise,
    client: &Client<'_>,
    peers: &'p [Peer],
    place: impl Fn(&'p Peer) -> Place<'p>,
) -> anyhow::Result<Vec<(&'static str, Spent)>> {
    let title = format!("samples of pulls by {}", client.name());
    let samples = interleave(args, noise, &title, &SAMPLED, |index| {
        let peer = peers.iter().find(|peer| peer.name == SAMPLED[index]).context("no such peer")?;
        let place = place(peer);
        let spent = samples::during(&peer.pids(), || client.pull(&place, IMAGE).map(drop))?;
        client.forget(&place, IMAGE)?;
        Ok((spent, format!("{:.2} s", spent.all())))
    })?;
    Ok(SAMPLED.into_iter().zip(samples.iter().map(|all| Spent::mean(all))).collect())
}

/// What a proxy that seals in its own memory can hardly save of a pull, of what nginx takes: the two copies and the sealing
/// of the relay that does little else, and the kernel's part of the gate that only splices. No number where functions have
/// no names, since copies or sealing would be missing.
fn floor(spent: &[(&str, Spent)]) -> f64 {
    let of = |name: &str| spent.iter().find(|one| one.0 == name).map(|one| one.1).unwrap_or_default();
    let sealed = of(BARE_TLS);
    if sealed.copies() == 0.0 || sealed.sealing == 0.0 {
        return f64::NAN;
    }
    (sealed.copies() + sealed.sealing + of(PLAIN).kernel) / of(NGINX_TLS).all()
}

fn spent_table(title: &str, spent: &[(&str, Spent)]) -> Option<Table> {
    let cells = |(name, spent): &(&str, Spent)| {
        let parts = [spent.all(), spent.out, spent.into, spent.kernel, spent.sealing, spent.user];
        let cells = parts.iter().map(|part| figure(*part, 3));
        [(*name).to_owned()].into_iter().chain(cells).collect()
    };
    (!spent.is_empty()).then(|| Table {
        caption: format!("Where a proxy's time goes in {title}, seconds by samples."),
        heading: vec!["way", "all", "copies out of the kernel", "into it", "the kernel else", "sealing", "else"],
        rows: spent.iter().map(cells).collect(),
    })
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

/// `floor` is what [`floor`] says, or no number.
fn goals(client: &str, rows: &[(&str, Row)], floor: f64) -> Vec<Goal> {
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
            .beside(floor, FLOOR),
    ]
}
