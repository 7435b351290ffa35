//! `guard verify`: the proof that the door is shut, by trying it.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use portcullis_ebpf::Mode;
use portcullis_ebpf::program;
use serde_json::json;

use super::host::{self, Host};
use super::options::{PinArg, ReadFlags};
use super::pins::{Hook, Pins};
use super::policy::Policy;
use super::probe::{self, Found, Probe};
use super::standing;
use super::status::{ABSENT, BROKEN, Report};
use super::table::Table;
use super::wire;

/// What `verify` has found.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) probes: Vec<Probe>,
}

impl Verdict {
    /// Whether every way in is shut and the gate's own is open.
    pub(super) fn holds(&self) -> bool {
        !self.probes.iter().any(|probe| matches!(probe.found, Found::Bad(_)))
    }

    /// How many ways could not be tried, each for a reason that is shown.
    fn untried(&self) -> usize {
        self.probes.iter().filter(|probe| matches!(probe.found, Found::Untried(_))).count()
    }

    /// The ways that are not as they should be, for people.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        self.probes.iter().filter_map(|probe| match &probe.found {
            Found::Bad(what) => Some(format!("{}: {} {what}", probe.side, probe.way)),
            _ => None,
        })
    }
}

/// Tries everything and notes the result next to the pins; `None` when there is no guard.
///
/// # Errors
/// When the guard cannot be read, or belongs to another network namespace, from which alone it can be tried.
pub(super) fn try_all(pin: &PinArg) -> anyhow::Result<Option<Verdict>> {
    let pins = Pins::at(&pin.dir);
    let Some(report) = Report::read(&pins)? else { return Ok(None) };
    if !report.here {
        anyhow::bail!(
            "the guard in {} belongs to another network namespace: verify it from there",
            pins.dir().display()
        );
    }
    let mut probes = Vec::new();
    for ring in &report.rings {
        let found = if ring.holds {
            Found::Good("attached, runs this policy".to_owned())
        } else {
            Found::Bad("is not attached, or runs another program".to_owned())
        };
        probes.push(Probe { side: "ring", way: format!("{} on {}", ring.ring, ring.place), found });
    }
    let missing = usize::from(report.policy.header.interfaces)
        .saturating_sub(report.rings.iter().filter(|ring| ring.ring == "xdp").count());
    if missing > 0 {
        let found = Found::Bad(format!("{missing} of the policy's interfaces have no link"));
        probes.push(Probe { side: "ring", way: "xdp".to_owned(), found });
    }
    if report.policy.header.mode == Mode::Audit {
        let found = Found::Bad("only counts: `portcullis guard enforce` makes it refuse".to_owned());
        probes.push(Probe { side: "ring", way: "the policy".to_owned(), found });
    }
    probes.extend(outside(&pins, &report)?);
    if report.policy.header.ingress_ring {
        probes.extend(wire::knock(&pins, &report.policy));
    }
    if report.policy.header.connect_ring {
        probes.extend(probe::inside(&report.policy)?);
    }
    probes.extend(probe::gate(&pins, &report.policy)?);
    let verdict = Verdict { probes };
    standing::change(&pins, |standing| standing.note(verdict.holds()))?;
    Ok(Some(verdict))
}

/// By each guarded interface, and past XDP by each other one.
fn outside(pins: &Pins, report: &Report) -> anyhow::Result<Vec<Probe>> {
    let host = Host::read()?;
    let links = pins.links()?;
    let mut probes = Vec::new();
    for interface in host.interfaces.iter().filter(|interface| !interface.loopback) {
        let link = links.iter().find(|link| link.hook == Hook::Xdp(interface.index) && link.is_attached());
        if let Some(link) = link {
            probes.extend(probe::interface(pins, link.info.program, interface.index, &interface.name, &report.policy)?);
        }
    }
    let ingress = links.iter().find(|link| link.hook == Hook::Ingress && link.is_attached());
    let Some(ingress) = ingress else { return Ok(probes) };
    let Some(program) = pins.program(program::INGRESS, ingress.info.program)? else {
        let found = Found::Bad("its link runs a program that is not the guard's".to_owned());
        probes.push(Probe { side: "outside", way: "past XDP".to_owned(), found });
        return Ok(probes);
    };
    for interface in host.interfaces.iter().filter(|interface| !interface.loopback) {
        probes.extend(probe::ingress(program.as_fd(), interface.index, &interface.name, &report.policy));
    }
    Ok(probes)
}

/// For the agent: tries everything, notes the result, and tells of it when it is another than the last time.
pub(super) fn each_minute() -> impl FnMut(&Pins, &Policy) {
    let mut last: Option<Vec<String>> = None;
    move |pins, _| {
        let faults = match try_all(&PinArg { dir: pins.dir().to_path_buf() }) {
            Ok(Some(verdict)) => verdict.faults().collect(),
            Ok(None) => vec!["there is no guard".to_owned()],
            Err(error) => vec![format!("it cannot be verified: {error:#}")],
        };
        if last.as_ref() != Some(&faults) {
            if faults.is_empty() {
                eprintln!("portcullis: verified: every way in is shut, and the gate's own is open");
            }
            for fault in &faults {
                eprintln!("portcullis: warning: NOT AS IT SHOULD BE: {fault}");
            }
            last = Some(faults);
        }
    }
}

/// `guard verify`.
pub(super) fn verify(args: &ReadFlags) -> anyhow::Result<ExitCode> {
    host::require_privileges("verify")?;
    let pin = args.pin.resolve()?;
    let verdict = try_all(&pin)?;
    let mut out = io::stdout().lock();
    let Some(verdict) = verdict else {
        if args.json {
            writeln!(out, "{}", json!({"shut": false, "state": "absent", "pin": pin.dir}))?;
        } else {
            writeln!(out, "no guard is pinned in {}", pin.dir.display())?;
        }
        return Ok(ExitCode::from(ABSENT));
    };
    if args.json {
        let probes: Vec<_> = verdict
            .probes
            .iter()
            .map(|Probe { side, way, found }| {
                let (result, what) = words(found);
                json!({"side": side, "way": way, "result": result, "found": what})
            })
            .collect();
        let (shut, untried) = (verdict.holds(), verdict.untried());
        writeln!(out, "{}", json!({"shut": shut, "untried": untried, "pin": pin.dir, "probes": probes}))?;
    } else {
        let mut table = Table::new(&["side", "way", "result", "found"], &[]);
        for Probe { side, way, found } in &verdict.probes {
            let (result, what) = words(found);
            table.row([side, way, &result, &what]);
        }
        writeln!(out, "{table}")?;
        for fault in verdict.faults() {
            writeln!(out, "NOT AS IT SHOULD BE  {fault}")?;
        }
        if verdict.holds() {
            let but = match verdict.untried() {
                0 => String::new(),
                n => format!(" (but for {n} that could not be tried)"),
            };
            writeln!(out, "every way in is shut{but}, and the gate's own is open")?;
        }
    }
    Ok(if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::from(BROKEN) })
}

fn words(found: &Found) -> (&'static str, &str) {
    match found {
        Found::Good(what) => ("good", what),
        Found::Bad(what) => ("BAD", what),
        Found::Untried(what) => ("untried", what),
    }
}
