//! Small requests over kept connections: what one costs with a remembered verdict, and what it costs the others.

use std::path::Path;
use std::time::Duration;

use super::bare::Moves;
use super::load::{Requests, Shot};
use super::machine::Noise;
use super::peers::{Candidate, Kind, Peer, configurations as conf};
use super::plot::{Bar, Plot};
use super::report::{Report, Table};
use super::rounds::interleave;
use super::stats::{Goal, Samples};
use super::world::{MANIFEST, Placing, World};
use super::{Args, Outcome, apr1_file};

const CONNECTIONS: usize = 64;
/// A client that thinks before it asks again, in milliseconds. Without thinking the core of load and stub is the one that is
/// full, and what a percentile shows is how long they wait for each other.
const THINKING: &str = "delay = function() return math.random(1, 3) end";
const OURS: &str = "portcullis";
const LOGGED: &str = "portcullis, access log on";
const EPOLL: &str = "portcullis, epoll";
const CACHED: &str = "nginx auth_request + proxy_cache";
const ASKING: &str = "nginx auth_request";
const NGINX: &str = "nginx without a login";
const HAPROXY: &str = "HAProxy without a login";
const BARE: &str = "a bare relay that looks at nothing";

/// The samples of one proxy.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) cpu: Samples,
    rate: Samples,
    p50: Samples,
    p99: Samples,
    p999: Samples,
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let load = Requests::new(CONNECTIONS, Duration::from_secs_f64(args.window));
    let world = World::start(program, Placing::Pinned, 0)?;
    let pinned = measure(args, noise, &world, "requests, pinned", &field(&world, false)?, &load)?;
    let thinking = Requests { script: THINKING.to_owned(), ..load.clone() };
    let thinking = measure(args, noise, &world, "requests, thinking", &unhurried(), &thinking)?;
    drop(world);
    let world = World::start(program, Placing::Free, 0)?;
    let free = measure(args, noise, &world, "requests, all cores", &field(&world, true)?, &load)?;
    drop(world);
    let goals = goals(&pinned, &thinking);
    let bars = |rows: &[Row]| rows.iter().map(|row| bar(&row.name, &row.cpu)).collect();
    let report = Report {
        name: "requests",
        title: "Small requests over kept connections",
        tables: vec![
            table("The proxy alone on one core, load and stub on the others.", &pinned),
            table("As the first, and each client thinks for 1 to 3 ms before it asks again: all have room.", &thinking),
            table("Everybody on all cores, a worker for each.", &free),
        ],
        plots: vec![
            Plot::bars("Processor time for each small request, µs, one core", bars(&pinned)),
            Plot::bars("Processor time for each small request, µs, all cores", bars(&free)),
        ],
        goals: goals.clone(),
        remarks: vec![
            format!(
                "GET of a manifest of {MANIFEST} bytes from nginx, {CONNECTIONS} connections of wrk, Basic \
                 credentials; medians (least–most) of {} rounds, each a window of {} s; latencies are in ms, over all of wrk's run",
                args.rounds, args.window
            ),
            "access logs are off but where it says on; every proxy was shown to answer 200 with the right body and, \
             where it has a login, 401 without credentials"
                .to_owned(),
        ],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

fn field(world: &World, free: bool) -> anyhow::Result<Vec<Candidate>> {
    let log = world.dir.path().join("access.log").display().to_string();
    let logged = Kind::Gate(vec!["--access-log".into(), log], String::new());
    let mut field = vec![
        Candidate::gate(OURS),
        Candidate::new(LOGGED, logged),
        Candidate::new(NGINX, Kind::Nginx(conf::NGINX_PLAIN)).without_login(),
        Candidate::new(HAPROXY, Kind::Haproxy(conf::HAPROXY_PLAIN)).without_login(),
        Candidate::new("HAProxy http_auth", Kind::Haproxy(conf::HAPROXY_AUTH)),
        Candidate::new(CACHED, Kind::Nginx(conf::NGINX_CACHED)),
        Candidate::new(ASKING, Kind::Nginx(conf::NGINX_AUTH)),
    ];
    if !free {
        let apr1 = apr1_file(world)?;
        field.push(Candidate::gate(EPOLL).on_epoll());
        field.push(Candidate::new(BARE, Kind::Bare(Moves::Small)).without_login());
        field.push(Candidate::new("nginx, recipe of 2014", Kind::Nginx(conf::NGINX_2014)));
        field.push(Candidate::new("nginx auth_basic apr1", Kind::Nginx(conf::NGINX_BASIC)).htpasswd(&apr1));
    }
    field.push(Candidate::new("direct", Kind::Direct).without_login());
    Ok(field)
}

/// Those whose latencies are compared where nobody is in a hurry.
fn unhurried() -> Vec<Candidate> {
    vec![
        Candidate::gate(OURS),
        Candidate::gate(EPOLL).on_epoll(),
        Candidate::new(NGINX, Kind::Nginx(conf::NGINX_PLAIN)).without_login(),
        Candidate::new(HAPROXY, Kind::Haproxy(conf::HAPROXY_PLAIN)).without_login(),
        Candidate::new(CACHED, Kind::Nginx(conf::NGINX_CACHED)),
        Candidate::new(BARE, Kind::Bare(Moves::Small)).without_login(),
        Candidate::new("direct", Kind::Direct).without_login(),
    ]
}

/// Measures candidates side by side.
pub(super) fn measure(
    args: &Args,
    noise: &mut Noise,
    world: &World,
    title: &str,
    field: &[Candidate],
    load: &Requests,
) -> anyhow::Result<Vec<Row>> {
    let peers: Vec<Peer> =
        field.iter().map(|candidate| candidate.start_checked(world)).collect::<anyhow::Result<_>>()?;
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let samples = interleave(args, noise, title, &names, |index| {
        let mut shot = load.drive(world, &peers[index])?;
        if peers[index].is_direct() {
            shot.cpu = f64::NAN;
        }
        Ok((shot, format!("{:.1} µs, {:.0}/s, p99 {:.2} ms", shot.cpu, shot.rate, shot.p99)))
    })?;
    Ok(names.iter().zip(&samples).map(|(name, shots)| row(name, shots)).collect())
}

fn row(name: &str, shots: &[Shot]) -> Row {
    let mut row = Row { name: name.to_owned(), ..Row::default() };
    for shot in shots {
        row.cpu.push(shot.cpu);
        row.rate.push(shot.rate);
        row.p50.push(shot.p50);
        row.p99.push(shot.p99);
        row.p999.push(shot.p999);
    }
    row
}

/// Rows as a table.
pub(super) fn table(caption: &str, rows: &[Row]) -> Table {
    let heading = vec!["proxy", "CPU µs", "of portcullis", "requests/s", "p50 ms", "p99 ms", "p99.9 ms"];
    let ours = of(rows, OURS).map_or(f64::NAN, |row| row.cpu.median());
    let cells = |row: &Row| {
        vec![
            row.name.clone(),
            row.cpu.shown(1),
            super::stats::figure(row.cpu.median() / ours, 2),
            row.rate.shown(0),
            row.p50.shown(2),
            row.p99.shown(2),
            row.p999.shown(2),
        ]
    };
    Table { caption: caption.to_owned(), heading, rows: rows.iter().map(cells).collect() }
}

/// A bar of samples.
pub(super) fn bar(name: &str, samples: &Samples) -> Bar {
    Bar { name: name.to_owned(), median: samples.median(), least: samples.least(), most: samples.most() }
}

/// The row of one proxy.
fn of<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == name)
}

