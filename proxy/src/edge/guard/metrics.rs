//! What `serve` tells of the guard on its admin listener. Opened before privileges are dropped; from then on it holds
//! descriptors of two maps, the counters and the guard's record, and no link and no program.

use std::path::Path;

use aya::maps::{MapData, PerCpuHashMap};
use portcullis_ebpf::{Ring, Tally};

use super::host::interfaces;
use super::loader;
use super::netlink::Netlink;
use super::options::DEFAULT_PIN;
use super::pins::Pins;
use super::standing::{self, Standing};
use super::status::Report;
use super::store::Store;
use crate::config::Guard;

/// The maps of a guard that this gate has found.
pub struct Metrics {
    counters: PerCpuHashMap<MapData, [u8; Tally::LEN], u64>,
    standing: Store<{ standing::LEN }>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A metric: name, type, help, and its samples as labels and value.
pub type Family = (&'static str, &'static str, &'static str, Vec<(String, u64)>);

/// Says what the guard does as the gate starts, and opens its metrics.
///
/// # Errors
/// With `require`, when no guard enforces, whole.
pub fn meet(guard: &Guard) -> anyhow::Result<(String, Option<Metrics>)> {
    let pins = Pins::at(guard.pin.as_deref().unwrap_or(Path::new(DEFAULT_PIN)));
    let show = pins.dir().display();
    let report = Report::read(&pins);
    let said = match &report {
        Ok(Some(report)) => {
            let header = &report.policy.header;
            format!("guard {} (policy {}): {}", report.state(), header.generation, report.policy.protected().join(", "))
        }
        Ok(None) => format!("no guard is pinned in {show}"),
        Err(error) => format!("the guard in {show} cannot be read: {error:#}"),
    };
    let holds = matches!(&report, Ok(Some(report)) if report.state() == "enforced");
    if guard.require && !holds {
        anyhow::bail!("[guard] require: {said}: run `portcullis guard enforce`, or see `portcullis guard status`");
    }
    let metrics = matches!(report, Ok(Some(_))).then(|| Metrics::open(&pins)).transpose()?.flatten();
    Ok((said, metrics))
}

impl Metrics {
    fn open(pins: &Pins) -> anyhow::Result<Option<Self>> {
        let Some(standing) = Store::open(&pins.standing())? else { return Ok(None) };
        Ok(Some(Self { counters: loader::counter_map(pins)?, standing }))
    }

    /// What the guard does now: `enforce`, `audit` or `absent`.
    pub fn mode(&self) -> &'static str {
        Standing::read(&self.standing).unwrap_or_default().mode()
    }

    /// All that it has refused.
    pub fn refused(&self) -> u64 {
        let counts = self.counters.iter().flatten().filter_map(|(key, values)| {
            let refused = Tally::from_bytes(key).is_some_and(|tally| !tally.reason.passes());
            refused.then(|| values.iter().sum::<u64>())
        });
        counts.sum()
    }

    /// The families as they are now.
    pub fn families(&self) -> Vec<Family> {
        let names = Netlink::open(None).and_then(|mut netlink| interfaces(&mut netlink)).unwrap_or_default();
        let name = |index: u32| {
            let found = names.iter().find(|interface| interface.index == index);
            found.map_or_else(|| index.to_string(), |interface| interface.name.clone())
        };
        let packets = self.counters.iter().flatten().filter_map(|(key, values)| {
            let Tally { ring, reason, interface } = Tally::from_bytes(key)?;
            let interface = if ring == Ring::Connect || interface == 0 { String::new() } else { name(interface) };
            let verdict = if reason.passes() { "passed" } else { "refused" };
            let labels = format!(
                "{{ring=\"{}\",interface=\"{interface}\",reason=\"{}\",verdict=\"{verdict}\"}}",
                ring.name(),
                reason.name()
            );
            Some((labels, values.iter().sum()))
        });
        let mut packets: Vec<_> = packets.collect();
        packets.sort();
        let standing = Standing::read(&self.standing).unwrap_or_default();
        let mode = ["absent", "audit", "enforce"]
            .map(|mode| (format!("{{mode=\"{mode}\"}}"), u64::from(standing.mode() == mode)))
            .to_vec();
        let mut families = vec![
            (
                "portcullis_guard_packets_total",
                "counter",
                "What the guard has judged: segments, and connect(2) calls of this host. In an audit, \
                 \"refused\" counts what would have been.",
                packets,
            ),
            ("portcullis_guard_mode", "gauge", "1 for what the guard does now.", mode),
        ];
        if let Some((at, proven)) = standing.verified() {
            families.push((
                "portcullis_guard_last_verify_timestamp_seconds",
                "gauge",
                "When `guard verify` last ran.",
                vec![(String::new(), at)],
            ));
            families.push((
                "portcullis_guard_last_verify_success",
                "gauge",
                "Whether it found every way in shut and the gate's own open.",
                vec![(String::new(), u64::from(proven))],
            ));
        }
        families
    }
}
