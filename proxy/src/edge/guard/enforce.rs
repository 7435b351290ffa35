//! `guard enforce` and `guard detach`.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use portcullis_ebpf::decide::Tables as _;

use super::cut::cut;
use super::host::{self, Host, Interface};
use super::loader::{self, Loaded};
use super::options::{DetachArgs, EnforceArgs};
use super::pins::{Hook, Pinned, Pins};
use super::policy::{self, Policy};
use super::rings::{Change, require_free, run_generation};

/// What was enforced before.
struct Installed {
    policy: Policy,
    /// Whether the connect ring stood whole, so that no stranger can have got in on what it protected.
    local_ring_held: bool,
}

/// Closes the port and returns when it is closed.
pub(super) fn enforce(args: &EnforceArgs) -> anyhow::Result<ExitCode> {
    host::require_privileges("enforce")?;
    loader::require_object()?;
    let here = Host::read()?;
    let interfaces = policy::interfaces(&args.interfaces, &here)?;
    let cgroup = if args.no_local { None } else { Some(host::cgroup_root()?) };

    let pins = Pins::at(&args.pin.dir);
    let lock = pins.prepare()?;
    let result = switch(args, &here, &interfaces, cgroup.as_ref(), &pins);
    if result.is_err() && lock.made {
        pins.remove().with_context(|| format!("cannot remove {}", pins.dir().display()))?;
    }
    report(&result?, &interfaces, args.no_local)?;
    Ok(ExitCode::SUCCESS)
}

struct Enforced {
    policy: Policy,
    cut: io::Result<usize>,
}

/// Fill maps, attach, remove what the new policy no longer has, cut what was open.
fn switch(
    args: &EnforceArgs,
    here: &Host,
    interfaces: &[Interface],
    cgroup: Option<&File>,
    pins: &Pins,
) -> anyhow::Result<Enforced> {
    let links = pins.links().context("cannot read the guard's links")?;
    let generations = pins.generations().context("cannot read the guard's pins")?;
    let installed = installed(pins, &links, here)?;
    require_free(interfaces, &links, args.mode)?;

    let number = generations.last().map_or(1, |newest| newest + 1);
    let policy = Policy::resolve(args, here, interfaces.len(), number)?;
    let attached = attach(args, &policy, interfaces, cgroup, pins, &links);
    if let Err(error) = attached {
        pins.remove_generation(number).ok();
        return Err(error);
    }
    let wanted = |hook: &Hook| match hook {
        Hook::Xdp(index) => interfaces.iter().any(|interface| interface.index == *index),
        Hook::Connect4 | Hook::Connect6 => cgroup.is_some(),
    };
    for link in links.iter().filter(|link| !wanted(&link.hook)) {
        pins.remove_link(link.hook).context("cannot remove a link that is no longer wanted")?;
    }
    for old in generations {
        pins.remove_generation(old).context("cannot remove the previous policy")?;
    }
    let cut = cut(|here, there| stranger(&policy, installed.as_ref(), here, there));
    Ok(Enforced { policy, cut })
}

fn installed(pins: &Pins, links: &[Pinned], here: &Host) -> anyhow::Result<Option<Installed>> {
    let Some(newest) = pins.newest().context("cannot read the guard's pins")? else {
        return Ok(None);
    };
    let policy = loader::policy(pins, newest)?;
    if policy.header.netns != here.netns {
        bail!(
            "the guard in {} belongs to another network namespace: choose another --pin, or detach it first",
            pins.dir().display()
        );
    }
    let whole = run_generation(pins, newest, links, &[Hook::Connect4, Hook::Connect6])?;
    Ok(Some(Installed { local_ring_held: policy.header.connect_ring && whole, policy }))
}

fn attach(
    args: &EnforceArgs,
    policy: &Policy,
    interfaces: &[Interface],
    cgroup: Option<&File>,
    pins: &Pins,
    links: &[Pinned],
) -> anyhow::Result<()> {
    let loaded = Loaded::new(pins, policy)?;
    let mut change = Change::new(pins, &loaded, links);
    for interface in interfaces {
        change.interface(interface, args.mode)?;
    }
    if let Some(root) = cgroup {
        change.cgroup(root)?;
    }
    change.commit();
    Ok(())
}

/// Whether a connection that is open now may be one that the policy would have refused.
fn stranger(policy: &Policy, before: Option<&Installed>, here: SocketAddr, there: SocketAddr) -> bool {
    let guarded = |policy: &Policy| policy.protects(here) || policy.protects(there);
    if before.is_some_and(|before| before.local_ring_held && guarded(&before.policy)) {
        return false;
    }
    let from_here = policy.local(&host::address(there.ip().to_canonical())) != 0;
    if policy.header.connect_ring && (from_here || policy.protects(there)) {
        return guarded(policy);
    }
    policy.protects(here) && !from_here && !policy.lets_in(there)
}

fn report(enforced: &Enforced, interfaces: &[Interface], no_local: bool) -> anyhow::Result<()> {
    let Enforced { policy, cut } = enforced;
    let now = Host::read()?;
    let mut out = io::stdout().lock();
    writeln!(out, "guard enforced (policy {}): {}", policy.header.generation, policy.protected().join(", "))?;
    for interface in interfaces {
        let xdp = now.interfaces.iter().find(|found| found.index == interface.index).and_then(|found| found.xdp);
        writeln!(out, "  xdp      {}: {}", interface.name, xdp.map_or("gone", |xdp| xdp.mode))?;
    }
    writeln!(out, "  connect  {}", if no_local { "left out" } else { "every process of this host" })?;
    let allowed: Vec<String> = policy.allowed.iter().map(|prefix| prefix.to_text()).collect();
    writeln!(
        out,
        "  allowed  {}",
        if allowed.is_empty() { "nobody from outside".to_owned() } else { allowed.join(", ") }
    )?;
    for port in policy.ports.keys().filter(|port| host::is_ephemeral(**port)) {
        eprintln!(
            "portcullis: warning: port {port} may also be given to outgoing connections, which would then fail: \
             add it to net.ipv4.ip_local_reserved_ports"
        );
    }
    match cut {
        Ok(count) => writeln!(out, "  cut      {count} connections that were open")?,
        Err(error) => eprintln!(
            "portcullis: warning: connections that were open could not be cut ({error}): restart what is behind the port"
        ),
    }
    Ok(())
}

/// Removes the guard.
pub(super) fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    host::require_privileges("detach")?;
    let pins = Pins::at(&args.pin.dir);
    let show = pins.dir().display();
    if !pins.dir().exists() {
        bail!("no guard is pinned in {show}: there is nothing to detach");
    }
    let _lock = pins.lock()?;
    let newest = pins.newest()?;
    let policy = newest.and_then(|newest| loader::policy(&pins, newest).ok());
    pins.remove().with_context(|| format!("cannot remove {show}"))?;
    let what = policy.map_or_else(|| "what it protected".to_owned(), |policy| policy.protected().join(", "));
    eprintln!("portcullis: THE GUARD IS OFF: {what} can now be reached without a login (was pinned in {show})");
    Ok(ExitCode::SUCCESS)
}
