//! `cargo xtask …`: everything that is done to the project rather than by it.

use clap::Parser;
use xtask::build_ebpf;

#[derive(Parser)]
enum Command {
    /// Build the guard's eBPF programs
    BuildEbpf(build_ebpf::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BuildEbpf(args) => build_ebpf::run(&args).map(drop),
    }
}
