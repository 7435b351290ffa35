//! Placeholder with the real one's signatures, until the guard's branch brings it.

use std::path::{Path, PathBuf};

/// Options of `cargo xtask build-ebpf`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Build even when nothing has changed
    #[arg(long)]
    pub force: bool,
    /// Install what is missing: Debian packages (as root), or rustup's nightly sources
    #[arg(long)]
    pub install: bool,
}

/// Installs the tool-chain where that is possible.
///
/// # Errors
/// Always, for now.
pub fn ensure_toolchain(_root: &Path) -> anyhow::Result<()> {
    anyhow::bail!("the eBPF build is not merged yet")
}

/// Builds the object.
///
/// # Errors
/// Always, for now.
pub fn run(_args: &Args) -> anyhow::Result<PathBuf> {
    anyhow::bail!("the eBPF build is not merged yet")
}
