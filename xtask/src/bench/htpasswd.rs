//! Passwords in a file: nginx hashes on every request, the gate remembers.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::load::Requests;
use super::machine::Noise;
use super::peers::{Candidate, Kind, configurations as conf};
use super::plot::{Bar, Plot};
use super::report::Report;
use super::requests::{measure, table};
use super::stats::Goal;
use super::world::{CREDS, Placing, World};
use super::{Args, Outcome, apr1_file};
use crate::lab::gate::add_user;

const CONNECTIONS: usize = 4;
/// bcrypt takes a good part of a second for one request.
const SHORTEST: Duration = Duration::from_secs(4);

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let world = World::start(program, Placing::Pinned, 0)?;
    let (user, password) = CREDS.split_once(':').context("no password")?;
    let bcrypt = add_user(program, world.dir.path(), user, password)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&bcrypt, readable).context("cannot let nginx read the passwords")?;
    let cost = std::fs::read_to_string(&bcrypt).context("cannot read the passwords")?;
    let cost = cost.split('$').nth(2).unwrap_or("?").to_owned();
    let apr1 = apr1_file(&world)?;
    let field = [
        Candidate::gate("portcullis").htpasswd(&bcrypt),
        Candidate::new("nginx auth_basic apr1", Kind::Nginx(conf::NGINX_BASIC)).htpasswd(&apr1),
        Candidate::new("nginx auth_basic bcrypt", Kind::Nginx(conf::NGINX_BASIC)).htpasswd(&bcrypt),
    ];
    let span = Duration::from_secs_f64(args.window).max(SHORTEST);
    let load = Requests::new(CONNECTIONS, span);
    let rows = measure(args, noise, &world, "htpasswd", &field, &load)?;
    let rate = |index: usize| 1e6 / rows.get(index).map_or(f64::NAN, |row| row.cpu.median());
    let what = |kind: &str| format!("requests for each CPU second, times nginx auth_basic {kind}'s");
    let goals = vec![Goal::at_least(50.0, rate(0) / rate(2), what("bcrypt"))];
    let bars = rows.iter().enumerate().map(|(index, row)| {
        let rate = rate(index);
        Bar { name: row.name.clone(), median: rate, least: rate, most: rate }
    });
    let report = Report {
        name: "htpasswd",
        title: "Users in an htpasswd file",
        tables: vec![table(&format!("One user, bcrypt of cost {cost}, {CONNECTIONS} connections."), &rows)],
        plots: vec![Plot::bars("Requests for each second of processor time", bars.collect())],
        goals: goals.clone(),
        remarks: vec![format!(
            "the proxy alone on one core; medians (least–most) of {} interleaved rounds, each a window of {} s; the \
             gate's verdicts live for 60 s",
            args.rounds,
            span.as_secs_f64()
        )],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}
