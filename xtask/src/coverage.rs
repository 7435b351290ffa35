//! `cargo xtask coverage`: which lines of the gate its tests run, room by room.
//!
//! Measured by the compiler's own counters, in a target directory of its own. A process that is killed counts, too: the
//! counters live in a mapped file. Lines of test modules are left out on both sides of the fraction. Coverage says that
//! a line ran, not that anybody looked at what it did.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::lab::cmd::{Cmd, which};
use crate::lab::packages;
use crate::lab::ui::{say, table};
use crate::workspace;

/// What every compilation of this workspace gets on top; dependencies are not counted and not slowed down.
const WRAPPER: &str = "#!/bin/sh\nexec \"$@\" -Cinstrument-coverage -Cllvm-args=-runtime-counter-relocation\n";

/// Options of `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Unit tests only
    #[arg(long)]
    pub lib: bool,
    /// Show each file, not only each room
    #[arg(long)]
    pub files: bool,
    /// Fail when a room of the core is below this many per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub at_least: f64,
}

/// Lines that ran, of how many.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    ran: usize,
    all: usize,
}

impl Lines {
    fn percent(self) -> f64 {
        100.0 * self.ran as f64 / self.all.max(1) as f64
    }
}

/// Why this machine cannot, if it cannot.
#[must_use]
pub fn why_not() -> Option<String> {
    tool("llvm-cov").and_then(|_| tool("llvm-profdata")).err().map(|error| format!("{error:#}"))
}

/// Builds, runs the tests and prints the table.
///
/// # Errors
/// When a tool is missing, a test fails, or a room of the core is below what was asked for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (profdata, cov) = (tool("llvm-profdata")?, tool("llvm-cov")?);
    let target = workspace::target().join("coverage");
    let profiles = target.join("profiles");
    // Counts of an earlier run, perhaps of other code.
    let _ = fs::remove_dir_all(&profiles);
    fs::create_dir_all(&profiles).with_context(|| format!("cannot make {}", profiles.display()))?;
    let mut programs = test(&target, &profiles, args.lib)?;
    if !args.lib {
        programs.push(target.join("debug/portcullis"));
    }
    let merged = target.join("all.profdata");
    let raw = fs::read_dir(&profiles).context("no profiles")?.flatten().map(|entry| entry.path());
    Cmd::new(profdata).args(["merge", "-sparse", "-o"]).arg(&merged).args(raw).run()?;
    let mut export = Cmd::new(cov).args(["export", "--format=lcov", "--instr-profile"]).arg(&merged);
    for program in &programs {
        export = export.arg("--object").arg(program);
    }
    let files = by_file(&export.run()?)?;
    show(&files, args)
}

/// Runs the tests; the programs that ran.
fn test(target: &Path, profiles: &Path, lib: bool) -> anyhow::Result<Vec<PathBuf>> {
    let wrapper = target.join("rustc");
    fs::write(&wrapper, WRAPPER).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).context("cannot make the wrapper a program")?;
    let what: &[&str] = if lib { &["--lib"] } else { &["--lib", "--test", "main"] };
    let cmd = workspace::cargo().args(["test", "-p", "portcullis", "--no-fail-fast"]).args(what);
    let cmd = cmd.env("CARGO_TARGET_DIR", target).env("RUSTC_WORKSPACE_WRAPPER", &wrapper).one_pipe();
    let cmd = cmd.env("LLVM_PROFILE_FILE", profiles.join("%m%c.profraw"));
    let output = cmd.log(workspace::log("coverage")?).step("Running the tests with counters")?;
    let text = output.everything();
    let named = text.lines().filter(|line| line.trim_start().starts_with("Running "));
    let paths = named.filter_map(|line| line.rsplit_once('(')?.1.strip_suffix(')'));
    Ok(paths.map(|path| workspace::root().join(path)).collect())
}

/// Installs what [`tool`] looks for, if it finds nothing.
///
/// # Errors
/// When it cannot.
pub(crate) fn ensure_tools() -> anyhow::Result<()> {
    if why_not().is_some() { packages::ensure(&[packages::LLVM]) } else { Ok(()) }
}

