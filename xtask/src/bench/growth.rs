//! Growth: whether a request costs the same with many connections, verdicts, rules and users.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit};

use super::bare::Moves;
use super::load::Requests;
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::{Line, Plot};
use super::report::{Report, Table};
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::world::{CREDS, Placing, World};
use super::{Args, Outcome};
use crate::lab::gate::add_user;
use crate::lab::interrupt;
use crate::lab::process::{Service, scratch};
use crate::lab::ui::Step;

const CONNECTIONS: usize = 64;
const TOLERANCE: f64 = 1.15;
const FILL_LIMIT: Duration = Duration::from_secs(1200);

/// One quantity that grows.
struct Axis {
    name: &'static str,
    points: Vec<Point>,
    /// The point that the later ones are measured by.
    base: usize,
    /// Not the gate: its growth is what the gate's is seen beside.
    reference: bool,
}

/// What one point took.
struct Taken {
    size: usize,
    cpu: Samples,
    /// The part outside of the kernel.
    user: Samples,
}

const BARE: &str = "connections, a bare relay that looks at nothing";

struct Point {
    size: usize,
    candidate: Candidate,
    connections: usize,
    script: String,
    /// Requests to other targets before: they fill the cache of verdicts.
    fill: usize,
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let args = &Args { rounds: args.rounds.min(3), ..args.clone() };
    let world = World::start(program, Placing::Pinned, 0)?;
    let sizes = |most: usize| -> Vec<usize> {
        let most = if args.quick { most.min(1_000) } else { most };
        [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|size| *size <= most).collect()
    };
    // A proxy has a connection to the registry for each one that asks, and each is a file.
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = usize::try_from(files / 2).unwrap_or(usize::MAX).saturating_sub(300);
    let open: Vec<usize> = sizes(10_000).into_iter().map(|size| size.min(room)).collect();
    let users = users(program, &world, &sizes(10_000))?;
    let axes = [
        connections("connections", lasting, &open, false),
        connections("connections, nginx without a login", nginx, &open, true),
        connections(BARE, bare, &open, true),
        Axis {
            name: "verdicts",
            points: sizes(1_000_000).into_iter().map(verdicts).collect(),
            base: 0,
            reference: false,
        },
        Axis { name: "rules", points: sizes(10_000).into_iter().map(rules).collect(), base: 0, reference: false },
        Axis { name: "users", points: users, base: 0, reference: false },
    ];
    let taken = axes.iter().map(|axis| measure(args, noise, &world, axis)).collect::<anyhow::Result<Vec<_>>>()?;
    let bare = axes.iter().position(|axis| axis.name == BARE).map_or(f64::NAN, |at| growth(&axes[at], &taken[at]));
    let (mut tables, mut goals, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for (axis, taken) in axes.iter().zip(&taken) {
        let base = base(axis, taken);
        let row = |point: &Taken| {
            let cpu = &point.cpu;
            vec![
                point.size.to_string(),
                cpu.shown(1),
                figure(cpu.median() / base, 2),
                point.user.shown(1),
                figure(cpu.median() - point.user.median(), 1),
            ]
        };
        tables.push(Table {
            caption: format!("By the number of {}.", axis.name),
            heading: vec![
                "number",
                "CPU µs for each request",
                if axis.base == 0 { "of the first" } else { "of the second" },
                "outside of the kernel",
                "in the kernel",
            ],
            rows: taken.iter().map(row).collect(),
        });
        if !axis.reference {
            let what = format!(
                "CPU for each request with many {}, of that with {}, at the worst",
                axis.name,
                axis.points.get(axis.base).map_or(1, |point| point.size)
            );
            let goal = Goal::at_most(TOLERANCE, growth(axis, taken), what);
            let is_of_sockets = axis.name == "connections";
            goals.push(if is_of_sockets { goal.beside(bare, "a relay that looks at nothing") } else { goal });
        }
        let points = taken.iter().map(|point| (point.size as f64, point.cpu.median())).collect();
        lines.push(Line { name: axis.name.to_owned(), points });
    }
    let report = Report {
        name: "growth",
        title: "Growth",
        tables,
        plots: vec![Plot::lines("Processor time for each request, µs", "how many", lines)],
        goals: goals.clone(),
        remarks: vec![format!(
            "the proxy alone on one core; {CONNECTIONS} connections where they are not what grows; medians \
             (least–most) of {} interleaved rounds, each a window of {} s; with one verdict or rule every request meets the same one, \
             with many the verdicts are met at random and the rule that grants is the last",
            args.rounds, args.window
        )],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

/// What the point took that the later ones are measured by.
fn base(axis: &Axis, taken: &[Taken]) -> f64 {
    taken.get(axis.base).map_or(f64::NAN, |point| point.cpu.median())
}

/// The most that a later point took, of that.
fn growth(axis: &Axis, taken: &[Taken]) -> f64 {
    let base = base(axis, taken);
    taken.iter().skip(axis.base).map(|point| point.cpu.median() / base).fold(f64::NAN, f64::max)
}

fn measure(args: &Args, noise: &mut Noise, world: &World, axis: &Axis) -> anyhow::Result<Vec<Taken>> {
    let mut peers = Vec::new();
    for point in &axis.points {
        let peer = point.candidate.start_checked(world)?;
        if point.fill > 0 {
            fill(world, &peer, point.fill)?;
        }
        peers.push(peer);
    }
    let names: Vec<String> = axis.points.iter().map(|point| point.size.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let samples = interleave(args, noise, axis.name, &names, |index| {
        let point = &axis.points[index];
        let load = Requests {
            script: point.script.clone(),
            settle: Duration::from_millis(point.connections as u64 / 4),
            ..Requests::new(point.connections, Duration::from_secs_f64(args.window))
        };
        let shot = load.drive(world, &peers[index])?;
        Ok(((shot.cpu, shot.user), format!("{:.1} µs", shot.cpu)))
    })?;
    let collect = |(point, shots): (&Point, Vec<(f64, f64)>)| {
        let mut taken = Taken { size: point.size, cpu: Samples::default(), user: Samples::default() };
        for (cpu, user) in shots {
            taken.cpu.push(cpu);
            taken.user.push(user);
        }
        taken
    };
    Ok(axis.points.iter().zip(samples).map(collect).collect())
}

fn nginx() -> Candidate {
    // Otherwise it would open a connection for nearly each request of 1,000 clients.
    Candidate::new("nginx", Kind::Nginx(conf::NGINX_PLAIN)).without_login().keeping(10_000)
}

fn bare() -> Candidate {
    Candidate::new("bare relay", Kind::Bare(Moves::Small)).without_login()
}

fn connections(name: &'static str, of: impl Fn() -> Candidate, sizes: &[usize], reference: bool) -> Axis {
    let point =
        |size: &usize| Point { size: *size, candidate: of(), connections: *size, script: String::new(), fill: 0 };
    // One connection alone pays a sleep and a wake-up for each request, with every proxy.
    Axis { name, points: sizes.iter().map(point).collect(), base: 1, reference }
}

/// Verdicts that live longer than the bench: no password is hashed while a window is open.
const LASTING: &str = "[verdicts]\ncapacity = 2000000\nallow_ttl = \"24h\"\n";

fn lasting() -> Candidate {
    Candidate::new("portcullis", Kind::Gate(Vec::new(), LASTING.to_owned()))
}

fn verdicts(size: usize) -> Point {
    Point {
        size,
        candidate: lasting(),
        connections: CONNECTIONS,
        script: format!(
            "request = function() return wrk.format('GET', '/v2/r' .. math.random(0, {}) .. '/manifests/1') end",
            size - 1
        ),
        fill: size,
    }
}

/// Rules for others, and at last one for us.
fn rules(size: usize) -> Point {
    let mut config = LASTING.to_owned();
    for number in 1..size {
        let _ = write!(
            config,
            "[[rule]]\nwho = [\"user-{number}\"]\nrepositories = [\"team-{number}/**\"]\nactions = [\"pull\"]\n"
        );
    }
    config.push_str("[[rule]]\nwho = [\"bench\"]\nrepositories = [\"bench/**\"]\nactions = [\"pull\"]\n");
    Point {
        size,
        candidate: Candidate::new("portcullis", Kind::Gate(Vec::new(), config)),
        connections: CONNECTIONS,
        script: String::new(),
        fill: 0,
    }
}

/// Users with the same password, of whom ours is the last.
fn users(program: &Path, world: &World, sizes: &[usize]) -> anyhow::Result<Vec<Point>> {
    let (user, password) = CREDS.split_once(':').context("no password")?;
    let one = fs::read_to_string(add_user(program, world.dir.path(), user, password)?).context("cannot read users")?;
    let hash = one.trim().split_once(':').context("a user without a hash")?.1.to_owned();
    let mut points = Vec::new();
    for size in sizes {
        let mut text = String::new();
        for number in 1..*size {
            let _ = writeln!(text, "user-{number}:{hash}");
        }
        let _ = writeln!(text, "{user}:{hash}");
        let file = world.dir.path().join(format!("{size}.htpasswd"));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        points.push(Point {
            size: *size,
            candidate: lasting().htpasswd(&file),
            connections: CONNECTIONS,
            script: String::new(),
            fill: 0,
        });
    }
    Ok(points)
}

/// Asks for each target at least once, so that all verdicts are remembered.
fn fill(world: &World, peer: &Peer, size: usize) -> anyhow::Result<()> {
    let step = (size >= 100_000).then(|| Step::begin(format!("{size} verdicts")));
    let threads = world.cores.load_threads();
    // Each thread has its share of the targets, and begins anew when it is through.
    let script = format!(
        "local threads, number = 0, 0\n\
         setup = function(t) t:set('mine', threads) threads = threads + 1 end\n\
         init = function(args) number = mine end\n\
         request = function()\n\
         local now = number\n\
         number = number + {threads}\n\
         return wrk.format('GET', '/v2/r' .. (now % {size}) .. '/manifests/1')\n\
         end"
    );
    let load = Requests { script, ..Requests::new(CONNECTIONS, FILL_LIMIT) };
    let home = scratch("wrk")?;
    // One thread may be ahead of another, and what is on its way has not been counted.
    let enough = world.forwarded()? + 2 * size as u64 + 2 * CONNECTIONS as u64;
    let mut wrk = Service::start("wrk", load.command(world, peer)?, home.path())?;
    let deadline = Instant::now() + FILL_LIMIT;
    while world.forwarded()? < enough {
        interrupt::sleep(Duration::from_millis(50));
        interrupt::check()?;
        ensure!(wrk.exited().is_none() && Instant::now() < deadline, "{size} verdicts took too long: {}", wrk.log());
    }
    if let Some(step) = step {
        step.done("");
    }
    Ok(())
}
