//! `guard enforce` and `guard detach`.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use portcullis_ebpf::decide::Tables as _;
use portcullis_ebpf::{ABI_VERSION, Header, Mode};

use super::cut::cut;
use super::host::{self, Host, Interface};
use super::loader::{self, Flows, Generation};
use super::options::{EnforceArgs, PinArg, XdpMode};
use super::pins::{CONNECT, Hook, Pinned, Pins};
use super::policy::{self, Policy};
use super::rings::{Change, require_free, run_generation};
use super::standing;
use super::trial::{self, Trial};

/// What was there before.
pub(super) struct Installed {
    pub(super) policy: Policy,
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

/// What a change of the guard shall be.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    /// The command, for messages.
    pub(super) command: &'static str,
    pub(super) mode: Mode,
    /// How long the change waits to be confirmed, when it does.
    pub(super) trial: Option<Duration>,
}

/// `guard audit` and `guard enforce`; without arguments, of what is pinned.
pub(super) fn apply(args: Result<&EnforceArgs, &PinArg>, how: How) -> anyhow::Result<ExitCode> {
    let (enforced, pins) = match args {
        Ok(args) => (install(args, how)?, Pins::at(&args.pin.dir)),
        Err(pin) => {
            host::require_privileges(how.command)?;
            loader::require_object()?;
            let pins = Pins::at(&pin.dir);
            if !pins.dir().exists() {
                bail!(
                    "no guard is pinned in {}: say what to protect with --port N, --protect ADDR:PORT or --config FILE",
                    pins.dir().display()
                );
            }
            (rewrite(&pins, Some(how), |_| Ok(()))?, pins)
        }
    };
    report(&enforced, how, &pins)?;
    Ok(ExitCode::SUCCESS)
}

/// What [`install`] has done.
pub(super) struct Enforced {
    pub(super) policy: Policy,
    pub(super) rings: Rings,
    /// How many connections were cut; none in an audit.
    pub(super) cut: io::Result<usize>,
    /// Whether there is something to go back to when a trial ends.
    former: bool,
}

/// Puts the guard in place, or swaps its policy: to audit or to enforce, all or nothing.
pub(super) fn install(args: &EnforceArgs, how: How) -> anyhow::Result<Enforced> {
    host::require_privileges(how.command)?;
    loader::require_object()?;
    let here = Host::read()?;
    let rings = Rings::resolve(args, &here)?;
    let pins = Pins::at(&args.pin.dir);
    let mut lock = pins.prepare()?;
    require_settled(&pins)?;
    if !pins.dir().exists() {
        // A trial that was overdue has gone, and the guard with it.
        lock = pins.prepare()?;
    }
    let result = switch(&pins, &here, rings, |header| Policy::resolve(args, &here, header), how);
    if result.is_err() && lock.made {
        pins.remove().with_context(|| format!("cannot remove {}", pins.dir().display()))?;
    }
    result
}

fn require_settled(pins: &Pins) -> anyhow::Result<()> {
    match trial::settle(pins)? {
        None => Ok(()),
        Some(_) => bail!(
            "the guard in {} is on trial: `portcullis guard confirm` it first, or wait until it is rolled back",
            pins.dir().display()
        ),
    }
}

/// Swaps the policy for one that `edit` has changed, on the hooks that there are; the mode stays.
///
/// # Errors
/// When there is no guard, a ring of it does not hold, or the new policy does not fit. Then nothing has changed.
pub(super) fn amend(pins: &Pins, edit: impl FnOnce(&mut Policy) -> anyhow::Result<()>) -> anyhow::Result<Policy> {
    Ok(rewrite(pins, None, edit)?.policy)
}

