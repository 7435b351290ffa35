//! Putting programs on their hooks, all or none.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, anyhow, bail};

use super::host::Interface;
use super::loader::Generation;
use super::options::XdpMode;
use super::pins::{Hook, Pinned, Pins};
use crate::edge::sys::bpf::{self, Target};

const XDP_GENERIC: u32 = 1 << 1;
const XDP_NATIVE: u32 = 1 << 2;

/// A change of the rings; dropped before [`Change::commit`], it undoes what it did.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pins: &'a Pins,
    programs: &'a Generation<'a>,
    previous: &'a [Pinned],
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    Remove(Hook),
    Restore { link: OwnedFd, program: OwnedFd },
}

impl<'a> Change<'a> {
    /// Begins a change from the links in `previous` to the programs of a generation.
    pub(super) fn new(pins: &'a Pins, programs: &'a Generation<'a>, previous: &'a [Pinned]) -> Self {
        Self { pins, programs, previous, undo: Vec::new() }
    }

    /// Puts the XDP program on an interface.
    pub(super) fn interface(&mut self, interface: &Interface, mode: XdpMode) -> anyhow::Result<()> {
        let hook = Hook::Xdp(interface.index);
        let modes: &[u32] = match mode {
            XdpMode::Auto => &[XDP_NATIVE, XDP_GENERIC],
            XdpMode::Native => &[XDP_NATIVE],
            XdpMode::Generic => &[XDP_GENERIC],
        };
        let targets: Vec<Target<'_>> = modes.iter().map(|flags| Target::Interface(interface.index, *flags)).collect();
        self.put(hook, &targets).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => anyhow!("another XDP program has just been put on {}", interface.name),
            _ if mode == XdpMode::Native => {
                anyhow!("the driver of {} takes no XDP program ({error}): use --mode generic or auto", interface.name)
            }
            _ => anyhow!("cannot put the XDP program on {}: {error}", interface.name),
        })
    }

    /// Puts programs on the cgroup.
    pub(super) fn cgroup(&mut self, root: &File, hooks: &[Hook]) -> anyhow::Result<()> {
        for hook in hooks.iter().copied() {
            self.put(hook, &[Target::Cgroup(root.as_fd())]).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => anyhow!(
                    "{} keeps the hook of {} on the cgroup root for itself: remove it, or use --no-local",
                    occupants(root, hook),
                    hook.program()
                ),
                _ => anyhow!("cannot put {} on the cgroup root: {error}", hook.program()),
            })?;
        }
        Ok(())
    }

    /// Swaps the program of an existing link, or makes a link on the first target that takes it.
    fn put(&mut self, hook: Hook, targets: &[Target<'_>]) -> io::Result<()> {
        let program = self.programs.program(hook)?;
        let program = program.as_fd();
        let existing = self.previous.iter().find(|pinned| pinned.hook == hook);
        if let Some(pinned) = existing {
            if pinned.is_attached() {
                let old = self.pins.program(hook.program(), pinned.info.program)?;
                let old = old.ok_or_else(|| io::Error::other("its link runs a program that is not the guard's"))?;
                let link = pinned.link.try_clone()?;
                bpf::link_update(link.as_fd(), program)?;
                self.undo.push(Undo::Restore { link, program: old });
                return Ok(());
            }
            self.pins.remove_link(hook)?;
        }
        let link = create(program, targets, hook)?;
        bpf::pin(link.as_fd(), &self.pins.link(hook))?;
        self.undo.push(Undo::Remove(hook));
        Ok(())
    }

    /// Makes the change last.
    pub(super) fn commit(mut self) {
        self.undo.clear();
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        for undo in self.undo.drain(..).rev() {
            let result = match undo {
                Undo::Remove(hook) => self.pins.remove_link(hook),
                Undo::Restore { link, program } => bpf::link_update(link.as_fd(), program.as_fd()),
            };
            if let Err(error) = result {
                eprintln!("portcullis: could not undo a part of the change: {error}");
            }
        }
    }
}

/// Hangs a program where nothing of the guard hangs any more.
pub(super) fn hang(pins: &Pins, hook: Hook, program: BorrowedFd<'_>, root: Option<&File>) -> io::Result<()> {
    let targets = match (hook, root) {
        (Hook::Xdp(index), _) => vec![Target::Interface(index, XDP_NATIVE), Target::Interface(index, XDP_GENERIC)],
        (_, Some(root)) => vec![Target::Cgroup(root.as_fd())],
        (_, None) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    // A pin of a link that hangs on nothing is in the way.
    pins.remove_link(hook).ok();
    let link = create(program, &targets, hook)?;
    bpf::pin(link.as_fd(), &pins.link(hook))
}

fn create(program: BorrowedFd<'_>, targets: &[Target<'_>], hook: Hook) -> io::Result<OwnedFd> {
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for target in targets {
        match bpf::link_create(program, *target, hook.attach_type()) {
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => last = error,
            result => return result,
        }
    }
    Err(last)
}

/// Refuses interfaces that somebody else's XDP program guards, or ours in a mode other than the one asked for.
pub(super) fn require_free(interfaces: &[Interface], previous: &[Pinned], mode: XdpMode) -> anyhow::Result<()> {
    for interface in interfaces {
        let Some(xdp) = interface.xdp else { continue };
        let name = &interface.name;
        let own =
            previous.iter().any(|link| link.hook == Hook::Xdp(interface.index) && link.info.program == xdp.program);
        if !own {
            let program = program_name(xdp.program).unwrap_or_default();
            bail!(
                "{name} already has the XDP program {program:?} (id {}), which the guard will not replace: \
                 remove it with `ip link set dev {name} xdp off`, or leave {name} out",
                xdp.program
            );
        }
        let wanted = match mode {
            XdpMode::Auto => continue,
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        };
        if xdp.mode != wanted {
            bail!("{name} is guarded in {} mode, which cannot be changed in place: detach first", xdp.mode);
        }
    }
    Ok(())
}

/// Who is on a hook of the cgroup root, for a message.
fn occupants(root: &File, hook: Hook) -> String {
    let ids = bpf::programs_on(root.as_fd(), hook.attach_type()).unwrap_or_default();
    let names: Vec<String> =
        ids.iter().map(|id| format!("the program {:?} (id {id})", program_name(*id).unwrap_or_default())).collect();
    if names.is_empty() { "another program".to_owned() } else { names.join(", ") }
}

fn program_name(id: u32) -> Option<String> {
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id).and_then(|program| program.name_as_str().map(str::to_owned))
}

/// Whether every one of `hooks` runs the programs of `generation`.
pub(super) fn run_generation(pins: &Pins, generation: u64, links: &[Pinned], hooks: &[Hook]) -> anyhow::Result<bool> {
    for hook in hooks {
        let Some(link) = links.iter().find(|link| link.hook == *hook && link.is_attached()) else {
            return Ok(false);
        };
        let program = bpf::open(&pins.generation(generation).join(hook.program()))
            .with_context(|| format!("the pin of {} is missing", hook.program()))?;
        if bpf::program_id(program.as_fd())? != link.info.program {
            return Ok(false);
        }
    }
    Ok(true)
}
