//! `guard status`: what the kernel enforces now, read back from its links, programs and maps.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use portcullis_ebpf::{Mode, Ring as Place, Tally};
use serde_json::{Value, json};

use super::host::{self, Host};
use super::loader;
use super::options::ReadFlags;
use super::pins::{CONNECT, Hook, Pins};
use super::policy::Policy;
use super::rings::run_generation;
use super::standing::{self, Standing};
use super::table::{Table, list};
use super::trial::Trial;
use crate::config::units::format_duration;

/// The exit code when there is no guard.
pub(super) const ABSENT: u8 = 3;
/// The exit code when a part of the guard does not hold.
pub(super) const BROKEN: u8 = 4;

/// One hook and what is there.
pub(super) struct Ring {
    pub(super) ring: &'static str,
    pub(super) place: String,
    mode: &'static str,
    pub(super) holds: bool,
}

/// A count with the interface's name instead of its number.
struct Count {
    tally: Tally,
    interface: Option<String>,
    count: u64,
}

/// Everything that the kernel says about one guard.
pub(super) struct Report {
    pub(super) policy: Policy,
    /// Whether this is the guarded network namespace.
    pub(super) here: bool,
    pub(super) rings: Vec<Ring>,
    counters: Vec<Count>,
    trial: Option<Trial>,
    standing: Option<Standing>,
}

/// Prints the state of the guard.
pub(super) fn status(args: &ReadFlags) -> anyhow::Result<ExitCode> {
    host::require_privileges("status")?;
    let pins = Pins::at(&args.pin.resolve()?.dir);
    let report = Report::read(&pins)?;
    let state = report.as_ref().map_or("absent", Report::state);
    let mut out = io::stdout().lock();
    match (&report, args.json) {
        (None, true) => writeln!(out, "{}", json!({"state": state, "pin": pins.dir()}))?,
        (None, false) => writeln!(out, "no guard is pinned in {}", pins.dir().display())?,
        (Some(report), true) => writeln!(out, "{}", report.json(&pins))?,
        (Some(report), false) => report.table(&pins, &mut out)?,
    }
    Ok(match state {
        "enforced" => ExitCode::SUCCESS,
        "absent" => ExitCode::from(ABSENT),
        _ => ExitCode::from(BROKEN),
    })
}

impl Report {
    /// Reads it as a whole; a change of policy under way takes away pins that have just been listed, so it tries again.
    pub(super) fn read(pins: &Pins) -> anyhow::Result<Option<Self>> {
        const TRIES: u32 = 40;
        const PAUSE: Duration = Duration::from_millis(25);
        let gone = |error: &anyhow::Error| {
            let missing = |cause: &io::Error| cause.kind() == io::ErrorKind::NotFound;
            error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(missing))
        };
        for _ in 0..TRIES {
            match Self::read_once(pins) {
                Err(error) if gone(&error) => std::thread::sleep(PAUSE),
                result => return result,
            }
        }
        Self::read_once(pins)
    }

    fn read_once(pins: &Pins) -> anyhow::Result<Option<Self>> {
        if !pins.dir().exists() {
            return Ok(None);
        }
        let Some(newest) = pins.newest()? else {
            return Ok(None);
        };
        let policy = loader::policy(pins, newest)?;
        let host = Host::read()?;
        let here = host.netns == policy.header.netns;
        let here_only = here.then_some(&host);
        Ok(Some(Self {
            rings: rings(pins, &policy, here_only)?,
            counters: counts(pins, here_only)?,
            trial: Trial::read(pins).context("cannot read the record of the trial")?,
            standing: standing::read(pins).context("cannot read the record of the last verify")?,
            policy,
            here,
        }))
    }

    /// "enforced", "auditing", "broken" when a ring does not hold, or "lapsed" when a trial is over and what was
    /// before is not back yet.
    pub(super) fn state(&self) -> &'static str {
        let interfaces = self.rings.iter().filter(|ring| ring.ring == "xdp").count();
        let whole =
            interfaces == usize::from(self.policy.header.interfaces) && self.rings.iter().all(|ring| ring.holds);
        let lapsed = self.trial.as_ref().is_some_and(|trial| trial.left().is_none());
        match (whole, self.policy.header.mode) {
            (false, _) => "broken",
            (true, _) if lapsed => "lapsed",
            (true, Mode::Audit) => "auditing",
            (true, Mode::Enforce | Mode::Trial) => "enforced",
        }
    }

    fn allowed(&self) -> Vec<String> {
        self.policy.allowed.iter().map(|prefix| prefix.to_text()).collect()
    }

    fn mode(&self) -> &'static str {
        match self.policy.header.mode {
            Mode::Audit => "audit",
            Mode::Enforce | Mode::Trial => "enforce",
        }
    }

    fn json(&self, pins: &Pins) -> Value {
        let rings: Vec<Value> = self
            .rings
            .iter()
            .map(|ring| json!({"ring": ring.ring, "place": ring.place, "mode": ring.mode, "holds": ring.holds}))
            .collect();
        let counters: Vec<Value> = self
            .counters
            .iter()
            .map(|Count { tally, interface, count }| {
                json!({
                    "ring": tally.ring.name(), "reason": tally.reason.name(), "interface": interface,
                    "passed": tally.reason.passes(), "count": count,
                })
            })
            .collect();
        let trial = self.trial.as_ref().map(|trial| {
            json!({
                "seconds_left": trial.left().map_or(0.0, |left| left.as_secs_f64()),
                "back_to_policy": trial.former.as_ref().map(|(generation, _)| generation),
            })
        });
        let verified = self.standing.and_then(Standing::verified);
        json!({
            "state": self.state(),
            "mode": self.mode(),
            "pin": pins.dir(),
            "abi": self.policy.header.abi,
            "generation": self.policy.header.generation,
            "netns": {"cookie": self.policy.header.netns, "this_one": self.here},
            "protected": self.policy.protected(),
            "allowed": self.allowed(),
            "trial": trial,
            "verified": verified.map(|(at, proven)| {
                json!({"at": at, "age_seconds": standing::age(at).as_secs(), "shut": proven})
            }),
            "rings": rings,
            "counters": counters,
        })
    }

    fn table(&self, pins: &Pins, out: &mut impl Write) -> io::Result<()> {
        let header = &self.policy.header;
        let elsewhere = if self.here { "" } else { " of another network namespace" };
        let verified = match self.standing.and_then(Standing::verified) {
            None => "never, for this policy".to_owned(),
            Some((at, proven)) => {
                let result = if proven { "every way was shut" } else { "NOT EVERY WAY WAS SHUT" };
                format!("{result}, {} ago", format_duration(standing::age(at)))
            }
        };
        writeln!(out, "guard      {} (policy {}, {})", self.state(), header.generation, pins.dir().display())?;
        writeln!(out, "mode       {}", self.mode())?;
        if let Some(trial) = &self.trial {
            writeln!(out, "trial      {}", describe(trial))?;
        }
        writeln!(out, "protected  {}{elsewhere}", self.policy.protected().join(", "))?;
        writeln!(out, "allowed    {}", list(&self.allowed(), "nobody from outside"))?;
        writeln!(out, "verified   {verified}\n")?;
        let mut rings = Table::new(&["ring", "place", "mode", "holds"], &[]);
        for ring in &self.rings {
            rings.row([&ring.ring, &ring.place, &ring.mode, &if ring.holds { "yes" } else { "NO" }]);
        }
        let mut counters = Table::new(&["ring", "reason", "interface", "verdict", "count"], &[4]);
        for Count { tally, interface, count } in &self.counters {
            let verdict = match (tally.reason.passes(), header.mode) {
                (true, _) => "passed",
                (false, Mode::Enforce | Mode::Trial) => "refused",
                (false, Mode::Audit) => "would be refused",
            };
            let interface = interface.as_deref().unwrap_or("-");
            counters.row([&tally.ring.name(), &tally.reason.name(), &interface, &verdict, count]);
        }
        write!(out, "{rings}\n{counters}")
    }
}

