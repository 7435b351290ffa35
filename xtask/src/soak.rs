//! `cargo xtask soak`: the real registry behind the real gate, under a mixed load, with clients that break off and a
//! registry that is killed, for as long as you like. Nothing may be wrong, and nothing may be left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::lab::cmd::Cmd;
use crate::lab::gate::{Gate, Serve, add_user};
use crate::lab::interrupt;
use crate::lab::packages::{self, Need};
use crate::lab::process::{descriptors, free_address, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::ui::{Step, say, table};
use crate::workspace;

mod clients;
mod log;
mod tally;
mod trouble;

use clients::World;
use tally::Tally;

/// Options of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Makes the same choices again
    #[arg(long)]
    pub seed: Option<u64>,
    /// Use this program instead of building it
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
}

const NEEDS: [Need; 3] = [packages::REGISTRY, packages::SKOPEO, packages::SETPRIV];
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// What memory may move by between two halves of a run, and may still be above the first when all is over.
const MEMORY_SLACK: u64 = 16 << 20;
/// Descriptors beyond those of an idle gate and its kept pipes: a connection that is just being closed.
const FD_SLACK: usize = 8;
/// Pipes that a worker keeps for the next transfer.
const KEPT_PIPES: usize = 16;

/// What the gate holds at one time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rss: u64,
    fds: usize,
    pipes: usize,
}

impl Sample {
    fn of(gate: &Gate) -> anyhow::Result<Self> {
        let links = descriptors(gate.pid())?;
        let pipes = links.iter().filter(|link| link.to_string_lossy().starts_with("pipe:")).count();
        Ok(Self { rss: gate.usage()?.rss, fds: links.len(), pipes })
    }
}

/// Runs a soak.
///
/// # Errors
/// When an invariant was broken, or nothing could be started.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&NEEDS)?;
    let program = match &args.portcullis {
        Some(program) => {
            fs::canonicalize(program).with_context(|| format!("--portcullis: cannot find {}", program.display()))?
        }
        None => build()?,
    };
    let seed = args.seed.unwrap_or_else(random);
    say(format!("seed {seed}"));
    let findings = soak(&program, Duration::from_secs_f64(args.minutes * 60.0), seed)?;
    interrupt::check()?;
    for finding in &findings {
        say(format!("VIOLATED: {finding}"));
    }
    ensure!(findings.is_empty(), "{} invariants were broken (--seed {seed})", findings.len());
    say("every invariant held");
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    let cmd = workspace::cargo().args(["build", "--release", "--locked", "-p", "portcullis"]);
    cmd.log(workspace::log("soak-build")?).step("cargo build --release")?;
    Ok(workspace::target().join("release/portcullis"))
}

/// One soak; what it found, which is nothing when all is well.
///
/// # Errors
/// When something cannot be started, or the gate ends.
pub fn soak(program: &Path, time: Duration, seed: u64) -> anyhow::Result<Vec<String>> {
    let dir = scratch("soak")?;
    let registry = Registry::start()?;
    let access_log = dir.path().join("access.log");
    let mut gate = start_gate(program, dir.path(), &access_log, &registry)?;
    let tally = Arc::new(Tally::default());
    let world = World::prepare(gate.addr(), &tally, seed)?;
    let idle = Sample::of(&gate)?;

    let step = Step::begin(format!("{:.1} minutes of load", time.as_secs_f64() / 60.0));
    let reader = log::follow(access_log, Arc::clone(&tally));
    let mut threads = world.start(seed)?;
    threads.push(trouble::start(registry, Arc::clone(&tally), seed));
    let samples = watch(&mut gate, &tally, time, step);
    tally.stop();
    for thread in threads {
        let joined = thread.join();
        ensure!(joined.is_ok(), "a client panicked");
    }
    let samples = samples?;
    let last = settle(&gate, &idle)?;
    tally.close();
    ensure!(reader.join().is_ok(), "the reader of the access log panicked");
    report(&tally, &idle, &samples, &last);
    let ended = gate.stop(Duration::from_secs(60))?;
    let mut findings = tally.violations();
    if !ended.success() {
        findings.push(format!("the gate ended with {ended}"));
    }
    findings.extend(judge(&tally, &idle, &samples, &last));
    Ok(findings)
}

