//! Placeholder until the guard's branch brings the real one.

use std::path::PathBuf;

/// Options of `cargo xtask build-ebpf`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {}

/// Installs the tool-chain where that is possible.
///
/// # Errors
/// Always, for now.
pub fn ensure_toolchain() -> anyhow::Result<()> {
    anyhow::bail!("the eBPF build is not merged yet")
}

/// Builds the object.
///
/// # Errors
/// Always, for now.
pub fn run(_args: &Args) -> anyhow::Result<PathBuf> {
    anyhow::bail!("the eBPF build is not merged yet")
}
