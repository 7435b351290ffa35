//! `cargo xtask test --full`: what takes hours, another tool-chain, or a download.

use super::{Outcome, Summary};
use crate::lab::packages::{self, Need};
use crate::lab::process::random;
use crate::{build_ebpf, coverage, fuzz, miri, soak, workspace};

/// The least that the tests of each room of the core have to run.
const COVERED: f64 = 90.0;

/// Too large or too slow for every run.
const NEEDS: [Need; 2] = [packages::JAVAC, packages::TESTSSL];

/// What the tests find installed, and else skip.
pub(super) fn install() {
    super::go_on(packages::ensure(&NEEDS));
    super::go_on(coverage::ensure_tools());
    super::go_on(super::supply_chain::install());
}

/// Runs everything that is not part of every run. Fuzzing, of all targets together, and soak take `minutes` each.
pub(super) fn run(summary: &mut Summary, minutes: u64) -> anyhow::Result<()> {
    summary.check("eBPF object, built twice", built_twice)?;
    summary.check("every order of three threads", loom)?;
    summary.check("core under Miri", interpreted)?;
    summary.check("lines of the core that tests run", covered)?;
    summary.check("fuzzing", || fuzzed(minutes * 60))?;
    summary.check("soak", || soaked(minutes))
}

fn built_twice() -> anyhow::Result<Outcome> {
    if let Err(error) = build_ebpf::ensure_toolchain(&workspace::root()) {
        return Ok(Outcome::Skipped(format!("{error:#}")));
    }
    build_ebpf::run(&build_ebpf::Args { reproduce: true, ..Default::default() })?;
    Ok(Outcome::Passed)
}

fn loom() -> anyhow::Result<Outcome> {
    let cmd = workspace::cargo().args(["test", "--locked", "-p", "portcullis", "--lib", "--no-default-features"]);
    let cmd = cmd.arg("loom_tests").env("RUSTFLAGS", "--cfg loom").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let cmd = cmd.env("CARGO_TARGET_DIR", workspace::target().join("loom"));
    cmd.log(workspace::log("loom")?).step("Flights in every order")?;
    Ok(Outcome::Passed)
}

fn interpreted() -> anyhow::Result<Outcome> {
    if let Some(reason) = miri::why_not() {
        return Ok(Outcome::Skipped(reason));
    }
    miri::run()?;
    Ok(Outcome::Passed)
}

fn covered() -> anyhow::Result<Outcome> {
    if let Some(reason) = coverage::why_not() {
        return Ok(Outcome::Skipped(reason));
    }
    coverage::run(&coverage::Args { lib: false, files: false, at_least: COVERED })?;
    Ok(Outcome::Passed)
}

fn fuzzed(seconds: u64) -> anyhow::Result<Outcome> {
    fuzzed_each((seconds / fuzz::targets()?.len() as u64).max(1))
}

/// Every target, for so long each.
pub(super) fn fuzzed_each(seconds: u64) -> anyhow::Result<Outcome> {
    fuzz::run(&fuzz::Args { target: None, seconds, sanitizer: false })?;
    Ok(Outcome::Passed)
}

fn soaked(minutes: u64) -> anyhow::Result<Outcome> {
    soak::run(&soak::Args { minutes: minutes as f64, seed: Some(random()), portcullis: None })?;
    Ok(Outcome::Passed)
}