fn rewrite(
    pins: &Pins,
    how: Option<How>,
    edit: impl FnOnce(&mut Policy) -> anyhow::Result<()>,
) -> anyhow::Result<Enforced> {
    let show = pins.dir().display();
    let _lock = pins.lock()?;
    require_settled(pins)?;
    let here = Host::read()?;
    let links = pins.links().context("cannot read the guard's links")?;
    let Some(before) = Installed::read(pins, &links, &here)? else {
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
    let how = how.unwrap_or(How { command: "allow", mode: header.mode, trial: None });
    switch(pins, &here, rings, with, how)
}

/// Puts back a guard of which a part, or all, was taken away: the policy as it was last seen, on `rings`.
pub(super) fn restore(pins: &Pins, here: &Host, rings: Rings, last: &Policy) -> anyhow::Result<Enforced> {
    let with = |header| Ok(Policy { header, local: here.local.clone(), ..last.clone() });
    switch(pins, here, rings, with, How { command: "run", mode: last.header.mode, trial: None })
}

/// Fill maps, attach, remove what the new policy no longer has, cut what was open.
fn switch(
    pins: &Pins,
    here: &Host,
    rings: Rings,
    policy: impl FnOnce(Header) -> anyhow::Result<Policy>,
    how: How,
) -> anyhow::Result<Enforced> {
    let links = pins.links().context("cannot read the guard's links")?;
    let generations = pins.generations().context("cannot read the guard's pins")?;
    let before = Installed::read(pins, &links, here)?;
    require_free(&rings.interfaces, &links, rings.mode)?;

    let number = generations.last().map_or(1, |newest| newest + 1);
    let confirm_by = how.trial.map_or(0, |time| deadline(trial::since_boot() + time));
    // The programs themselves give up a trial that nobody confirms, where nothing was refused before.
    let refused_before = before.as_ref().is_some_and(|before| before.policy.header.mode == Mode::Enforce);
    let mode = if how.trial.is_some() && !refused_before { Mode::Trial } else { how.mode };
    let policy = policy(rings.header(here, number, mode, confirm_by))?;
    let hooks = rings.hooks();
    let former = before.is_some();
    if let Some(before) = &before
        && how.trial.is_none()
        && before.differs_in_mode_only(&policy, &hooks, pins, &links)?
    {
        let header = Header { mode: how.mode, ..before.policy.header };
        loader::set_header(pins, &header).context("cannot switch the guard's mode")?;
        standing::refresh(pins)?;
        let policy = Policy { header, ..policy };
        return Ok(Enforced { cut: cut_for(how.mode, pins, &policy, None), policy, rings, former });
    }
    if let Some(time) = how.trial {
        let hooks = links.iter().map(|link| link.hook).collect();
        let former = before.as_ref().map(|before| (before.policy.header.generation, hooks));
        Trial::new(time, number, former).begin(pins)?;
    }
    if let Err(error) = attach(&policy, &rings, pins, &links) {
        pins.remove_generation(number).ok();
        trial::forget(pins).ok();
        return Err(error);
    }
    for link in links.iter().filter(|link| !hooks.contains(&link.hook)) {
        pins.remove_link(link.hook).context("cannot remove a link that is no longer wanted")?;
    }
    let kept = before.as_ref().filter(|_| how.trial.is_some()).map(|before| before.policy.header.generation);
    for old in generations.into_iter().filter(|old| kept != Some(*old)) {
        pins.remove_generation(old).context("cannot remove the previous policy")?;
    }
    standing::refresh(pins).context("cannot write the guard's record")?;
    let cut = cut_for(how.mode, pins, &policy, before.as_ref());
    Ok(Enforced { policy, rings, cut, former })
}

fn deadline(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn cut_for(mode: Mode, pins: &Pins, policy: &Policy, before: Option<&Installed>) -> io::Result<usize> {
    match mode {
        Mode::Audit => Ok(0),
        Mode::Enforce | Mode::Trial => {
            let flows = Flows::open(pins)?;
            cut(|here, there| !flows.has(here, there) && stranger(policy, before, here, there))
        }
    }
}

impl Installed {
    /// The guard that is pinned, if there is one.
    pub(super) fn read(pins: &Pins, links: &[Pinned], here: &Host) -> anyhow::Result<Option<Self>> {
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
        Ok(Some(Self { local_ring_held: held, policy }))
    }

    /// Whether one write of the header is all that it takes.
    fn differs_in_mode_only(
        &self,
        policy: &Policy,
        hooks: &[Hook],
        pins: &Pins,
        links: &[Pinned],
    ) -> anyhow::Result<bool> {
        let (mode, generation) = (self.policy.header.mode, self.policy.header.generation);
        Ok(mode != policy.header.mode
            && self.policy.says_the_same(policy)
            && links.len() == hooks.len()
            && run_generation(pins, generation, links, hooks)?)
    }
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

/// Whether a connection that is open now may be one that the policy would have refused.
pub(super) fn stranger(policy: &Policy, before: Option<&Installed>, here: SocketAddr, there: SocketAddr) -> bool {
    let guarded = |policy: &Policy| policy.protects(here) || policy.protects(there);
    let from_here = policy.local(&host::address(there.ip().to_canonical())) != 0;
    if policy.header.connect_ring && (from_here || policy.protects(there)) {
        let judged = before.is_some_and(|before| before.local_ring_held && guarded(&before.policy));
        return guarded(policy) && !judged;
    }
    policy.protects(here) && !from_here && !policy.lets_in(there)
}

fn report(enforced: &Enforced, how: How, pins: &Pins) -> anyhow::Result<()> {
    let Enforced { policy, rings, cut, former } = enforced;
    let now = Host::read()?;
    let mut out = io::stdout().lock();
    let state = if how.mode == Mode::Audit { "auditing" } else { "enforced" };
    writeln!(out, "guard {state} (policy {}): {}", policy.header.generation, policy.protected().join(", "))?;
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
    if let Some(time) = how.trial {
        writeln!(out, "{}", trial::announce(time, pins, *former))?;
    }
    match cut {
        Ok(_) if how.mode == Mode::Audit => {
            writeln!(out, "nothing is dropped: `portcullis guard status` counts what would be, `enforce` makes it so")?;
        }
        Ok(count) => writeln!(out, "  cut      {count} connections that were open")?,
        Err(error) => eprintln!(
            "portcullis: warning: connections that were open could not be cut ({error}): restart what is behind the port"
        ),
    }
    Ok(())
}

/// Removes the guard.
pub(super) fn detach(pin: &PinArg) -> anyhow::Result<ExitCode> {
    host::require_privileges("detach")?;
    let pins = Pins::at(&pin.dir);
    let show = pins.dir().display();
    if !pins.dir().exists() {
        bail!("no guard is pinned in {show}: there is nothing to detach");
    }
    let _lock = pins.lock()?;
    let newest = pins.newest()?;
    let policy = newest.and_then(|newest| loader::policy(&pins, newest).ok());
    standing::change(&pins, |standing| standing.mode = standing::ABSENT).ok();
    pins.remove().with_context(|| format!("cannot remove {show}"))?;
    let what = policy.map_or_else(|| "what it protected".to_owned(), |policy| policy.protected().join(", "));
    eprintln!("portcullis: THE GUARD IS OFF: {what} can now be reached without a login (was pinned in {show})");
    Ok(ExitCode::SUCCESS)
}
