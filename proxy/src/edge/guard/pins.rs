//! The directory that keeps the guard alive.
//!
//! ```text
//! vouched, counters, events, flows         maps that outlive a policy
//! trial, standing                          records that no program reads
//! generation_7/{policy,ports,…,xdp,…}      the maps and programs of one policy; a new one is a new directory
//! link_connect4, link_ingress, link_xdp_2… what holds the programs on their hooks (2 is the interface's index)
//! ```
//!
//! A policy is never edited: a new generation is filled while the old one works, then each link is swapped to it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use portcullis_ebpf::program;
use rustix::fs::FlockOperation;

use super::host;
use crate::edge::sys::bpf::{self, AttachType, LinkInfo};

const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const GENERATION: &str = "generation_";
const LINK: &str = "link_";
const XDP: &str = "xdp_";
/// The loader pins this one last: a generation that has it is complete.
const LAST_PINNED: &str = program::CONNECT6;

/// One place in the kernel where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What an interface, by its index, receives.
    Xdp(u32),
    /// connect(2) of IPv4 sockets.
    Connect4,
    /// connect(2) of IPv6 sockets.
    Connect6,
    /// Segments on their way to a socket.
    Ingress,
    /// The beginning and the end of connections.
    Flows,
}

/// The hooks of the connect ring: the first one comes first, so that no vouched connection goes unseen.
pub(super) const CONNECT: [Hook; 3] = [Hook::Flows, Hook::Connect4, Hook::Connect6];

impl Hook {
    /// The program that belongs there.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Xdp(_) => program::XDP,
            Self::Connect4 => program::CONNECT4,
            Self::Connect6 => program::CONNECT6,
            Self::Ingress => program::INGRESS,
            Self::Flows => program::FLOWS,
        }
    }

    /// Whether it is on the root of the cgroup hierarchy.
    pub(super) fn is_on_cgroup(self) -> bool {
        !matches!(self, Self::Xdp(_))
    }

    /// The kernel's name for such a place.
    pub(super) fn attach_type(self) -> AttachType {
        match self {
            Self::Xdp(_) => AttachType::Xdp,
            Self::Connect4 => AttachType::Inet4Connect,
            Self::Connect6 => AttachType::Inet6Connect,
            Self::Ingress => AttachType::InetIngress,
            Self::Flows => AttachType::SockOps,
        }
    }

    pub(super) fn pin(self) -> String {
        match self {
            Self::Xdp(index) => format!("{LINK}{XDP}{index}"),
            Self::Connect4 => format!("{LINK}connect4"),
            Self::Connect6 => format!("{LINK}connect6"),
            Self::Ingress => format!("{LINK}ingress"),
            Self::Flows => format!("{LINK}flows"),
        }
    }

    pub(super) fn from_pin(name: &str) -> Option<Self> {
        match name.strip_prefix(LINK)? {
            "connect4" => Some(Self::Connect4),
            "connect6" => Some(Self::Connect6),
            "ingress" => Some(Self::Ingress),
            "flows" => Some(Self::Flows),
            other => other.strip_prefix(XDP)?.parse().ok().map(Self::Xdp),
        }
    }
}

/// A link that is pinned, with what the kernel says about it.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) hook: Hook,
    pub(super) link: OwnedFd,
    pub(super) info: LinkInfo,
}

impl Pinned {
    /// Whether the link still hangs on something.
    pub(super) fn is_attached(&self) -> bool {
        match self.info.place {
            bpf::Place::Interface(index) => self.hook == Hook::Xdp(index),
            bpf::Place::Cgroup(id, kind) => id != 0 && kind == self.hook.attach_type() as u32,
            bpf::Place::Other => false,
        }
    }
}