fn describe(trial: &Trial) -> String {
    let back = match &trial.former {
        None => "then the guard goes".to_owned(),
        Some((generation, _)) => format!("then policy {generation} comes back"),
    };
    match trial.left() {
        Some(left) => format!("{} s left to `guard confirm`, {back}", left.as_secs()),
        None => "over: `guard confirm` or any other change rolls it back now".to_owned(),
    }
}

/// The rings of the policy; `host` is known only from inside the guarded network namespace.
fn rings(pins: &Pins, policy: &Policy, host: Option<&Host>) -> anyhow::Result<Vec<Ring>> {
    let links = pins.links().context("cannot read the guard's links")?;
    let holds = |hook| run_generation(pins, policy.header.generation, &links, &[hook]);
    let mut rings = Vec::new();
    for link in &links {
        let Hook::Xdp(index) = link.hook else {
            continue;
        };
        let interface = host.and_then(|host| host.interfaces.iter().find(|interface| interface.index == index));
        rings.push(Ring {
            ring: "xdp",
            place: interface.map_or_else(|| format!("interface {index}"), |interface| interface.name.clone()),
            mode: interface.and_then(|interface| interface.xdp).map_or("-", |xdp| xdp.mode),
            holds: holds(link.hook)?,
        });
    }
    if policy.header.connect_ring {
        for hook in CONNECT {
            let place = match hook {
                Hook::Connect4 => "IPv4 sockets",
                Hook::Connect6 => "IPv6 sockets",
                _ => "vouched connections",
            };
            rings.push(Ring { ring: "connect", place: place.to_owned(), mode: "-", holds: holds(hook)? });
        }
    }
    if policy.header.ingress_ring {
        let holds = holds(Hook::Ingress)?;
        rings.push(Ring { ring: "ingress", place: "every socket".to_owned(), mode: "-", holds });
    }
    Ok(rings)
}

/// The counters by interface; the sum without one only where nothing is counted by interface.
fn counts(pins: &Pins, host: Option<&Host>) -> anyhow::Result<Vec<Count>> {
    let found = loader::counters(pins).context("cannot read the guard's counters")?;
    let name = |index: u32| {
        let interface = host.and_then(|host| host.interfaces.iter().find(|interface| interface.index == index));
        interface.map_or_else(|| format!("interface {index}"), |interface| interface.name.clone())
    };
    let alone = |tally: &Tally| {
        !found.iter().any(|(other, _)| (other.ring, other.reason) == (tally.ring, tally.reason) && other.interface != 0)
    };
    let shown = found.iter().filter(|(tally, count)| tally.interface != 0 || *count > 0 || alone(tally));
    let count = |(tally, count): &(Tally, u64)| {
        let of_interface = tally.interface != 0 && tally.ring != Place::Connect;
        Count { tally: *tally, interface: of_interface.then(|| name(tally.interface)), count: *count }
    };
    Ok(shown.map(count).collect())
}
