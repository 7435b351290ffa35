//! `guard run`: the agent that stays. It follows interfaces and addresses that come and go, and looks each minute
//! whether the rings still hold. It owns nothing that matters: when it dies, the guard stays as it is.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use portcullis_ebpf::{Header, Mode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::enforce::{self, How, Rings};
use super::host::{self, Host, Interface};
use super::loader::{self, Generation};
use super::netlink;
use super::options::EnforceArgs;
use super::pins::{Hook, Pinned, Pins};
use super::policy::{Policy, present};
use super::rings::{Change, require_free, run_generation};
use super::trial::{self, Trial};
use crate::edge::notify;
use crate::edge::sys::privilege;

const MINUTE: Duration = Duration::from_secs(60);
/// After a change, and when another command holds the pins: links come with a flock of messages.
const SETTLE: Duration = Duration::from_millis(100);

/// Not everything that can be taken away is announced: the rings are looked at this often in any case.
const LOOK: Duration = Duration::from_secs(3);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Stays until it is told to stop; `each_minute` is called after each look at rings that hold.
pub(super) fn run(args: &EnforceArgs, mut each_minute: impl FnMut(&Pins, &Policy)) -> anyhow::Result<ExitCode> {
    host::require_privileges("run")?;
    loader::require_object()?;
    // Before the first look, so that no change falls between the two.
    let changes = netlink::follow().context("cannot follow the interfaces")?;
    let stop = stop_signal().context("cannot catch signals")?;
    let mut agent = Agent::begin(args)?;
    privilege::keep_only_capabilities_for_bpf().context("cannot give up capabilities")?;
    notify::tell("READY=1");
    let mut minute = Instant::now();
    loop {
        let next = agent.tend();
        let calm = matches!(next, Next::Minute);
        if calm && minute <= Instant::now() {
            each_minute(&agent.pins, &agent.policy);
            minute = Instant::now() + MINUTE;
        }
        let patience = match next {
            Next::Minute => minute.saturating_duration_since(Instant::now()).min(LOOK),
            Next::Soon => SETTLE,
            Next::Later => AGAIN,
        };
        match wait(&changes, &stop, patience)? {
            Woken::Stop => {
                eprintln!("portcullis: the agent stops; the guard stays as it is");
                return Ok(ExitCode::SUCCESS);
            }
            Woken::Change => {
                std::thread::sleep(SETTLE);
                netlink::drain(&changes);
            }
            Woken::Time => {}
        }
    }
}

struct Agent<'a> {
    args: &'a EnforceArgs,
    pins: Pins,
    /// The policy as it was last seen whole: what is put back when somebody takes it away.
    policy: Policy,
    /// What has been complained about, so that each complaint is made once.
    complaints: HashSet<String>,
}

impl<'a> Agent<'a> {
    /// Adopts the guard that is there when it is the one that the options ask for; else puts it in place.
    fn begin(args: &'a EnforceArgs) -> anyhow::Result<Self> {
        let pins = Pins::at(&args.pin.dir);
        let here = Host::read()?;
        let adopted = if pins.dir().exists() { adopt(args, &pins, &here)? } else { None };
        let policy = match adopted {
            Some(policy) => {
                eprintln!("portcullis: policy {} is in force and is adopted", policy.header.generation);
                policy
            }
            None => {
                let enforced = enforce::install(args, How { command: "run", mode: Mode::Enforce, trial: None })?;
                eprintln!("portcullis: policy {} is in force", enforced.policy.header.generation);
                if let Err(error) = enforced.cut {
                    eprintln!("portcullis: warning: connections that were open could not be cut: {error}");
                }
                enforced.policy
            }
        };
        Ok(Self { args, pins, policy, complaints: HashSet::new() })
    }

    /// One look, and when to take the next one.
    fn tend(&mut self) -> Next {
        match self.look() {
            Ok(true) => Next::Minute,
            Ok(false) => Next::Soon,
            Err(error) => {
                self.complain(format!("THE GUARD MAY NOT HOLD: {error:#}"));
                Next::Later
            }
        }
    }

