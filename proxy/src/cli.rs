//! The command line: names, flags and environment variables, nothing else.

use clap::{Parser, Subcommand};

use crate::edge::guard::GuardArgs;

/// A hardened gate for private Docker/OCI registries.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `portcullis`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Close the registry's port in the kernel (eBPF)
    Guard(GuardArgs),
}
