//! What a result was measured on: without it a number means nothing.

use std::fs;

use crate::lab::cmd::Cmd;
use crate::workspace;

/// One line on the machine, one on what ran.
pub(super) fn describe() -> String {
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let control = read("/proc/sys/net/ipv4/tcp_congestion_control");
    let commit = first_line(Cmd::new("git").args(["rev-parse", "--short", "HEAD"]).dir(workspace::root()));
    let date = first_line(Cmd::new("date").args(["-u", "+%Y-%m-%d"]));
    let nginx = first_line(Cmd::new("nginx").arg("-v"));
    let nginx = nginx.trim_start_matches("nginx version: ");
    format!(
        "- {cores} cores of {model}, Linux {}, loopback in a network namespace of its own, TCP {}\n\
         - Portcullis {commit}, {nginx}, {date}\n",
        kernel.trim(),
        control.trim()
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