/// The pins of one guard.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The pins in `dir`, which need not exist.
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn vouched(&self) -> PathBuf {
        self.dir.join("vouched")
    }

    pub(super) fn counters(&self) -> PathBuf {
        self.dir.join("counters")
    }

    pub(super) fn events(&self) -> PathBuf {
        self.dir.join("events")
    }

    /// The record of a trial.
    pub(super) fn trial(&self) -> PathBuf {
        self.dir.join("trial")
    }

    /// The record for the gate.
    pub(super) fn standing(&self) -> PathBuf {
        self.dir.join("standing")
    }

    pub(super) fn flows(&self) -> PathBuf {
        self.dir.join("flows")
    }

    pub(super) fn generation(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{GENERATION}{number}"))
    }

    pub(super) fn link(&self, hook: Hook) -> PathBuf {
        self.dir.join(hook.pin())
    }

    /// Makes the directory where it is missing, readable by root alone, and keeps other guard commands out of it.
    pub(super) fn prepare(&self) -> anyhow::Result<Lock> {
        host::require_bpf_fs(&self.dir)?;
        let show = self.dir.display();
        let made = match DirBuilder::new().mode(0o700).create(&self.dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).with_context(|| format!("cannot create {show}")),
        };
        let lock = self.lock()?;
        let found = lock.dir.metadata()?;
        if found.uid() != 0 || found.mode() & 0o077 != 0 {
            bail!("{show} must be root's and closed to others (0700), or a stranger could vouch for himself");
        }
        Ok(Lock { made, ..lock })
    }

    /// Keeps other guard commands out of an existing directory.
    pub(super) fn lock(&self) -> anyhow::Result<Lock> {
        let show = self.dir.display();
        let dir = File::open(&self.dir).with_context(|| format!("cannot open {show}"))?;
        let mut tries = 0;
        // The agent takes the lock for a moment now and then; whoever has it for longer is another command.
        while let Err(error) = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            tries += 1;
            if tries == LOCK_TRIES {
                return Err(error).with_context(|| format!("another guard command is at work in {show}"));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        // A `detach` may have removed it in between: what is locked then is nobody's any more.
        let still = fs::metadata(&self.dir).is_ok_and(|found| found.ino() == dir.metadata().map_or(0, |dir| dir.ino()));
        if !still {
            bail!("{show} has just been removed by another guard command");
        }
        Ok(Lock { dir, made: false })
    }

    /// The generations that are pinned, oldest first; the last ones may be incomplete.
    pub(super) fn generations(&self) -> io::Result<Vec<u64>> {
        let names = self.names()?;
        let mut found: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix(GENERATION)?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The newest generation that whoever made it lived to complete.
    pub(super) fn newest(&self) -> io::Result<Option<u64>> {
        let complete = |number: &u64| self.generation(*number).join(LAST_PINNED).exists();
        Ok(self.generations()?.into_iter().rfind(complete))
    }

    /// The links that are pinned.
    pub(super) fn links(&self) -> io::Result<Vec<Pinned>> {
        let mut found = Vec::new();
        for hook in self.names()?.iter().filter_map(|name| Hook::from_pin(name)) {
            let link = bpf::open(&self.link(hook))?;
            let info = bpf::link_info(link.as_fd())?;
            found.push(Pinned { hook, link, info });
        }
        Ok(found)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Detaches one link and removes its pin.
    pub(super) fn remove_link(&self, hook: Hook) -> io::Result<()> {
        let path = self.link(hook);
        // A link whose interface is gone cannot be detached any more; its pin can be removed all the same.
        bpf::open(&path).and_then(|link| bpf::link_detach(link.as_fd())).ok();
        fs::remove_file(path)
    }

    /// The pinned program with this id, whatever its generation.
    pub(super) fn program(&self, name: &str, id: u32) -> io::Result<Option<OwnedFd>> {
        for number in self.generations()? {
            let Ok(program) = bpf::open(&self.generation(number).join(name)) else {
                continue;
            };
            if bpf::program_id(program.as_fd())? == id {
                return Ok(Some(program));
            }
        }
        Ok(None)
    }

    /// Removes one generation; its maps and programs live on while a link runs them.
    pub(super) fn remove_generation(&self, number: u64) -> io::Result<()> {
        let dir = self.generation(number);
        for entry in fs::read_dir(&dir)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_dir(dir)
    }

    /// Removes everything: links first, so that no half of the guard stays on when the rest cannot be removed.
    pub(super) fn remove(&self) -> io::Result<()> {
        for hook in self.names()?.iter().filter_map(|name| Hook::from_pin(name)) {
            self.remove_link(hook)?;
        }
        for number in self.generations()? {
            self.remove_generation(number)?;
        }
        for map in [self.trial(), self.vouched(), self.counters(), self.events(), self.flows(), self.standing()] {
            match fs::remove_file(map) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_dir(&self.dir)
    }
}

/// Held while a command changes the pins.
#[derive(Debug)]
pub(super) struct Lock {
    dir: File,
    /// Whether the directory was made for this command.
    pub(super) made: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_found_again_by_the_name_of_its_pin() {
        for hook in [Hook::Connect4, Hook::Connect6, Hook::Ingress, Hook::Flows, Hook::Xdp(17)] {
            assert_eq!(Hook::from_pin(&hook.pin()), Some(hook));
        }
        for other in ["vouched", "link_xdp_", "link_other", "generation_1"] {
            assert_eq!(Hook::from_pin(other), None, "{other}");
        }
    }
}
