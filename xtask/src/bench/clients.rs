//! The clients whose pulls and pushes are measured: skopeo, docker with its daemon, containerd with `ctr`. Each forgets
//! what it has before the next transfer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::param::clock_ticks_per_second;
use tempfile::TempDir;

use super::peers::Peer;
use super::world::{CREDS, World};
use crate::lab::cmd::Cmd;
use crate::lab::containerd::Containerd;
use crate::lab::den::Den;
use crate::lab::docker::Docker;
use crate::lab::process::{Usage, scratch};
use crate::lab::skopeo::{Skopeo, Trust};

/// Longer than any transfer takes.
const LIMIT: Duration = Duration::from_secs(600);

/// A client.
pub(super) enum Client<'d> {
    /// A fresh one for each transfer.
    Skopeo,
    /// A daemon that forgets each image.
    Docker(Docker),
    /// Another.
    Ctr(Containerd, &'d Den),
}

/// Where an image is, as a client reaches it.
pub(super) struct Place<'p> {
    peer: &'p Peer,
    world: &'p World,
    /// What skopeo takes as `--cert-dir`.
    trust: &'p Path,
}

/// An image at the client, ready to be pushed; whatever it needs is gone with it.
pub(super) struct Loaded {
    name: String,
    layout: TempDir,
}

impl<'p> Place<'p> {
    pub(super) fn new(peer: &'p Peer, world: &'p World, trust: &'p Path) -> Self {
        Self { peer, world, trust }
    }

    /// `HOST:PORT/REPOSITORY:1`.
    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.peer.addr)
    }

    /// What ctr takes as `--hosts-dir`.
    fn hosts(&self) -> PathBuf {
        self.world.dir.path().join("hosts")
    }

    fn creds(&self) -> Option<&'static str> {
        (!self.peer.is_direct()).then_some(CREDS)
    }

    fn skopeo_trust(&self) -> Trust<'p> {
        if self.peer.tls { Trust::CertDir(self.trust) } else { Trust::Plain }
    }
}

impl Client<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Client::Skopeo => "skopeo",
            Client::Docker(_) => "docker",
            Client::Ctr(..) => "ctr",
        }
    }

    /// Lets it log in, where it remembers that.
    pub(super) fn meet(&self, place: &Place<'_>) -> anyhow::Result<()> {
        if let (Client::Docker(docker), Some(creds)) = (self, place.creds()) {
            let (user, password) = creds.split_once(':').context("no password")?;
            let cmd = docker.client().args(["login", "--username", user, "--password-stdin"]);
            cmd.arg(place.peer.addr.to_string()).input(password).run()?;
        }
        if let (Client::Ctr(..), true) = (self, place.peer.tls) {
            // What is on loopback is plain to it, unless a file says otherwise.
            let dir = place.hosts().join(place.peer.addr.to_string());
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            let (server, ca) = (format!("https://{}", place.peer.addr), &place.world.ca);
            let text = format!("server = {server:?}\n[host.{server:?}]\nca = {ca:?}\n");
            fs::write(dir.join("hosts.toml"), text).context("cannot tell ctr of a registry")?;
        }
        Ok(())
    }

    /// Processor time so far: of the commands that have ended, and of the daemons.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let daemons = match self {
            Client::Skopeo => Vec::new(),
            Client::Docker(docker) => docker.pids(),
            Client::Ctr(containerd, _) => vec![containerd.pid()],
        };
        let daemons: Vec<f64> =
            daemons.into_iter().map(|pid| Ok(Usage::of_tree(pid)?.cpu)).collect::<anyhow::Result<_>>()?;
        Ok(children()? + daemons.iter().sum::<f64>())
    }

    /// Pulls an image. What has no daemon to keep it comes back in a directory, so that nobody takes the time of its end for
    /// a part of the pull.
    pub(super) fn pull(&self, place: &Place<'_>, repository: &str) -> anyhow::Result<Option<TempDir>> {
        let name = place.name(repository);
        match self {
            Client::Skopeo => {
                let back = scratch("image")?;
                Skopeo::new()?.pull(&name, back.path(), place.creds(), place.skopeo_trust())?.ok()?;
                return Ok(Some(back));
            }
            Client::Docker(docker) => drop(docker.client().args(["pull", "--quiet", &name]).limit(LIMIT).run()?),
            Client::Ctr(containerd, den) => drop(ctr(containerd, den, "pull", place).arg(&name).limit(LIMIT).run()?),
        }
        Ok(None)
    }

    /// Forgets it again.
    pub(super) fn forget(&self, place: &Place<'_>, repository: &str) -> anyhow::Result<()> {
        let name = place.name(repository);
        match self {
            Client::Skopeo => {}
            Client::Docker(docker) => drop(docker.client().args(["image", "rm", "--force", &name]).run()?),
            Client::Ctr(containerd, den) => {
                containerd.ctr(den).args(["images", "rm", "--sync", &name]).limit(LIMIT).run()?;
            }
        }
        Ok(())
    }

    /// Takes an image that no registry has seen.
    pub(super) fn load(&self, place: &Place<'_>, repository: &str, layout: TempDir) -> anyhow::Result<Loaded> {
        let name = place.name(repository);
        match self {
            Client::Skopeo => {}
            Client::Docker(docker) => {
                let skopeo = Skopeo::new()?;
                let cmd = skopeo.command().args(["copy", "--quiet", "--dest-daemon-host", &docker.host()]);
                let from = format!("oci:{}:latest", layout.path().display());
                cmd.arg(from).arg(format!("docker-daemon:{name}")).limit(LIMIT).run()?;
            }
            Client::Ctr(containerd, den) => {
                let archive = scratch("archive")?;
                let file = archive.path().join("image.tar");
                Cmd::new("tar").arg("-C").arg(layout.path()).arg("-cf").arg(&file).arg(".").run()?;
                let base = name.trim_end_matches(":1");
                let cmd = containerd.ctr(den).args(["images", "import", "--no-unpack", "--base-name", base]);
                cmd.arg(&file).limit(LIMIT).run()?;
                containerd.ctr(den).args(["images", "tag", &format!("{base}:latest"), &name]).run()?;
                containerd.ctr(den).args(["images", "rm", &format!("{base}:latest")]).run()?;
            }
        }
        Ok(Loaded { name, layout })
    }

    /// Pushes it.
    pub(super) fn push(&self, place: &Place<'_>, image: &Loaded) -> anyhow::Result<()> {
        match self {
            Client::Skopeo => {
                Skopeo::new()?.push(image.layout.path(), &image.name, place.creds(), place.skopeo_trust())?.ok()?;
            }
            Client::Docker(docker) => {
                docker.client().args(["push", "--quiet", &image.name]).limit(LIMIT).run()?;
            }
            Client::Ctr(containerd, den) => {
                ctr(containerd, den, "push", place).arg(&image.name).limit(LIMIT).run()?;
            }
        }
        Ok(())
    }
}

fn ctr(containerd: &Containerd, den: &Den, command: &str, place: &Place<'_>) -> Cmd {
    let mut cmd = containerd.ctr(den).args(["images", command]);
    if let Some(creds) = place.creds() {
        cmd = cmd.arg("--user").secret_arg(creds);
    }
    if place.peer.tls { cmd.arg("--hosts-dir").arg(place.hosts()) } else { cmd.arg("--plain-http") }
}

/// Processor time of our children that have ended: the client's commands alone end while we look.
fn children() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok((ticks(13) + ticks(14)) as f64 / clock_ticks_per_second() as f64)
}
