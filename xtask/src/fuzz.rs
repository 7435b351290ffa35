//! `cargo xtask fuzz`: the targets of `proxy/fuzz` under libFuzzer, each for a while.
//!
//! The coverage that libFuzzer steers by is an ordinary compiler pass, so the ordinary compiler does; only the address
//! sanitizer is asked for by an unstable flag. What a run discovers stays under `target/`, what it breaks on goes to
//! `proxy/fuzz/artifacts`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::lab::cmd::{Cmd, tail};
use crate::lab::packages::{self, CC};
use crate::lab::ui::{say, table};
use crate::workspace;

/// Named, so that build scripts and macros are built without the flags below.
const TRIPLE: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// What `cargo fuzz` passes, but for the sanitizer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
                        --cfg fuzzing -Ccodegen-units=1";

/// The longest input: a head may have 16 KiB, and longer ones only slow the search down.
const LONGEST: &str = "-max_len=4096";

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this target; without it, each in turn
    pub target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub seconds: u64,
    /// Watch every memory access, too; slower
    #[arg(long)]
    pub sanitizer: bool,
}

/// Runs the targets.
///
/// # Errors
/// When one does not build or breaks a promise; the message has the input that did it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let fuzz = workspace::root().join("proxy/fuzz");
    let names = names(&fuzz, args.target.as_deref())?;
    packages::ensure(&[CC])?;
    let programs = build(&fuzz, args.sanitizer)?;
    let mut rows = Vec::new();
    let mut broken = Vec::new();
    for name in &names {
        match one(&fuzz, &programs.join(name), name, args.seconds) {
            Ok(row) => rows.push(row),
            Err(error) => broken.push(format!("{name}: {error:#}")),
        }
        crate::lab::interrupt::check()?;
    }
    say("");
    say(table(&["target", "executions", "a second", "edges", "inputs kept"], &rows));
    if !broken.is_empty() {
        bail!("{}", broken.join("\n\n"));
    }
    Ok(())
}

/// All targets.
///
/// # Errors
/// When the corpora cannot be read.
pub fn targets() -> anyhow::Result<Vec<String>> {
    names(&workspace::root().join("proxy/fuzz"), None)
}

/// A target is a directory of the corpora.
fn names(fuzz: &Path, wanted: Option<&str>) -> anyhow::Result<Vec<String>> {
    let corpora = fuzz.join("corpus");
    let entries = fs::read_dir(&corpora).with_context(|| format!("cannot read {}", corpora.display()))?;
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    match wanted {
        None => Ok(names),
        Some(wanted) if names.iter().any(|name| name == wanted) => Ok(vec![wanted.to_owned()]),
        Some(wanted) => bail!("no target is called {wanted}; there are: {}", names.join(" ")),
    }
}

fn build(fuzz: &Path, sanitizer: bool) -> anyhow::Result<PathBuf> {
    let target = workspace::target().join(if sanitizer { "fuzz-sanitizer" } else { "fuzz" });
    let mut cmd = workspace::cargo()
        .dir(fuzz)
        .args(["build", "--release", "--locked", "--target", TRIPLE, "--target-dir"])
        .arg(&target);
    let mut flags = COVERAGE.to_owned();
    if sanitizer {
        flags.push_str(" -Zsanitizer=address");
        cmd = cmd.env("RUSTC_BOOTSTRAP", "1");
    }
    let cmd = cmd.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    cmd.log(workspace::log("fuzz-build")?).step("Building the fuzz targets")?;
    Ok(target.join(TRIPLE).join("release"))
}

/// One target for `seconds`: its line of the table.
fn one(fuzz: &Path, program: &Path, name: &str, seconds: u64) -> anyhow::Result<Vec<String>> {
    let found = workspace::target().join("fuzz-corpus").join(name);
    let artifacts = fuzz.join("artifacts").join(name);
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let cmd = Cmd::new(program)
        .args([LONGEST, "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([&found, &fuzz.join("corpus").join(name)])
        .one_pipe()
        .limit(Duration::from_secs(seconds + 300))
        .log(workspace::log(&format!("fuzz-{name}"))?);
    say(format!("{name}: {seconds} s"));
    let output = cmd.output()?;
    let text = output.everything();
    if !output.status.success() {
        let path = text.lines().find_map(|line| line.split("Test unit written to ").nth(1));
        let path = path.unwrap_or("(no input was written)");
        bail!("broke on {path}; copy it to proxy/fuzz/corpus/{name} and it is a test\n{}", tail(&text));
    }
    let last = |key: &str| text.lines().rev().find_map(|line| line.split(key).nth(1)?.split_whitespace().next());
    let cells = [last("stat::number_of_executed_units:"), last("stat::average_exec_per_sec:"), last("cov: ")];
    let mut row = vec![name.to_owned()];
    row.extend(cells.map(|cell| cell.unwrap_or("?").to_owned()));
    row.push(fs::read_dir(&found).map_or(0, Iterator::count).to_string());
    Ok(row)
}