    /// False when another command holds the pins.
    fn look(&mut self) -> anyhow::Result<bool> {
        let here = Host::read()?;
        if here.netns != self.policy.header.netns {
            bail!("this is another network namespace than the guard's");
        }
        // A directory that is gone comes back empty, and a guard that is gone with it.
        let lock = match self.pins.prepare() {
            Ok(lock) => lock,
            Err(error) if self.pins.dir().exists() => {
                self.complain(format!("{error:#}: the agent tries again"));
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        self.end_trial()?;
        let links = self.pins.links().context("cannot read the guard's links")?;
        let now = self.pins.newest().context("cannot read the guard's pins")?;
        let policy = now.map(|newest| loader::policy(&self.pins, newest)).transpose()?;
        match policy.filter(|policy| policy.header.netns == here.netns) {
            Some(policy) if self.holds(&policy, &links, &here)? => self.policy = policy,
            _ => {
                self.restore(&here)?;
                return Ok(true);
            }
        }
        self.follow_addresses(&here)?;
        self.follow_interfaces(&here, &links);
        drop(lock);
        Ok(true)
    }

    /// Goes back where a trial is over and its keeper has been killed; to be called under the lock.
    fn end_trial(&self) -> anyhow::Result<()> {
        let under_way = Trial::read(&self.pins).context("cannot read the record of the trial")?;
        if under_way.is_some() && trial::settle(&self.pins)?.is_none() {
            eprintln!("portcullis: nobody confirmed the policy on trial in time: the former one is back");
        }
        Ok(())
    }

    /// Whether every ring of the policy stands, apart from those on interfaces that are gone.
    fn holds(&self, policy: &Policy, links: &[Pinned], here: &Host) -> anyhow::Result<bool> {
        let mut hooks: Vec<Hook> = links.iter().map(|link| link.hook).collect();
        hooks.retain(|hook| match hook {
            Hook::Xdp(index) => here.interfaces.iter().any(|interface| interface.index == *index),
            _ => true,
        });
        if policy.header.connect_ring {
            hooks.extend(super::pins::CONNECT);
        }
        if policy.header.ingress_ring {
            hooks.push(Hook::Ingress);
        }
        run_generation(&self.pins, policy.header.generation, links, &hooks)
    }

    fn restore(&mut self, here: &Host) -> anyhow::Result<()> {
        eprintln!(
            "portcullis: SOMEBODY HAS TAKEN A PART OF THE GUARD AWAY: it is put back (stop the agent before `detach`)"
        );
        let rings = Rings::resolve_present(self.args, here)?;
        let restored = enforce::restore(&self.pins, here, rings, &self.policy)?;
        eprintln!("portcullis: policy {} is in force", restored.policy.header.generation);
        self.policy = restored.policy;
        Ok(())
    }

    fn follow_addresses(&mut self, here: &Host) -> anyhow::Result<()> {
        let differ = |a: &[_], b: &[_]| a.iter().any(|prefix| !b.contains(prefix));
        if !differ(&self.policy.local, &here.local) && !differ(&here.local, &self.policy.local) {
            return Ok(());
        }
        let with = Policy { local: here.local.clone(), ..self.policy.clone() };
        with.fits()?;
        loader::set_local(&self.pins, with.header.generation, &self.policy.local, &with.local)
            .context("cannot follow the addresses")?;
        self.policy = with;
        Ok(())
    }

    fn follow_interfaces(&mut self, here: &Host, links: &[Pinned]) {
        let gone = links.iter().filter(|link| matches!(link.hook, Hook::Xdp(_)) && !link.is_attached());
        for link in gone {
            if let Err(error) = self.pins.remove_link(link.hook) {
                self.complain(format!("cannot remove the pin of an interface that is gone: {error}"));
            }
        }
        for interface in &present(&self.args.interfaces, here) {
            let guarded = links.iter().any(|link| link.hook == Hook::Xdp(interface.index) && link.is_attached());
            if guarded {
                continue;
            }
            match self.guard(interface, links) {
                Ok(()) => eprintln!("portcullis: {} has come and is guarded", interface.name),
                Err(error) => {
                    self.complain(format!("{} is guarded by the ingress ring only: {error:#}", interface.name));
                }
            }
        }
        let on = links.iter().filter(|link| matches!(link.hook, Hook::Xdp(_))).count();
        let count =
            self.pins.links().map_or(on, |links| links.iter().filter(|link| matches!(link.hook, Hook::Xdp(_))).count());
        let interfaces = u16::try_from(count).unwrap_or(u16::MAX);
        if interfaces != self.policy.header.interfaces {
            let header = Header { interfaces, ..self.policy.header };
            match loader::set_header(&self.pins, &header) {
                Ok(()) => self.policy.header = header,
                Err(error) => self.complain(format!("cannot write the policy: {error}")),
            }
        }
    }

    fn guard(&self, interface: &Interface, links: &[Pinned]) -> anyhow::Result<()> {
        require_free(std::slice::from_ref(interface), links, self.args.mode)?;
        let programs = Generation::existing(&self.pins, self.policy.header.generation);
        let mut change = Change::new(&self.pins, &programs, &[]);
        change.interface(interface, self.args.mode)?;
        change.commit();
        Ok(())
    }

    fn complain(&mut self, what: String) {
        if !self.complaints.contains(&what) {
            eprintln!("portcullis: warning: {what}");
            self.complaints.insert(what);
        }
    }
}

/// The policy in force, when it is the one that the options ask for and every ring of it stands.
fn adopt(args: &EnforceArgs, pins: &Pins, here: &Host) -> anyhow::Result<Option<Policy>> {
    let rings = Rings::resolve(args, here)?;
    let _lock = pins.lock()?;
    let Some(newest) = pins.newest().context("cannot read the guard's pins")? else {
        return Ok(None);
    };
    let found = loader::policy(pins, newest)?;
    let header = rings.header(here, newest, Mode::Enforce, 0);
    let mut asked = Policy::resolve(args, here, header)?;
    // Addresses that have come or gone since are followed in place, by the first look.
    asked.local.clone_from(&found.local);
    for policy in [&mut asked.allowed, &mut asked.local] {
        policy.sort_unstable_by_key(|prefix| (prefix.address.0, prefix.bits));
    }
    asked.targets.sort_by_key(|(address, port, _)| (address.0, *port));
    let mut same = found.clone();
    for policy in [&mut same.allowed, &mut same.local] {
        policy.sort_unstable_by_key(|prefix| (prefix.address.0, prefix.bits));
    }
    let links = pins.links().context("cannot read the guard's links")?;
    let stands = links.len() == rings.hooks().len() && run_generation(pins, newest, &links, &rings.hooks())?;
    Ok((same == asked && stands).then_some(found))
}

/// When to look again, unless something changes before.
enum Next {
    Minute,
    Soon,
    Later,
}

enum Woken {
    Stop,
    Change,
    Time,
}

fn stop_signal() -> std::io::Result<UnixStream> {
    let (stop, sender) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(stop)
}

fn wait(changes: &OwnedFd, stop: &UnixStream, patience: Duration) -> anyhow::Result<Woken> {
    let mut fds = [PollFd::from_borrowed_fd(changes.as_fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    let patience = Timespec::try_from(patience).context("a minute is too long")?;
    match poll(&mut fds, Some(&patience)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => bail!("cannot wait for changes: {error}"),
    }
    Ok(if !fds[1].revents().is_empty() {
        Woken::Stop
    } else if !fds[0].revents().is_empty() {
        Woken::Change
    } else {
        Woken::Time
    })
}
