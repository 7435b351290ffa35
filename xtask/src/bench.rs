//! `cargo xtask bench`: the gate next to its peers on this machine, in one run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::lab::cmd::{Cmd, which};
use crate::lab::interrupt;
use crate::lab::packages::{self, Need};
use crate::lab::process::is_root;
use crate::lab::ui::say;
use crate::{dist, workspace};

pub mod bare;
mod blobs;
mod clients;
mod growth;
mod guard;
mod handshakes;
mod htpasswd;
mod idle;
mod load;
mod machine;
mod peers;
mod plot;
mod pulls;
mod report;
mod requests;
mod rounds;
mod samples;
mod stats;
mod training;
mod uploads;
mod world;

use machine::Noise;
use stats::Goal;
use world::World;

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Which bench
    #[arg(value_enum, default_value_t = Name::All)]
    pub name: Name,
    /// A few minutes for all of them, with figures that only show that it works
    #[arg(long)]
    pub quick: bool,
    /// Rounds that count; one more warms up. Default 5, quick 2
    #[arg(long, default_value_t = 5, default_value_if("quick", "true", "2"))]
    pub rounds: usize,
    /// Seconds of each measurement of small requests. Default 4, quick 1
    #[arg(long, default_value_t = 4.0, default_value_if("quick", "true", "1"))]
    pub window: f64,
    /// Size of the blob in MiB. Default 512, quick 64
    #[arg(long, default_value_t = 512, default_value_if("quick", "true", "64"), value_name = "MIB")]
    pub size: u64,
    /// Downloads and uploads at the same time
    #[arg(long, default_value_t = 8)]
    pub streams: usize,
    /// What stands behind the proxies of `blobs`
    #[arg(long, value_enum, default_value_t = Behind::Registry)]
    pub behind: Behind,
    /// Use this program instead of building it
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
    /// Build it as `cargo xtask dist --pgo` does: static, and by a profile of it at work
    #[arg(long, conflicts_with = "portcullis")]
    pub pgo: bool,
    /// Where results are written. Default benches/results, quick target/bench-quick
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// The program, when we are already in a network namespace of our own
    #[arg(long, hide = true, value_name = "FILE")]
    pub inside: Option<PathBuf>,
}

/// The benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// All of them, one after the other
    All,
    /// Small requests: processor time for each, rate, latency
    Requests,
    /// Processor time for each GB of blobs over plain HTTP, and memory after a push and a pull
    Blobs,
    /// Processor time for each GB of blobs over TLS
    Tls,
    /// Processor time for each GB of uploads, and what lands on a disk
    Uploads,
    /// New TLS connections, full and resumed
    Handshakes,
    /// Memory of idle connections
    Idle,
    /// Users in an htpasswd file
    Htpasswd,
    /// Many connections, verdicts, rules, users
    Growth,
    /// Whole images by skopeo, docker and ctr
    Pulls,
    /// Packets that the guard drops or lets in, next to nftables
    Guard,
    /// None: load for the profile of `cargo xtask dist --pgo`
    #[value(hide = true)]
    Training,
}

/// What stands behind the proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Behind {
    /// The real docker-registry
    Registry,
    /// nginx that sends a file from memory
    Stub,
}

/// What a bench found out.
#[derive(Debug)]
struct Outcome {
    goals: Vec<Goal>,
}

type Bench = fn(&Args, &Path, &mut Noise) -> anyhow::Result<Outcome>;

const BENCHES: [(Name, Bench); 11] = [
    (Name::Requests, requests::run),
    (Name::Blobs, blobs::plain),
    (Name::Tls, blobs::tls),
    (Name::Uploads, uploads::run),
    (Name::Htpasswd, htpasswd::run),
    (Name::Handshakes, handshakes::run),
    (Name::Idle, idle::run),
    (Name::Pulls, pulls::run),
    (Name::Growth, growth::run),
    (Name::Guard, guard::run),
    (Name::Training, training::run),
];

const NEEDS: [Need; 18] = [
    packages::REGISTRY,
    packages::SKOPEO,
    packages::DOCKERD,
    packages::DOCKER,
    packages::CONTAINERD,
    packages::CTR,
    packages::TAR,
    packages::NGINX,
    packages::HAPROXY,
    packages::WRK,
    packages::OPENSSL,
    packages::CURL,
    packages::SETPRIV,
    packages::TASKSET,
    packages::IP,
    packages::PYTHON,
    packages::NFT,
    packages::ETHTOOL,
];

