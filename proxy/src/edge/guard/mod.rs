//! The guard: loading, pinning and reading back the eBPF programs that close the registry's port.

/// Options of `portcullis guard …`.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {}

/// Runs one `portcullis guard` command.
///
/// # Errors
/// When the kernel, the privileges or the options do not allow it; the message says what to do.
pub fn run(_args: &GuardArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
