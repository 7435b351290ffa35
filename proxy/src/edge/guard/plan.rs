//! `guard plan`: what `enforce` would do here, without doing any of it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use portcullis_ebpf::Mode;
use serde_json::json;

use super::cut;
use super::enforce::{Installed, Rings, stranger};
use super::features;
use super::host::{self, Host, Interface};
use super::loader;
use super::options::{EnforceArgs, PlanFlags, XdpMode};
use super::pins::Pins;
use super::policy::Policy;
use super::probe::doors;
use super::rings::require_free;
use super::status::BROKEN;
use super::table::{Table, list};

/// What would be done, and what stands in the way.
#[derive(Default)]
struct Plan {
    rows: Vec<(&'static str, String, String)>,
    policy: Option<Policy>,
    /// Connections that are open now and would be cut; `None` when they cannot be listed.
    cut: Option<Vec<(SocketAddr, SocketAddr)>>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

/// `guard plan`.
pub(super) fn plan(args: &PlanFlags) -> anyhow::Result<ExitCode> {
    let wanted = args.policy.require()?;
    let plan = Plan::make(&wanted)?;
    if args.json {
        writeln!(io::stdout().lock(), "{}", plan.json())?;
    } else {
        plan.print()?;
    }
    Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(BROKEN) })
}

impl Plan {
    fn make(args: &EnforceArgs) -> anyhow::Result<Self> {
        let mut plan = Self::default();
        plan.note(host::require_privileges("enforce"));
        plan.note(loader::require_object());
        let here = Host::read()?;
        let Some(rings) = plan.note(Rings::resolve(args, &here)) else { return Ok(plan) };
        let Some(policy) = plan.note(Policy::resolve(args, &here, rings.header(&here, 1, Mode::Enforce, 0))) else {
            return Ok(plan);
        };
        plan.rings(args, &rings, &policy);
        let pins = Pins::at(&args.pin.dir);
        let links = if pins.dir().exists() { plan.note(pins.links().map_err(Into::into)) } else { Some(Vec::new()) };
        let mut before = None;
        if let Some(links) = &links {
            plan.note(require_free(&rings.interfaces, links, args.mode));
            if !links.is_empty() {
                before = plan.note(Installed::read(&pins, links, &here)).flatten();
            }
        }
        let open = cut::open(|here, there| stranger(&policy, before.as_ref(), here, there));
        plan.cut = open.map_err(|error| plan.warnings.push(format!("open connections cannot be listed: {error}"))).ok();
        for port in policy.ports.keys().filter(|port| host::is_ephemeral(**port)) {
            plan.warnings.push(format!(
                "port {port} may also be given to outgoing connections, which would then fail: \
                 add it to net.ipv4.ip_local_reserved_ports"
            ));
        }
        plan.policy = Some(policy);
        Ok(plan)
    }

    /// Keeps the value, or writes down the problem.
    fn note<T>(&mut self, result: anyhow::Result<T>) -> Option<T> {
        result.map_err(|error| self.problems.push(format!("{error:#}"))).ok()
    }

    fn rings(&mut self, args: &EnforceArgs, rings: &Rings, policy: &Policy) {
        let drivers = features::native().unwrap_or_default();
        for interface in &rings.interfaces {
            let mode = match (args.mode, drivers.get(&interface.index)) {
                (XdpMode::Generic, _) | (XdpMode::Auto, Some(false)) => "generic",
                (XdpMode::Native, Some(false)) => {
                    self.problems.push(format!(
                        "the driver of {} takes no XDP program: use --mode generic or auto",
                        interface.name
                    ));
                    "native"
                }
                (XdpMode::Native, _) | (XdpMode::Auto, Some(true)) => "native",
                (XdpMode::Auto, None) => "native where the driver takes it, else generic",
            };
            let now = describe(interface);
            self.rows.push(("xdp", interface.name.clone(), format!("{mode}{now}")));
        }
        if policy.header.connect_ring {
            self.rows.push(("connect", "cgroup root".to_owned(), "every process of this host".to_owned()));
        }
        if policy.header.ingress_ring {
            self.rows.push(("ingress", "cgroup root".to_owned(), "every socket of this host".to_owned()));
        }
    }

    fn drops(&self) -> Vec<String> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let from = if policy.allowed.is_empty() { "anybody outside" } else { "anybody outside but the allowed" };
        let mut drops: Vec<String> = doors(policy).iter().map(|door| format!("TCP from {from} to {door}")).collect();
        if policy.header.connect_ring {
            let what = policy.protected().join(", ");
            drops.push(format!("connect(2) of this host's processes to {what}, but for the gate's own sockets"));
        }
        drops
    }

    fn allowed(&self) -> Vec<String> {
        self.policy.iter().flat_map(|policy| &policy.allowed).map(|prefix| prefix.to_text()).collect()
    }

    fn protected(&self) -> Vec<String> {
        self.policy.as_ref().map(Policy::protected).unwrap_or_default()
    }

    fn json(&self) -> serde_json::Value {
        let rings: Vec<_> =
            self.rows.iter().map(|(ring, place, mode)| json!({"ring": ring, "place": place, "mode": mode})).collect();
        let cut = self.cut.as_ref().map(|open| {
            open.iter()
                .map(|(here, there)| json!({"here": here.to_string(), "there": there.to_string()}))
                .collect::<Vec<_>>()
        });
        json!({
            "rings": rings, "protected": self.protected(), "allowed": self.allowed(), "drops": self.drops(),
            "cut": cut, "warnings": self.warnings, "problems": self.problems,
        })
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "protected  {}", list(&self.protected(), "nothing"))?;
        writeln!(out, "allowed    {}\n", list(&self.allowed(), "nobody from outside"))?;
        let mut rings = Table::new(&["ring", "place", "mode"], &[]);
        for (ring, place, mode) in &self.rows {
            rings.row([ring, place, mode]);
        }
        if !rings.is_empty() {
            writeln!(out, "{rings}")?;
        }
        let mut drops = Table::new(&["would be refused"], &[]);
        self.drops().iter().for_each(|line| drops.row([line]));
        if !drops.is_empty() {
            writeln!(out, "{drops}")?;
        }
        let mut cut = Table::new(&["would be cut: here", "there"], &[]);
        self.cut.iter().flatten().for_each(|(here, there)| cut.row([here, there]));
        if !cut.is_empty() {
            writeln!(out, "{cut}")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(out, "warning    {warning}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(out, "PROBLEM    {problem}"))?;
        writeln!(out, "nothing was changed")
    }
}

fn describe(interface: &Interface) -> &'static str {
    match interface.xdp {
        Some(_) => " (has a program now)",
        None => "",
    }
}