/// How long a bench may take to clean up once it was told to end.
const FAREWELL: Duration = Duration::from_secs(20);

/// Runs a bench.
///
/// # Errors
/// When a peer does not start or does not do what it is measured for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(program) = &args.inside {
        prepare()?;
        return measure(args, program);
    }
    packages::ensure(&NEEDS)?;
    let program = match &args.portcullis {
        Some(program) => {
            fs::canonicalize(program).with_context(|| format!("--portcullis: cannot find {}", program.display()))?
        }
        None if args.pgo => dist::build(true)?,
        None => build()?,
    };
    if [Name::All, Name::Pulls].contains(&args.name) {
        build_yardstick()?;
    }
    let exe = std::env::current_exe().context("cannot tell which program this is")?;
    // Whatever becomes of us, the one inside is told, and ends what it started.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", "unshare"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--"]).arg(exe).args(std::env::args_os().skip(1)).arg("--inside").arg(program);
    let mut child = command.spawn().context("cannot start unshare")?;
    let mut told = None;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the bench")? {
            break status;
        }
        if interrupt::requested() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let begun = *told.get_or_insert_with(|| {
                pid.map(|pid| kill_process(pid, Signal::TERM));
                std::time::Instant::now()
            });
            if begun.elapsed() > FAREWELL {
                let _ = child.kill();
            }
        }
        thread::sleep(Duration::from_millis(50));
    };
    interrupt::check()?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}

fn measure(args: &Args, program: &Path) -> anyhow::Result<()> {
    let (mut goals, mut all) = (Vec::new(), Noise::default());
    for (name, bench) in BENCHES {
        let wanted = if args.name == Name::All { name != Name::Training } else { args.name == name };
        if !wanted {
            continue;
        }
        let args = &Args { name, ..args.clone() };
        let mut noise = Noise::default();
        goals.extend(bench(args, program, &mut noise)?.goals);
        all.add(noise);
    }
    if args.name == Name::All {
        report::publish_goals(args, &all, &goals)?;
    }
    Ok(())
}

fn build() -> anyhow::Result<PathBuf> {
    cargo_build(&[], "cargo build --release")?;
    Ok(workspace::target().join("release/portcullis"))
}

/// The relay of [`peers::bare_tls`].
fn build_yardstick() -> anyhow::Result<()> {
    cargo_build(&["--example", "bare-tls"], "a relay that does nothing but TLS")
}

fn cargo_build(what: &[&str], step: &str) -> anyhow::Result<()> {
    let cmd = workspace::cargo().args(["build", "--release", "--locked", "-p", "portcullis"]).args(what);
    cmd.log(workspace::log("bench-build")?).step(step)?;
    Ok(())
}

/// BBR paces even on loopback, which multiplies the cost of a spliced byte by five; reno does not.
fn prepare() -> anyhow::Result<()> {
    let ip = which("ip").context("cannot find `ip`")?;
    Cmd::new(ip).args(["link", "set", "lo", "up"]).run()?;
    let choose = |file: &str, value: &str| {
        if let Err(error) = fs::write(file, value) {
            say(format!("cannot write {value} to {file}: {error}; the results say what was used"));
        }
    };
    choose("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
    // Outgoing connections, above the ports that we listen on; ten thousand idle ones need as many.
    choose("/proc/sys/net/ipv4/ip_local_port_range", "30001 65000");
    choose("/proc/sys/net/core/somaxconn", "8192");
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit { current: files.maximum, maximum: files.maximum };
    let raised = if is_root() {
        setrlimit(Resource::Nofile, Rlimit { current: Some(100_000), maximum: Some(100_000) })
    } else {
        Err(rustix::io::Errno::PERM)
    };
    if raised.is_err() {
        setrlimit(Resource::Nofile, most).context("cannot raise the number of files")?;
    }
    Ok(())
}

/// The user of the benches in nginx' favourite hash.
fn apr1_file(world: &World) -> anyhow::Result<PathBuf> {
    let (user, password) = world::CREDS.split_once(':').context("no password")?;
    let hash = Cmd::new("openssl").args(["passwd", "-apr1", password]).run()?;
    let file = world.dir.path().join("apr1.htpasswd");
    fs::write(&file, format!("{user}:{}\n", hash.trim())).context("cannot write an htpasswd file")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).context("cannot let nginx read the passwords")?;
    Ok(file)
}