fn goals(rows: &[Row], thinking: &[Row]) -> Vec<Goal> {
    let cpu = |name: &str| of(rows, name).map_or(f64::NAN, |row| row.cpu.median());
    let ratio = |ours: &str, theirs: &str| cpu(ours) / cpu(theirs);
    let cached = |limit: f64, theirs: &str| {
        let what = format!("cached small GET, CPU for each, of {theirs}");
        Goal::at_most(limit, ratio(OURS, theirs), what).beside(ratio(BARE, theirs), BARE)
    };
    let latency = |rows: &[Row], clients: &str, theirs: &str| {
        let p99 = |name: &str| of(rows, name).map_or(f64::NAN, |row| row.p99.median());
        let what = format!("p99 at {CONNECTIONS} connections{clients}, of {theirs}");
        Goal::at_most(1.0, p99(OURS) / p99(theirs), what).beside(p99(BARE) / p99(theirs), BARE)
    };
    vec![
        cached(0.75, CACHED),
        cached(0.28, ASKING),
        cached(1.0, NGINX),
        cached(1.0, HAPROXY),
        Goal::at_most(0.75, ratio(EPOLL, CACHED), format!("the same on epoll, of {CACHED}"))
            .beside(ratio(BARE, CACHED), BARE),
        Goal::at_most(1.0, ratio(LOGGED, NGINX), format!("the same with our access log on, of {NGINX} without one")),
        latency(rows, "", NGINX),
        latency(rows, "", CACHED),
        latency(thinking, " that think", NGINX),
        latency(thinking, " that think", CACHED),
    ]
}