/// rustup's component, whose version is the compiler's; else Debian's, if it is not older than that: it could not read what
/// the counters write.
pub(crate) fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).run()?;
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let hosts = fs::read_dir(&rustlib).with_context(|| format!("cannot read {}", rustlib.display()))?;
    let beside = hosts.flatten().map(|host| host.path().join("bin").join(name)).find(|path| path.is_file());
    let version = Cmd::new("rustc").arg("-vV").run()?;
    let least = major(&version).context("rustc does not say which LLVM it has")?;
    let installed = [format!("{name}-{least}"), name.to_owned()].into_iter().filter_map(|name| which(&name));
    let reads = |path: &PathBuf| {
        let version = Cmd::new(path).arg("--version").run().ok();
        version.and_then(|version| major(&version)).is_some_and(|version| version >= least)
    };
    beside.or_else(|| installed.into_iter().find(reads)).with_context(|| {
        format!("{name} of LLVM {least} is not installed: `rustup component add llvm-tools`, or Debian's llvm-{least}")
    })
}

/// The first number behind "LLVM version", as rustc and LLVM's tools write it.
fn major(text: &str) -> Option<u32> {
    let rest = text.split_once("LLVM version")?.1.trim_start_matches([':', ' ']);
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The lines of each file of the gate, as lcov's records have them.
fn by_file(lcov: &str) -> anyhow::Result<BTreeMap<String, Lines>> {
    let top = workspace::root().join("proxy/src");
    let mut files: BTreeMap<String, Lines> = BTreeMap::new();
    let (mut file, mut tests_from) = (None, usize::MAX);
    for record in lcov.lines() {
        if let Some(path) = record.strip_prefix("SF:") {
            let inner = Path::new(path).strip_prefix(&top).ok().map(|path| path.to_string_lossy().into_owned());
            file = inner.filter(|path| !is_test(path));
            tests_from = if file.is_some() { first_line_of_tests(Path::new(path))? } else { usize::MAX };
        } else if let (Some(data), Some(file)) = (record.strip_prefix("DA:"), &file) {
            let mut numbers = data.split(',').map(|number| number.parse::<usize>().unwrap_or(0));
            let (line, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if line < tests_from {
                let lines = files.entry(file.clone()).or_default();
                lines.all += 1;
                lines.ran += usize::from(count > 0);
            }
        }
    }
    if files.is_empty() {
        bail!("no line of proxy/src was measured");
    }
    Ok(files)
}

fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

/// Tests stand last in a file.
fn first_line_of_tests(path: &Path) -> anyhow::Result<usize> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let module = |(_, pair): &(usize, (&str, &str))| pair.0.starts_with("#[cfg(test)]") && pair.1.starts_with("mod ");
    let found = text.lines().zip(text.lines().skip(1)).enumerate().find(module);
    Ok(found.map_or(usize::MAX, |(index, _)| index + 1))
}

/// The first part of the path.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or(file)
}

/// What the edge is not: decisions without sockets.
fn is_core(room: &str) -> bool {
    !["edge", "cli", "main", "manual"].contains(&room)
}

fn show(files: &BTreeMap<String, Lines>, args: &Args) -> anyhow::Result<()> {
    let mut rooms: BTreeMap<&str, Lines> = BTreeMap::new();
    for (file, lines) in files {
        let sum = rooms.entry(room(file)).or_default();
        sum.ran += lines.ran;
        sum.all += lines.all;
    }
    let row = |name: &str, lines: Lines| {
        vec![name.to_owned(), format!("{} of {}", lines.ran, lines.all), format!("{:.1} %", lines.percent())]
    };
    if args.files {
        say(table(&["file", "lines", ""], &files.iter().map(|(file, lines)| row(file, *lines)).collect::<Vec<_>>()));
    }
    let mut rows: Vec<_> = rooms.iter().map(|(room, lines)| row(room, *lines)).collect();
    let core = rooms
        .iter()
        .filter(|(room, _)| is_core(room))
        .fold(Lines::default(), |sum, (_, lines)| Lines { ran: sum.ran + lines.ran, all: sum.all + lines.all });
    rows.push(row("the core", core));
    say(table(&["room", "lines", ""], &rows));
    let low: Vec<String> = rooms
        .iter()
        .filter(|(room, lines)| is_core(room) && lines.percent() < args.at_least)
        .map(|(room, lines)| format!("{room} ({:.1} %)", lines.percent()))
        .collect();
    if !low.is_empty() {
        bail!("below {} %: {}", args.at_least, low.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_rustc_and_the_tools_write_them() {
        assert_eq!(major("host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(major("Debian LLVM version 22.1.8\n  Optimized build.\n"), Some(22));
        assert_eq!(major("USAGE: llvm-profdata-14 <merge|show|overlap> [args...]"), None);
    }
}
