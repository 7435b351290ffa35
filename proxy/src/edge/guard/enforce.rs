//! `guard enforce` and `guard detach`.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use portcullis_ebpf::decide::Tables as _;
use portcullis_ebpf::{ABI_VERSION, Header, Mode};

use super::cut::cut;
use super::host::{self, Host, Interface};
use super::loader::{self, Flows, Generation};
use super::options::{DetachArgs, EnforceArgs, XdpMode};
use super::pins::{CONNECT, Hook, Pinned, Pins};
use super::policy::{self, Policy};
use super::rings::{Change, require_free, run_generation};

/// What was there before.
struct Installed {
    policy: Policy,
    /// Whether the connect ring stood whole, so that no stranger can have got in on what it protected.
    local_ring_held: bool,
}

/// Where the rings go.
pub(super) struct Rings {
    pub(super) interfaces: Vec<Interface>,
    pub(super) mode: XdpMode,
    /// Whether this host's own processes are judged.
    connect: bool,
    /// The cgroup root, for the connect and the ingress ring. A container may guard its own port without it.
    cgroup: Option<File>,
}

impl Rings {
    /// What the options mean here.
    pub(super) fn resolve(args: &EnforceArgs, here: &Host) -> anyhow::Result<Self> {
        Self::on(policy::interfaces(&args.interfaces, here)?, args)
    }

    /// The same with those interfaces only that are there at the moment: the agent adds others as they come.
    pub(super) fn resolve_present(args: &EnforceArgs, here: &Host) -> anyhow::Result<Self> {
        Self::on(policy::present(&args.interfaces, here), args)
    }

    fn on(interfaces: Vec<Interface>, args: &EnforceArgs) -> anyhow::Result<Self> {
        let cgroup = match host::cgroup_root() {
            Err(_) if args.no_local => None,
            root => Some(root?),
        };
        Ok(Self { interfaces, mode: args.mode, connect: !args.no_local, cgroup })
    }

    /// Every hook, in the order of attaching.
    pub(super) fn hooks(&self) -> Vec<Hook> {
        let outside = self.interfaces.iter().map(|interface| Hook::Xdp(interface.index));
        let ingress = self.cgroup.is_some().then_some(Hook::Ingress);
        let inside = if self.connect { &CONNECT[..] } else { &[] };
        outside.chain(ingress).chain(inside.iter().copied()).collect()
    }

    /// The header of a policy for these rings.
    pub(super) fn header(&self, here: &Host, generation: u64, mode: Mode, confirm_by: u64) -> Header {
        Header {
            abi: ABI_VERSION,
            mode,
            connect_ring: self.connect,
            ingress_ring: self.cgroup.is_some(),
            interfaces: u16::try_from(self.interfaces.len()).unwrap_or(u16::MAX),
            netns: here.netns,
            generation,
            confirm_by,
        }
    }
}

/// Closes the port and returns when it is closed.
pub(super) fn enforce(args: &EnforceArgs) -> anyhow::Result<ExitCode> {
    report(&install(args, "enforce", Mode::Enforce, 0)?)?;
    Ok(ExitCode::SUCCESS)
}

/// What [`install`] has done.
pub(super) struct Enforced {
    pub(super) policy: Policy,
    pub(super) rings: Rings,
    /// How many connections were cut; none in an audit.
    pub(super) cut: io::Result<usize>,
}

/// Puts the guard in place, or swaps its policy: to audit or to enforce, all or nothing.
pub(super) fn install(args: &EnforceArgs, command: &str, mode: Mode, confirm_by: u64) -> anyhow::Result<Enforced> {
    host::require_privileges(command)?;
    loader::require_object()?;
    let here = Host::read()?;
    let rings = Rings::resolve(args, &here)?;
    let pins = Pins::at(&args.pin.dir);
    let lock = pins.prepare()?;
    let result = switch(&pins, &here, rings, |header| Policy::resolve(args, &here, header), mode, confirm_by);
    if result.is_err() && lock.made {
        pins.remove().with_context(|| format!("cannot remove {}", pins.dir().display()))?;
    }
    result
}

/// Swaps the policy for one that `edit` has changed, on the hooks that there are; mode and time for confirming stay.
///
/// # Errors
/// When there is no guard, a ring of it does not hold, or the new policy does not fit. Then nothing has changed.
#[allow(dead_code, reason = "the commands that change a policy in place come next")]
pub(super) fn amend(pins: &Pins, edit: impl FnOnce(&mut Policy) -> anyhow::Result<()>) -> anyhow::Result<Policy> {
    let show = pins.dir().display();
    let _lock = pins.lock()?;
    let here = Host::read()?;
    let links = pins.links().context("cannot read the guard's links")?;
    let Some(before) = installed(pins, &links, &here)? else {
        bail!("no guard is pinned in {show}: `portcullis guard enforce` it first");
    };
    let header = before.policy.header;
    let hooks: Vec<Hook> = links.iter().map(|link| link.hook).collect();
    if !run_generation(pins, header.generation, &links, &hooks)? {
        bail!("a part of the guard in {show} does not hold: see `portcullis guard status`, and enforce it anew");
    }
    let on = |link: &Pinned| here.interfaces.iter().find(|interface| link.hook == Hook::Xdp(interface.index)).cloned();
    let cgroup = if header.ingress_ring || header.connect_ring { Some(host::cgroup_root()?) } else { None };
    let rings = Rings {
        interfaces: links.iter().filter_map(on).collect(),
        mode: XdpMode::Auto,
        connect: header.connect_ring,
        cgroup,
    };
    let mut edited = before.policy.clone();
    edit(&mut edited)?;
    edited.fits()?;
    let with = |header| Ok(Policy { header, ..edited });
    Ok(switch(pins, &here, rings, with, header.mode, header.confirm_by)?.policy)
}

