//! New TLS connections: what a handshake with one small request costs, in full and resumed.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};

use super::load::{openssl_configuration, window};
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

const CLIENTS: usize = 4;
const WARM: Duration = Duration::from_millis(1000);
/// A target that everybody answers without credentials, and forwards.
const PUBLIC: &str = "/_ping";

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    let world = World::start(program, Placing::Pinned, 0)?;
    let field = [
        Candidate::gate("portcullis").tls(),
        Candidate::new("nginx", Kind::Nginx(conf::NGINX_PLAIN)).tls().without_login(),
        Candidate::new("HAProxy", Kind::Haproxy(conf::HAPROXY_PLAIN)).tls().without_login(),
    ];
    let peers: Vec<Peer> = field.iter().map(|peer| peer.start_checked(&world)).collect::<anyhow::Result<_>>()?;
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let (mut rows, mut goals, mut plots) = (Vec::new(), Vec::new(), Vec::new());
    for (how, flag) in [("full", "-new"), ("resumed", "-reuse")] {
        let samples = interleave(args, noise, &format!("handshakes, {how}"), &names, |index| {
            let cpu = connect(args, &world, &peers[index], flag)?;
            Ok((cpu, format!("{cpu:.0} µs")))
        })?;
        let cpus: Vec<Samples> = samples
            .iter()
            .map(|values| {
                let mut cpu = Samples::default();
                values.iter().for_each(|value| cpu.push(*value));
                cpu
            })
            .collect();
        for (name, cpu) in names.iter().zip(&cpus) {
            rows.push(vec![(*name).to_owned(), how.to_owned(), cpu.shown(0), figure(1e6 / cpu.median(), 0)]);
        }
        let what = format!("new TLS 1.3 connection ({how}) with one request, CPU, of nginx");
        goals.push(Goal::at_most(1.0, cpus[0].median() / cpus[1].median(), what));
        let bars = names.iter().zip(&cpus).map(|(name, cpu)| bar(name, cpu)).collect();
        plots.push(Plot::bars(format!("Processor time for each new TLS connection ({how}), µs"), bars));
    }
    let report = Report {
        name: "handshakes",
        title: "New TLS connections",
        tables: vec![Table {
            caption: "One connection, TLS 1.3 with a P-256 certificate, one small request that needs no login.".into(),
            heading: vec!["proxy", "handshake", "CPU µs", "for each CPU second"],
            rows,
        }],
        plots,
        goals: goals.clone(),
        remarks: vec![format!(
            "{CLIENTS} × openssl s_time; the proxy alone on one core; medians (least–most) of {} interleaved rounds, \
             each a window of {} s",
            args.rounds, args.window
        )],
    };
    report.publish(args, noise)?;
    Ok(Outcome { goals })
}

fn connect(args: &Args, world: &World, peer: &Peer, flag: &str) -> anyhow::Result<f64> {
    let seconds = WARM.as_secs() + args.window.ceil() as u64 + 1;
    let configuration = openssl_configuration(world)?;
    let client = || -> Cmd {
        let cmd = world.as_load().env("OPENSSL_CONF", &configuration).args(["openssl", "s_time", "-tls1_3", flag]);
        let cmd = cmd.args(["-connect", &peer.addr.to_string(), "-www", PUBLIC, "-time", &seconds.to_string()]);
        cmd.limit(Duration::from_secs(seconds * 3 + 30))
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| client()).map(|cmd| thread::spawn(move || cmd.run())).collect();
    let shot = window(world, peer, WARM, Duration::from_secs_f64(args.window));
    for client in clients {
        let said = client.join().map_err(|_| anyhow!("a client panicked"))??;
        ensure!(said.contains("connections in"), "openssl s_time says {said:?}");
    }
    Ok(shot.with_context(|| peer.name.clone())?.cpu)
}
