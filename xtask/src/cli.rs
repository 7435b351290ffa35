//! The commands of `cargo xtask` and their options.

use clap::{Parser, Subcommand};

use crate::{bench, build_ebpf, coverage, demo, dist, fuzz, miri, soak, suite, vm_test};

/// Builds, shows, tests and measures Portcullis.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the guard's eBPF object
    BuildEbpf(build_ebpf::Args),
    /// Show the gate and the guard at work on a real registry; Ctrl-C ends it
    Demo(demo::Args),
    /// Run every check and every test that this machine can run
    Test(suite::Args),
    /// Measure the gate next to its peers
    Bench(bench::Args),
    /// Build the Debian package and the container image, with checksums and a list of what is inside
    Dist(dist::Args),
    /// Load the gate for minutes or hours, break off, kill its registry, and look whether anything is wrong or left behind
    Soak(soak::Args),
    /// Look for bytes that break a promise of a parser
    Fuzz(fuzz::Args),
    /// Run the static release binary and its guard on stock Debian kernels, in virtual machines
    VmTest(vm_test::Args),
    /// Count the lines of the gate that its tests run, room by room
    Coverage(coverage::Args),
    /// Run the core's tests under Miri, where rustup's nightly has it
    Miri,
    /// The relay that the bench of small requests takes as a yardstick
    #[command(hide = true)]
    BareRelay(bench::bare::Args),
}

/// Runs a command.
///
/// # Errors
/// When it does not succeed.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::BuildEbpf(args) => build_ebpf::run(args).map(drop),
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => suite::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Dist(args) => dist::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::VmTest(args) => vm_test::run(args),
        Command::Coverage(args) => coverage::run(args),
        Command::Miri => miri::run(),
        Command::BareRelay(args) => bench::bare::run(args),
    }
}
