//! `guard status`: what the kernel enforces now, read back from its links, programs and maps.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context as _;
use portcullis_ebpf::{Mode, Tally};
use serde_json::{Value, json};

use super::host::{self, Host};
use super::loader;
use super::options::StatusArgs;
use super::pins::{Hook, Pins};
use super::policy::Policy;
use super::rings::run_generation;

/// The exit code when there is no guard.
const ABSENT: u8 = 3;
/// The exit code when a part of the guard does not hold.
const BROKEN: u8 = 4;

/// One hook and what is there.
struct Ring {
    ring: &'static str,
    place: String,
    mode: &'static str,
    holds: bool,
}

struct Report {
    policy: Policy,
    here: bool,
    rings: Vec<Ring>,
    counters: Vec<(Tally, u64)>,
}

/// Prints the state of the guard.
pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    host::require_privileges("status")?;
    let pins = Pins::at(&args.pin.dir);
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
    fn read(pins: &Pins) -> anyhow::Result<Option<Self>> {
        if !pins.dir().exists() {
            return Ok(None);
        }
        let Some(newest) = pins.newest()? else {
            return Ok(None);
        };
        let policy = loader::policy(pins, newest)?;
        let host = Host::read()?;
        let counters = loader::counters(pins).context("cannot read the guard's counters")?;
        let here = host.netns == policy.header.netns;
        let rings = rings(pins, &policy, here.then_some(&host))?;
        Ok(Some(Self { policy, here, rings, counters }))
    }

    fn state(&self) -> &'static str {
        let interfaces = self.rings.iter().filter(|ring| ring.ring == "xdp").count();
        let whole =
            interfaces == usize::from(self.policy.header.interfaces) && self.rings.iter().all(|ring| ring.holds);
        match (whole, self.policy.header.mode) {
            (false, _) => "broken",
            (true, Mode::Audit) => "auditing",
            (true, Mode::Enforce) => "enforced",
        }
    }

    fn allowed(&self) -> Vec<String> {
        self.policy.allowed.iter().map(|prefix| prefix.to_text()).collect()
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
            .map(|(tally, count)| {
                json!({
                    "ring": tally.ring.name(), "reason": tally.reason.name(), "interface": tally.interface,
                    "passed": tally.reason.passes(), "count": count,
                })
            })
            .collect();
        json!({
            "state": self.state(),
            "pin": pins.dir(),
            "abi": self.policy.header.abi,
            "generation": self.policy.header.generation,
            "netns": {"cookie": self.policy.header.netns, "this_one": self.here},
            "protected": self.policy.protected(),
            "allowed": self.allowed(),
            "rings": rings,
            "counters": counters,
        })
    }

    fn table(&self, pins: &Pins, out: &mut impl Write) -> io::Result<()> {
        let allowed = self.allowed();
        let allowed = if allowed.is_empty() { "nobody from outside".to_owned() } else { allowed.join(", ") };
        let elsewhere = if self.here { "" } else { " of another network namespace" };
        writeln!(
            out,
            "{:<10} {} (policy {}, {})",
            "guard",
            self.state(),
            self.policy.header.generation,
            pins.dir().display()
        )?;
        writeln!(out, "{:<10} {}{elsewhere}", "protected", self.policy.protected().join(", "))?;
        writeln!(out, "{:<10} {allowed}", "allowed")?;
        writeln!(out, "\n{:<8} {:<20} {:<8} holds", "ring", "place", "mode")?;
        for ring in &self.rings {
            let holds = if ring.holds { "yes" } else { "NO" };
            writeln!(out, "{:<8} {:<20} {:<8} {holds}", ring.ring, ring.place, ring.mode)?;
        }
        writeln!(out, "\n{:<8} {:<20} {:<8} {:>12}", "ring", "reason", "verdict", "count")?;
        for (tally, count) in &self.counters {
            let verdict = if tally.reason.passes() { "passed" } else { "refused" };
            writeln!(out, "{:<8} {:<20} {verdict:<8} {count:>12}", tally.ring.name(), tally.reason.name())?;
        }
        Ok(())
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
        for (hook, place) in [(Hook::Connect4, "IPv4 sockets"), (Hook::Connect6, "IPv6 sockets")] {
            rings.push(Ring { ring: "connect", place: place.to_owned(), mode: "-", holds: holds(hook)? });
        }
        rings.push(Ring { ring: "connect", place: "vouched flows".to_owned(), mode: "-", holds: holds(Hook::Flows)? });
    }
    if policy.header.ingress_ring {
        rings.push(Ring { ring: "ingress", place: "every socket".to_owned(), mode: "-", holds: holds(Hook::Ingress)? });
    }
    Ok(rings)
}
