//! Where a bench takes place: which processors are whose, and what stands behind the proxies.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;

use super::peers::Template;
use crate::lab::cmd::Cmd;
use crate::lab::http::{Connection, basic};
use crate::lab::pki::{Authority, Identity};
use crate::lab::process::{Service, free_address, random};

/// The one user that everybody knows.
pub(super) const CREDS: &str = "bench:bench";
/// Bytes of the manifest: a usual one with a configuration and two layers.
pub(super) const MANIFEST: usize = 711;
/// A target that every peer forwards.
pub(super) const MANIFEST_TARGET: &str = "/v2/bench/app/manifests/1";

/// Who runs where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placing {
    /// The proxy has one processor to itself, everything else shares the others.
    Pinned,
    /// Everybody may run everywhere, the proxy with one worker for each processor.
    Free,
}

/// The processors of a bench.
#[derive(Debug, Clone)]
pub(super) struct Cores {
    proxy: Vec<usize>,
    load: Vec<usize>,
}

impl Cores {
    fn new(placing: Placing) -> anyhow::Result<Self> {
        let set = sched_getaffinity(None).context("cannot tell which processors we may use")?;
        let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        Ok(match (placing, all.split_first()) {
            (Placing::Pinned, Some((first, rest))) if !rest.is_empty() => {
                Self { proxy: vec![*first], load: rest.to_vec() }
            }
            _ => Self { proxy: all.clone(), load: all },
        })
    }

    /// How many workers a proxy has.
    pub(super) fn workers(&self) -> usize {
        self.proxy.len()
    }

    /// How many threads make load.
    pub(super) fn load_threads(&self) -> usize {
        self.load.len()
    }

    /// Keeps the calling thread off the proxy's processor.
    pub(super) fn run_load_here(&self) {
        let mut set = CpuSet::new();
        self.load.iter().for_each(|cpu| set.set(*cpu));
        // Refused, we measure unpinned; on one processor it makes no difference.
        let _ = sched_setaffinity(None, &set);
    }
}

fn listed(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// A registry and an auth service made of nginx, certificates, and a place for files.
pub(super) struct World {
    pub(super) cores: Cores,
    pub(super) program: PathBuf,
    /// The gate where io_uring is refused.
    pub(super) on_epoll: PathBuf,
    pub(super) registry: SocketAddr,
    pub(super) auth: SocketAddr,
    pub(super) identity: Identity,
    pub(super) ca: PathBuf,
    pub(super) dir: TempDir,
    _stubs: [Service; 2],
    _memory: TempDir,
}

impl World {
    /// Starts it; the blob has `blob` bytes.
    pub(super) fn start(program: &Path, placing: Placing, blob: u64) -> anyhow::Result<Self> {
        let cores = Cores::new(placing)?;
        let dir = open_scratch(&std::env::temp_dir())?;
        let memory = open_scratch(memory_dir())?;
        fs::write(memory.path().join("manifest"), manifest()).context("cannot write the manifest")?;
        File::create(memory.path().join("blob"))
            .and_then(|file| file.set_len(blob))
            .context("cannot make room for the blob")?;
        let authority = Authority::create(dir.path(), "Bench CA")?;
        let identity = authority.issue("gate", &["localhost", "127.0.0.1"])?;
        let place = format!("taskset -c {}", listed(&cores.proxy));
        let pinned = dir.path().join("portcullis");
        wrap(&pinned, &format!("{place} '{}'", program.display()))?;
        // The same program with a filter that refuses io_uring, as a container's does.
        let (on_epoll, filter) = (dir.path().join("on-epoll"), dir.path().join("refuse.py"));
        fs::write(&filter, include_str!("../../../tests/peers/refuse.py")).context("cannot write a script")?;
        fs::create_dir(&on_epoll).context("cannot create a directory")?;
        let on_epoll = on_epoll.join("portcullis");
        wrap(&on_epoll, &format!("{place} python3 '{}' ring '{}'", filter.display(), program.display()))?;
        let (registry, auth) = (free_address()?, free_address()?);
        let root = memory.path().display().to_string();
        let stub = |name: &str, text: &str, addr: SocketAddr| {
            let workers = cores.load_threads().to_string();
            let template = Template::new(text, addr, &workers).with("ROOT", &root).with("CREDENTIAL", &basic(CREDS));
            let home = dir.path().join(name);
            let cmd = Self::beside_load(&cores).args(template.nginx(&home)?);
            let mut service = Service::start(name, cmd, &home)?;
            service.wait_listening(addr)?;
            anyhow::Ok(service)
        };
        let stubs = [
            stub("stub-registry", include_str!("../../../benches/peers/stub-registry.conf"), registry)?,
            stub("stub-auth", include_str!("../../../benches/peers/stub-auth.conf"), auth)?,
        ];
        let ca = authority.cert;
        let world = Self {
            cores,
            program: pinned,
            on_epoll,
            registry,
            auth,
            identity,
            ca,
            dir,
            _stubs: stubs,
            _memory: memory,
        };
        world.forwarded()?;
        Ok(world)
    }

    fn beside_load(cores: &Cores) -> Cmd {
        Cmd::new("taskset").args(["-c", &listed(&cores.load)])
    }

    /// The beginning of a command that runs where load is made.
    pub(super) fn as_load(&self) -> Cmd {
        Self::beside_load(&self.cores)
    }

    /// The beginning of a command that runs where proxies run.
    pub(super) fn as_proxy(&self) -> Cmd {
        Cmd::new("taskset").args(["-c", &listed(&self.cores.proxy)])
    }

    /// How many requests have reached the registry so far.
    pub(super) fn forwarded(&self) -> anyhow::Result<u64> {
        self.counter()?.read()
    }

    /// A counter that goes on telling that at once while others wait to be accepted.
    pub(super) fn counter(&self) -> anyhow::Result<Counter> {
        Ok(Counter(Connection::open(self.registry)?))
    }
}

/// How many requests have reached the registry, these ones among them. It asks on a connection of its own, which is kept:
/// a new one would be behind all those in the registry's accept queue.
#[derive(Debug)]
pub(super) struct Counter(Connection);

impl Counter {
    pub(super) fn read(&mut self) -> anyhow::Result<u64> {
        let status = self.0.exchange("GET /status HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        ensure!(status.status == 200, "the stub says {}", status.status);
        let text = status.text();
        let counters = text.lines().nth(2).and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
        counters.with_context(|| format!("the stub counts nothing: {text:?}"))
    }
}

/// A program of this name that runs `command` with its own arguments.
fn wrap(file: &Path, command: &str) -> anyhow::Result<()> {
    fs::write(file, format!("#!/bin/sh\nexec {command} \"$@\"\n")).context("cannot write a script")?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).context("cannot make a script executable")
}

/// The same bytes as the registry stub sends.
pub(super) fn manifest() -> String {
    let head = "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"layers\":[";
    let filler = "0".repeat(MANIFEST - head.len() - 4);
    format!("{head}\"{filler}\"]}}")
}

fn memory_dir() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

/// A directory that nginx' workers, which are nobody, may enter.
fn open_scratch(under: &Path) -> anyhow::Result<TempDir> {
    let name = format!("portcullis-bench-{:x}-", random());
    let dir =
        tempfile::Builder::new().prefix(&name).tempdir_in(under).context("cannot create a temporary directory")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).context("cannot open a temporary directory")?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_its_size() {
        assert_eq!(manifest().len(), MANIFEST);
    }
}
