//! `cargo xtask test`: every check and every test that this machine can run, and the names of those it cannot.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::lab::cmd::{Cmd, tail, which};
use crate::lab::packages::{self, Need};
use crate::lab::process::{is_root, scratch};
use crate::lab::ui::{Step, say, table};
use crate::lab::{interrupt, oras, skips};
use crate::{build_ebpf, dist, vm_test, workspace};

mod full;
mod libtest;
mod supply_chain;

use libtest::Report;

/// Options of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Run only the tests whose name contains this, and no other check
    pub filter: Option<String>,
    /// Run also what takes hours, another tool-chain or a download
    #[arg(long, conflicts_with = "filter")]
    pub full: bool,
    /// With --full: how long all fuzz targets together, and then the soak, are to run
    #[arg(long, value_name = "N", default_value_t = 60, requires = "full")]
    pub minutes: u64,
}

const NEEDS: [Need; 7] = [
    packages::REGISTRY,
    packages::SKOPEO,
    packages::OPENSSL,
    packages::CURL,
    packages::SETPRIV,
    packages::IP,
    packages::PYTHON,
];

/// Peers whose opinion some tests want.
const PEERS: [Need; 11] = [
    packages::NGINX,
    packages::HAPROXY,
    packages::KEEPALIVED,
    packages::NODE,
    packages::CHROMIUM,
    packages::PROMTOOL,
    packages::SYSTEMD_ANALYZE,
    packages::GNUTLS,
    packages::TSTCLNT,
    packages::CERTUTIL,
    packages::FAKETIME,
];

/// The clients that people have. They are large; where they cannot be installed, their tests say so.
const CLIENTS: [Need; 6] =
    [packages::DOCKERD, packages::COMPOSE, packages::CONTAINERD, packages::CTR, packages::PODMAN, packages::BUILDAH];

/// The tests whose gates run on epoll as well.
const ON_EPOLL: [&str; 6] = ["admission::", "bodies::", "data_plane::", "round_trip::", "upgrade::", "upstreams::"];

/// Building them from nothing included, on a slow machine.
const TESTS_LIMIT: Duration = Duration::from_secs(50 * 60);
/// With bodies of gigabytes and load for minutes.
const FULL_LIMIT: Duration = Duration::from_secs(150 * 60);
/// What tests look at to be long ones.
const LONG: &str = "PORTCULLIS_LONG";
/// How long each fuzz target runs every time: enough to notice a parser that gives up on the first new byte.
const FUZZ_SECONDS: u64 = 5;

/// What became of one line of the table.
#[derive(Debug)]
struct Row {
    name: String,
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
}

impl From<libtest::Suite> for Row {
    fn from(suite: libtest::Suite) -> Self {
        Self {
            name: suite.name,
            passed: suite.passed,
            failed: suite.failed,
            skipped: suite.ignored,
            seconds: suite.seconds,
        }
    }
}

#[derive(Debug, Default)]
struct Summary {
    rows: Vec<Row>,
    skips: Vec<(String, String)>,
    failures: Vec<String>,
}

enum Outcome {
    Passed,
    Skipped(String),
}

impl Summary {
    fn check(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<Outcome>) -> anyhow::Result<()> {
        let begun = Instant::now();
        let outcome = check();
        interrupt::check()?;
        let mut row = Row { name: name.into(), passed: 0, failed: 0, skipped: 0, seconds: 0.0 };
        match outcome {
            Ok(Outcome::Passed) => row.passed = 1,
            Ok(Outcome::Skipped(reason)) => {
                row.skipped = 1;
                self.skips.push((name.into(), reason));
            }
            Err(error) => {
                row.failed = 1;
                say(format!("{error:#}"));
                self.failures.push(name.into());
            }
        }
        row.seconds = begun.elapsed().as_secs_f64();
        self.rows.push(row);
        Ok(())
    }

    fn total(&self, of: impl Fn(&Row) -> usize) -> usize {
        self.rows.iter().map(of).sum()
    }