/// Puts back a guard of which a part, or all, was taken away: the policy as it was last seen, on `rings`.
pub(super) fn restore(pins: &Pins, here: &Host, rings: Rings, last: &Policy) -> anyhow::Result<Enforced> {
    let with = |header| Ok(Policy { header, local: here.local.clone(), ..last.clone() });
    switch(pins, here, rings, with, last.header.mode, last.header.confirm_by)
}

/// Fill maps, attach, remove what the new policy no longer has, cut what was open.
fn switch(
    pins: &Pins,
    here: &Host,
    rings: Rings,
    policy: impl FnOnce(Header) -> anyhow::Result<Policy>,
    mode: Mode,
    confirm_by: u64,
) -> anyhow::Result<Enforced> {
    let links = pins.links().context("cannot read the guard's links")?;
    let generations = pins.generations().context("cannot read the guard's pins")?;
    let installed = installed(pins, &links, here)?;
    require_free(&rings.interfaces, &links, rings.mode)?;

    let number = generations.last().map_or(1, |newest| newest + 1);
    let policy = policy(rings.header(here, number, mode, confirm_by))?;
    if let Err(error) = attach(&policy, &rings, pins, &links) {
        pins.remove_generation(number).ok();
        return Err(error);
    }
    let wanted = rings.hooks();
    for link in links.iter().filter(|link| !wanted.contains(&link.hook)) {
        pins.remove_link(link.hook).context("cannot remove a link that is no longer wanted")?;
    }
    for old in generations {
        pins.remove_generation(old).context("cannot remove the previous policy")?;
    }
    let cut = match mode {
        Mode::Audit => Ok(0),
        Mode::Enforce => cut_strangers(pins, &policy, installed.as_ref()),
    };
    Ok(Enforced { policy, rings, cut })
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
    let whole = run_generation(pins, newest, links, &CONNECT)?;
    let held = policy.header.connect_ring && policy.header.mode == Mode::Enforce && whole;
    Ok(Some(Installed { local_ring_held: held, policy }))
}

fn attach(policy: &Policy, rings: &Rings, pins: &Pins, links: &[Pinned]) -> anyhow::Result<()> {
    let programs = Generation::load(pins, policy)?;
    let mut change = Change::new(pins, &programs, links);
    for interface in &rings.interfaces {
        change.interface(interface, rings.mode)?;
    }
    if let Some(root) = &rings.cgroup {
        change.cgroup(root, &[Hook::Ingress])?;
        change.cgroup(root, if rings.connect { &CONNECT } else { &[] })?;
    }
    change.commit();
    Ok(())
}

/// Cuts the connections that the policy would have refused.
#[allow(dead_code, reason = "for the command that turns an audit into an enforcement")]
pub(super) fn cut_all(pins: &Pins, policy: &Policy) -> io::Result<usize> {
    cut_strangers(pins, policy, None)
}

fn cut_strangers(pins: &Pins, policy: &Policy, before: Option<&Installed>) -> io::Result<usize> {
    let flows = Flows::open(pins)?;
    cut(|here, there| !flows.has(here, there) && stranger(policy, before, here, there))
}

/// Whether a connection that is open now may be one that the policy would have refused.
fn stranger(policy: &Policy, before: Option<&Installed>, here: SocketAddr, there: SocketAddr) -> bool {
    let guarded = |policy: &Policy| policy.protects(here) || policy.protects(there);
    let from_here = policy.local(&host::address(there.ip().to_canonical())) != 0;
    if policy.header.connect_ring && (from_here || policy.protects(there)) {
        let judged = before.is_some_and(|before| before.local_ring_held && guarded(&before.policy));
        return guarded(policy) && !judged;
    }
    policy.protects(here) && !from_here && !policy.lets_in(there)
}

fn report(enforced: &Enforced) -> anyhow::Result<()> {
    let Enforced { policy, rings, cut } = enforced;
    let now = Host::read()?;
    let mut out = io::stdout().lock();
    writeln!(out, "guard enforced (policy {}): {}", policy.header.generation, policy.protected().join(", "))?;
    for interface in &rings.interfaces {
        let xdp = now.interfaces.iter().find(|found| found.index == interface.index).and_then(|found| found.xdp);
        writeln!(out, "  xdp      {}: {}", interface.name, xdp.map_or("gone", |xdp| xdp.mode))?;
    }
    let connect = if rings.connect { "every process of this host" } else { "left out" };
    let ingress = if rings.cgroup.is_some() { "every way to a socket" } else { "left out: no cgroup root here" };
    writeln!(out, "  connect  {connect}\n  ingress  {ingress}")?;
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