fn start_gate(program: &Path, dir: &Path, access_log: &Path, registry: &Registry) -> anyhow::Result<Gate> {
    let (user, password) = clients::CREDS.split_once(':').context("no password")?;
    let users = add_user(program, dir, user, password)?;
    let config = dir.join("gate.toml");
    // Short enough that a stalled client is given up within the run, and that the end is not waited for long.
    let limits = "[limits]\nupstream_idle = \"5s\"\nrate_window = \"5s\"\nidle_timeout = \"10s\"\n";
    fs::write(&config, limits).with_context(|| format!("cannot write {}", config.display()))?;
    let serve = Serve::new(program)?.flag("--config", &config).flag("--backend", registry.url());
    serve.flag("--htpasswd", users).flag("--access-log", access_log).admin(free_address()?).start()
}

/// Samples the gate until the time is over, somebody interrupts or something is found.
fn watch(gate: &mut Gate, tally: &Tally, time: Duration, mut step: Step) -> anyhow::Result<Vec<Sample>> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < time && !interrupt::requested() && tally.violations().is_empty() {
        interrupt::sleep(SAMPLE_EVERY);
        if !gate.is_running() {
            bail!("the gate ended by itself:\n{}", gate.log());
        }
        let sample = Sample::of(gate)?;
        step.note(&format!("{} fds, {} RSS, {}", sample.fds, mib(sample.rss), tally.line()));
        samples.push(sample);
    }
    step.done(&tally.line());
    Ok(samples)
}

/// Waits until the gate has let go of everything, for a minute and a half at the most.
fn settle(gate: &Gate, idle: &Sample) -> anyhow::Result<Sample> {
    let step = Step::begin("everybody left");
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let sample = Sample::of(gate)?;
        if sample.fds - sample.pipes <= idle.fds - idle.pipes || Instant::now() > end {
            step.done(&format!("{} fds, {} of them pipes", sample.fds, sample.pipes));
            return Ok(sample);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn judge(tally: &Tally, idle: &Sample, samples: &[Sample], last: &Sample) -> Vec<String> {
    let mut findings = Vec::new();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let pipes = workers * KEPT_PIPES * 2;
    if last.pipes > idle.pipes + pipes {
        findings.push(format!("{} pipe ends are left, {pipes} may be kept", last.pipes));
    }
    if last.fds - last.pipes > idle.fds - idle.pipes + FD_SLACK {
        findings.push(format!("{} descriptors are left of {} when idle, pipes apart", last.fds, idle.fds));
    }
    // The first fifth warms up caches and pools; after it nothing may grow any more.
    let warm = &samples[samples.len() / 5..];
    let (early, late) = warm.split_at(warm.len() / 2);
    let most = |part: &[Sample]| part.iter().map(|sample| sample.rss).max().unwrap_or(0);
    if most(late) > most(early) + MEMORY_SLACK {
        findings.push(format!("memory grew from {} to {}", mib(most(early)), mib(most(late))));
    }
    if last.rss > most(early) + MEMORY_SLACK {
        findings.push(format!("{} stay in use after a most of {}", mib(last.rss), mib(most(early))));
    }
    for (name, counter) in tally.must_happen() {
        if counter.load(Ordering::Relaxed) == 0 && !interrupt::requested() && findings.is_empty() {
            findings.push(format!("not one of the {name}: the run shows nothing about them"));
        }
    }
    findings
}

fn report(tally: &Tally, idle: &Sample, samples: &[Sample], last: &Sample) {
    let row = |name: &str, sample: &Sample| {
        vec![name.to_owned(), mib(sample.rss), sample.fds.to_string(), sample.pipes.to_string()]
    };
    let mut rows = vec![row("idle at the start", idle)];
    for (n, part) in samples.chunks(samples.len().div_ceil(5).max(1)).enumerate() {
        let most = part.iter().fold(Sample { rss: 0, fds: 0, pipes: 0 }, |a, b| Sample {
            rss: a.rss.max(b.rss),
            fds: a.fds.max(b.fds),
            pipes: a.pipes.max(b.pipes),
        });
        rows.push(row(&format!("most, part {}", n + 1), &most));
    }
    rows.push(row("idle at the end", last));
    say(table(&["the gate", "RSS", "fds", "pipe ends"], &rows));
    say(table(&["what happened", "times"], &tally.rows()));
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Sends a signal to a process by its number.
fn signal(name: &str, pid: u32) {
    // It may just have ended.
    let _ = Cmd::new("kill").args([&format!("-{name}"), &pid.to_string()]).output();
}
