//! What a result was measured on: without it a number means nothing.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::getpriority_process;

use super::Args;
use super::stats::{Samples, figure};
use crate::lab::cmd::Cmd;
use crate::workspace;

/// How long each look at the others takes.
const LISTEN: Duration = Duration::from_millis(300);

/// What other programs did meanwhile: looked at between the rounds, when everything of ours is idle.
#[derive(Debug, Default)]
pub(super) struct Noise {
    busy: Samples,
}

impl Noise {
    /// What another bench heard.
    pub(super) fn add(&mut self, other: Self) {
        self.busy.extend(other.busy);
    }

    /// One look.
    pub(super) fn listen(&mut self) {
        let before = busy_and_all();
        thread::sleep(LISTEN);
        let after = busy_and_all();
        self.busy.push((after.0 - before.0) * 100.0 / (after.1 - before.1).max(1.0));
    }
}

/// Ticks that the processors were busy or taken away, and all ticks.
fn busy_and_all() -> (f64, f64) {
    let stat = read("/proc/stat");
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|tick| tick.parse().ok()).collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().sum();
    (all - idle, all)
}

/// One line each on the machine, on what ran, on its peace, and on how to do it again.
pub(super) fn describe(args: &Args, noise: &Noise) -> Vec<String> {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let control = read("/proc/sys/net/ipv4/tcp_congestion_control");
    let git = |words: &[&str]| first_line(Cmd::new("git").args(words).dir(workspace::root()));
    let date = first_line(Cmd::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]));
    vec![
        format!(
            "{cores} cores of {model}, Linux {}, loopback in a network namespace of its own, TCP {}",
            kernel.trim(),
            control.trim()
        ),
        format!("Portcullis {}, {}; {date}", git(&["rev-parse", "--short", "HEAD"]), versions().join(", ")),
        format!(
            "other programs kept {} % of the processors busy when this bench was idle (median; most: {} %){}",
            figure(noise.busy.median(), 0),
            figure(noise.busy.most(), 0),
            priority()
        ),
        format!("`{}`", again(args)),
    ]
}

/// A bench that pushes others aside says so.
fn priority() -> String {
    match getpriority_process(None) {
        Ok(0) | Err(_) => String::new(),
        Ok(nice) => format!("; everything of this bench ran at nice {nice}"),
    }
}

fn versions() -> Vec<String> {
    let nginx = first_line(Cmd::new("nginx").arg("-v")).replace("nginx version: ", "");
    let haproxy = first_line(Cmd::new("haproxy").arg("-v"));
    let haproxy = haproxy.split(" 20").next().unwrap_or_default().replace("HAProxy version ", "HAProxy ");
    let wrk = Cmd::new("wrk").arg("-v").output().map(|output| output.everything()).unwrap_or_default();
    let wrk = wrk.split(" [").next().unwrap_or_default().replace("debian/", "");
    let openssl = first_line(Cmd::new("openssl").arg("version"));
    let openssl = openssl.split(" (").next().unwrap_or_default();
    let openssl = openssl.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    vec![nginx, haproxy, wrk, openssl]
}

fn again(args: &Args) -> String {
    let name = clap::ValueEnum::to_possible_value(&args.name).map(|value| value.get_name().to_owned());
    let name = name.unwrap_or_default();
    let quick = if args.quick { " --quick" } else { "" };
    let behind = if args.behind == super::Behind::Stub { " --behind stub" } else { "" };
    let pgo = if args.pgo { " --pgo" } else { "" };
    format!(
        "cargo xtask bench {name}{quick}{pgo} --rounds {} --window {} --size {} --streams {}{behind}",
        args.rounds, args.window, args.size, args.streams
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(cmd: Cmd) -> String {
    let output = cmd.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| output.everything()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
