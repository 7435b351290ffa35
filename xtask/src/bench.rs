//! `cargo xtask bench`: the gate next to its peers on this machine, in one run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::lab::cmd::{Cmd, which};
use crate::lab::packages::{self, Need};
use crate::lab::process::is_root;
use crate::lab::ui::say;
use crate::workspace;

mod blobs;
mod machine;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which bench
    #[arg(value_enum, default_value_t = Name::Blobs)]
    pub name: Name,
    /// Rounds that count; one more warms up
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Size of the blob in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    pub size: u64,
    /// Downloads at the same time
    #[arg(long, default_value_t = 8)]
    pub streams: usize,
    /// What stands behind the proxies
    #[arg(long, value_enum, default_value_t = Behind::Registry)]
    pub behind: Behind,
    /// Use this program instead of building it
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
    /// We are already in a network namespace of our own
    #[arg(long, hide = true)]
    pub inside: bool,
}

/// The benches.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Name {
    /// Processor time for each GB of blobs over plain HTTP, and memory after a push and a pull
    Blobs,
}

/// What stands behind the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Behind {
    /// The real docker-registry
    Registry,
    /// A service of our own that sends zeros
    Stub,
}

const NEEDS: [Need; 5] = [packages::REGISTRY, packages::SKOPEO, packages::NGINX, packages::SETPRIV, packages::IP];

/// Runs a bench.
///
/// # Errors
/// When a peer does not start or a download fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.inside {
        prepare_namespace()?;
        return measure(args);
    }
    packages::ensure(&NEEDS)?;
    let program = match &args.portcullis {
        Some(program) => {
            fs::canonicalize(program).with_context(|| format!("--portcullis: cannot find {}", program.display()))?
        }
        None => build()?,
    };
    let exe = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--"]).arg(exe).args(["bench", "--inside", "--portcullis"]).arg(program);
    command.args(["--rounds", &args.rounds.to_string(), "--size", &args.size.to_string()]);
    command.args(["--streams", &args.streams.to_string()]);
    command.args(["--behind", if args.behind == Behind::Stub { "stub" } else { "registry" }]);
    // Ctrl-C on a terminal reaches it as well: it is in our process group, and ends cleanly by itself.
    let status = command.status().context("cannot start unshare")?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let program = args.portcullis.as_deref().context("--inside goes with --portcullis")?;
    match args.name {
        Name::Blobs => blobs::run(args, program),
    }
}

fn build() -> anyhow::Result<PathBuf> {
    let cmd = workspace::cargo().args(["build", "--release", "--locked", "-p", "portcullis"]);
    cmd.log(workspace::log("bench-build")?).step("cargo build --release")?;
    Ok(workspace::target().join("release/portcullis"))
}

/// BBR paces even on loopback, which multiplies the cost of a spliced byte by five; reno does not.
fn prepare_namespace() -> anyhow::Result<()> {
    let ip = which("ip").context("cannot find `ip`")?;
    Cmd::new(ip).args(["link", "set", "lo", "up"]).run()?;
    let file = "/proc/sys/net/ipv4/tcp_congestion_control";
    if let Err(error) = fs::write(file, "reno") {
        say(format!("cannot choose reno in {file}: {error}; the results say what was used"));
    }
    Ok(())
}