    fn show(&self) -> anyhow::Result<()> {
        let cells = |row: &Row| {
            let numbers = [row.passed, row.failed, row.skipped].map(|number| number.to_string());
            let [passed, failed, skipped] = numbers;
            vec![row.name.clone(), passed, failed, skipped, format!("{:.1}", row.seconds)]
        };
        let ran = self.rows.iter().filter(|row| row.passed + row.failed + row.skipped > 0);
        let rows: Vec<Vec<String>> = ran.map(cells).collect();
        say("");
        say(table(&["what", "passed", "failed", "skipped", "seconds"], &rows));
        if !self.skips.is_empty() {
            say("Not run on this machine:");
            for (name, reason) in &self.skips {
                say(format!("  {name}: {reason}"));
            }
            say("");
        }
        if !self.failures.is_empty() {
            say("Failed:");
            for name in &self.failures {
                say(format!("  {name}"));
            }
            say("");
        }
        let failed = self.total(|row| row.failed);
        let (passed, skipped) = (self.total(|row| row.passed), self.total(|row| row.skipped));
        say(format!("{passed} passed, {failed} failed, {skipped} skipped"));
        if failed > 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}

/// Runs everything.
///
/// # Errors
/// When something fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut summary = Summary::default();
    install()?;
    if args.full {
        full::install();
    }
    summary.check("eBPF object", ebpf)?;
    if args.filter.is_none() {
        summary.check("formatting", || component("fmt", "rustfmt", &["--all", "--check"]))?;
        let clippy = ["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        summary.check("clippy", || component("clippy", "clippy", &clippy))?;
        summary.check("core alone", core_alone)?;
        summary.check("supply chain", supply_chain::check)?;
        summary.check("release build and packages", packages)?;
        summary.check("stock kernels in virtual machines", kernels)?;
        if !args.full {
            summary.check("fuzzing, for a short while", || full::fuzzed_each(FUZZ_SECONDS))?;
        }
    }
    tests(&mut summary, args)?;
    if args.filter.is_none() {
        summary.check("the gate on epoll", on_epoll)?;
    }
    if args.full {
        full::run(&mut summary, args.minutes)?;
    }
    summary.show()
}

/// Without root the tests that miss a program skip themselves, so a missing package is no failure.
fn install() -> anyhow::Result<()> {
    let installed = packages::ensure(&NEEDS);
    if is_root() {
        installed?;
    } else {
        go_on(installed);
    }
    go_on(packages::ensure(&PEERS));
    // Newer Debians keep docker's client in a package of its own.
    go_on(packages::ensure(&CLIENTS).and_then(|()| packages::ensure(&[packages::DOCKER])));
    go_on(oras::ensure());
    interrupt::check()
}

fn go_on(installed: anyhow::Result<()>) {
    if let Err(error) = installed {
        say(format!("{error:#}\nGoing on; what needs them is skipped."));
    }
}

fn ebpf() -> anyhow::Result<Outcome> {
    if let Err(error) = build_ebpf::ensure_toolchain(&workspace::root()) {
        if is_root() && which("apt-get").is_some() {
            return Err(error);
        }
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    build_ebpf::run(&build_ebpf::Args { install: true, ..Default::default() })?;
    Ok(Outcome::Passed)
}

fn component(command: &str, name: &str, args: &[&str]) -> anyhow::Result<Outcome> {
    if workspace::cargo().args([command, "--version"]).run().is_err() {
        let add = Cmd::new("rustup").args(["component", "add", name]);
        if add.step(&format!("rustup component add {name}")).is_err() {
            return Ok(Outcome::Skipped(format!("cargo {command} is not installed: rustup component add {name}")));
        }
    }
    let cmd = workspace::cargo().arg(command).args(args);
    cmd.log(workspace::log(command)?).step(&format!("cargo {command}"))?;
    Ok(Outcome::Passed)
}

fn core_alone() -> anyhow::Result<Outcome> {
    let args = ["check", "--locked", "-p", "portcullis", "--lib", "--no-default-features"];
    workspace::cargo().args(args).log(workspace::log("core")?).step("the core without the edge")?;
    Ok(Outcome::Passed)
}

/// The artefacts are what users get: built here as they are for them, and tried by the tests.
fn packages() -> anyhow::Result<Outcome> {
    dist::run(&dist::Args::default())?;
    let log = workspace::log(dist::LOG)?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    if let Some(at) = text.find("warning:") {
        bail!("cargo build --release warns:\n{}", tail(&text[at..]));
    }
    Ok(Outcome::Passed)
}

fn kernels() -> anyhow::Result<Outcome> {
    if let Some(reason) = vm_test::why_not() {
        return Ok(Outcome::Skipped(reason));
    }
    vm_test::run(&vm_test::Args { kernel: vm_test::kernels(), ..Default::default() })?;
    Ok(Outcome::Passed)
}

/// What crosses the gate, once more where io_uring is refused.
fn on_epoll() -> anyhow::Result<Outcome> {
    if let Some(need) = packages::missing(&[packages::PYTHON]).first() {
        return Ok(Outcome::Skipped(format!("not installed: {}", need.package)));
    }
    let room = scratch("epoll")?;
    let cmd = workspace::cargo().args(["test", "--locked", "-p", "portcullis", "--test", "main", "--"]).args(ON_EPOLL);
    let cmd = cmd.env("PORTCULLIS_TEST_ON_EPOLL", room.path()).limit(TESTS_LIMIT).log(workspace::log("epoll")?);
    cmd.step("cargo test, without io_uring")?;
    Ok(Outcome::Passed)
}

fn tests(summary: &mut Summary, args: &Args) -> anyhow::Result<()> {
    let skipped_file: PathBuf = workspace::log("skips")?;
    let _ = fs::remove_file(&skipped_file);
    let log = workspace::log("tests")?;
    let mut step = Step::begin("cargo test --workspace");
    let mut report = Report::default();
    let mut cmd = workspace::cargo()
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .env(skips::FILE_VARIABLE, &skipped_file)
        .one_pipe()
        .limit(if args.full { FULL_LIMIT } else { TESTS_LIMIT })
        .log(&log);
    if args.full {
        cmd = cmd.env(LONG, "1");
    }
    match &args.filter {
        Some(filter) => cmd = cmd.args(["--", filter]),
        None => cmd = cmd.env(dist::VARIABLE, dist::directory()),
    }
    let output = cmd.watched(&mut |line| {
        if report.read(line) {
            step.line(line);
        }
        step.note(line);
    });
    let output = output.with_context(|| match report.running.as_slice() {
        [] => "the tests did not end".to_owned(),
        running => format!("the tests did not end; still running after more than a minute: {}", running.join(", ")),
    })?;
    let text = output.everything();
    if output.status.success() {
        step.done("");
    } else {
        drop(step);
        say(report.failure_text().map_or_else(|| tail(&text), str::to_owned));
        say(format!("The whole output is in {}.", log.display()));
    }
    // A test may also have said so only on its output.
    let said = fs::read_to_string(&skipped_file).unwrap_or_default() + &text;
    let mut unmatched = 0;
    for (name, reason) in skips::parse(&said) {
        let new = !summary.skips.iter().any(|(known, known_reason)| *known == name && *known_reason == reason);
        if new {
            unmatched += usize::from(!report.skipped_itself(&name));
            summary.skips.push((name, reason));
        }
    }
    summary.skips.extend(report.ignored);
    summary.rows.extend(report.suites.into_iter().map(Row::from));
    if unmatched > 0 {
        let name = "parts of tests".to_owned();
        summary.rows.push(Row { name, passed: 0, failed: 0, skipped: unmatched, seconds: 0.0 });
    }
    summary.failures.extend(report.failed);
    if !output.status.success() && summary.total(|row| row.failed) == 0 {
        summary.failures.push("cargo test".into());
        summary.rows.push(Row { name: "cargo test".into(), passed: 0, failed: 1, skipped: 0, seconds: 0.0 });
    }
    Ok(())
}
