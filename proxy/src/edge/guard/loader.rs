//! Loading the object, filling its maps, and reading them back.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues, RingBuf};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use portcullis_ebpf::{
    ABI_VERSION, Address, FLOW_LEN, Header, Reason, Ring, Tally, flow, flow_key, map, program, target_key,
};

use super::host::address;
use super::pins::{Hook, Pins};
use super::policy::{Policy, Prefix};
use crate::edge::sys::bpf;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-ebpf.o"));

const POLICY_MAPS: [&str; 5] = [map::POLICY, map::PORTS, map::TARGETS, map::LOCAL, map::ALLOWED];
/// The pins keep them in this order; one that has the last has them all.
const PROGRAMS: [&str; 5] = [program::XDP, program::INGRESS, program::FLOWS, program::CONNECT4, program::CONNECT6];

type AddressKey = [u8; Address::LEN];
type TargetKey = [u8; Address::LEN + 2];

/// Refuses when this program was built without the eBPF object.
pub(super) fn require_object() -> anyhow::Result<()> {
    if OBJECT.is_empty() {
        bail!("this portcullis was built without the eBPF object: run `cargo xtask build-ebpf` and build it again");
    }
    Ok(())
}

/// One generation of maps and programs, in the kernel and pinned, but not by itself attached.
#[derive(Debug)]
pub(super) struct Generation<'a> {
    pins: &'a Pins,
    number: u64,
}

impl<'a> Generation<'a> {
    /// One that is there.
    pub(super) fn existing(pins: &'a Pins, number: u64) -> Self {
        Self { pins, number }
    }

    /// Loads the programs over maps that hold `policy`, and pins both.
    pub(super) fn load(pins: &'a Pins, policy: &Policy) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_pin_path(map::VOUCHED, pins.vouched())
            .map_pin_path(map::COUNTERS, pins.counters())
            .map_pin_path(map::EVENTS, pins.events())
            .map_pin_path(map::FLOWS, pins.flows())
            .load(OBJECT)
            .map_err(|error| anyhow!("{}: Linux 6.1 or later is needed", one_line(&error)))
            .context("cannot create the guard's maps")?;
        fill(&mut ebpf, policy).context("cannot fill the guard's maps")?;
        for name in PROGRAMS {
            load(&mut ebpf, name)?;
        }
        let new = Self { pins, number: policy.header.generation };
        new.pin(&ebpf).context("cannot pin the guard")?;
        Ok(new)
    }

    /// The program for a hook.
    pub(super) fn program(&self, hook: Hook) -> io::Result<OwnedFd> {
        bpf::open(&self.pins.generation(self.number).join(hook.program()))
    }

    fn pin(&self, ebpf: &Ebpf) -> anyhow::Result<()> {
        let dir = self.pins.generation(self.number);
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for name in POLICY_MAPS {
            let map = ebpf.map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
            map.pin(dir.join(name.to_lowercase()))?;
        }
        for name in PROGRAMS {
            let program = ebpf.program(name).with_context(|| format!("the eBPF object has no program {name}"))?;
            bpf::pin(program.fd()?.as_fd(), &dir.join(name))?;
        }
        Ok(())
    }
}

fn load(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let found = ebpf.program_mut(name).with_context(|| format!("the eBPF object has no program {name}"))?;
    let result = match found {
        Program::Xdp(xdp) => xdp.load(),
        Program::CgroupSockAddr(connect) => connect.load(),
        Program::CgroupSkb(ingress) => ingress.load(),
        Program::SockOps(flows) => flows.load(),
        _ => bail!("{name} is not of a type that the guard loads"),
    };
    result.map_err(|error| anyhow!("the kernel refuses the program {name}: {}", refusal(&error)))
}

/// The verifier writes pages; its last words are the reason.
fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let figures = ["processed", "stack depth", "verification time"];
            let reason =
                log.lines().rev().find(|line| !line.is_empty() && !figures.iter().any(|f| line.starts_with(f)));
            format!("{io_error}: {}", reason.unwrap_or("Linux 6.1 or later is needed"))
        }
        other => one_line(other),
    }
}

fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

fn fill(ebpf: &mut Ebpf, policy: &Policy) -> anyhow::Result<()> {
    Array::<_, [u8; Header::LEN]>::try_from(map_mut(ebpf, map::POLICY)?)?.set(0, policy.header.to_bytes(), 0)?;
    let mut counters = PerCpuHashMap::<_, [u8; Tally::LEN], u64>::try_from(map_mut(ebpf, map::COUNTERS)?)?;
    for tally in tallies() {
        counters.get(&tally.to_bytes(), 0).map(drop).or_else(|_| {
            let zeros = PerCpuValues::try_from(vec![0; aya::util::nr_cpus().map_err(|(_, error)| error)?])?;
            counters.insert(tally.to_bytes(), zeros, 0).map_err(anyhow::Error::from)
        })?;
    }
    let mut ports = HashMap::<_, [u8; 2], u8>::try_from(map_mut(ebpf, map::PORTS)?)?;
    for (port, flags) in policy.port_entries() {
        ports.insert(port, flags, 0)?;
    }
    let mut targets = HashMap::<_, TargetKey, u8>::try_from(map_mut(ebpf, map::TARGETS)?)?;
    for (key, kind) in policy.target_entries() {
        targets.insert(key, kind, 0)?;
    }
    for (name, prefixes) in [(map::LOCAL, &policy.local), (map::ALLOWED, &policy.allowed)] {
        let mut trie = LpmTrie::<_, AddressKey, u8>::try_from(map_mut(ebpf, name)?)?;
        for prefix in prefixes {
            trie.insert(&Key::new(prefix.bits, prefix.address.0), prefix.kind, 0)?;
        }
    }
    Ok(())
}

/// What is counted in any case, by interface 0.
fn tallies() -> impl Iterator<Item = Tally> {
    let counted = |ring: Ring| Reason::ALL.into_iter().filter(move |reason| reason.belongs_to(ring));
    Ring::ALL.into_iter().flat_map(move |ring| counted(ring).map(move |reason| Tally { ring, reason, interface: 0 }))
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Map> {
    ebpf.map_mut(name).with_context(|| format!("the eBPF object has no map {name}"))
}

/// Reads the header of a generation.
pub(super) fn header(pins: &Pins, generation: u64) -> io::Result<Header> {
    let map = pinned(pins, generation, map::POLICY)?;
    let policy = Array::<_, [u8; Header::LEN]>::try_from(map).map_err(io::Error::other)?;
    let bytes = policy.get(&0, 0).map_err(io::Error::other)?;
    Ok(Header::from_bytes(&bytes))
}

/// Reads a whole generation back.
///
/// # Errors
/// When it cannot be read, or was written by a version that lays its maps out otherwise.
pub(super) fn policy(pins: &Pins, generation: u64) -> anyhow::Result<Policy> {
    let header = header(pins, generation).context("cannot read the guard's policy")?;
    if header.abi != ABI_VERSION {
        bail!(
            "the guard in {} speaks ABI {}, this portcullis {ABI_VERSION}: `portcullis guard detach` it first",
            pins.dir().display(),
            header.abi
        );
    }
    let mut ports = BTreeMap::new();
    let entries = HashMap::<_, [u8; 2], u8>::try_from(pinned(pins, generation, map::PORTS)?)?;
    for entry in entries.iter() {
        let (port, flags) = entry?;
        ports.insert(u16::from_be_bytes(port), flags);
    }
    ports.remove(&u16::from_be_bytes(portcullis_ebpf::port::ANY));

    let mut targets = Vec::new();
    let entries = HashMap::<_, TargetKey, u8>::try_from(pinned(pins, generation, map::TARGETS)?)?;
    for entry in entries.iter() {
        let (key, kind) = entry?;
        let (octets, port) = key.split_last_chunk::<2>().context("a key without a port")?;
        let address = Address(*octets.first_chunk().context("a key without an address")?);
        if key != target_key(&address, portcullis_ebpf::port::ANY) {
            targets.push((address, u16::from_be_bytes(*port), kind));
        }
    }
    targets.sort_by_key(|(address, port, _)| (address.0, *port));
    let local = prefixes(pins, generation, map::LOCAL)?;
    let allowed = prefixes(pins, generation, map::ALLOWED)?;
    Ok(Policy { header, ports, targets, local, allowed })
}

fn prefixes(pins: &Pins, generation: u64, name: &str) -> anyhow::Result<Vec<Prefix>> {
    let trie = LpmTrie::<_, AddressKey, u8>::try_from(pinned(pins, generation, name)?)?;
    let read = |entry: Result<(Key<AddressKey>, u8), MapError>| {
        let (key, kind) = entry?;
        Ok(Prefix { address: Address(key.data()), bits: key.prefix_len(), kind })
    };
    trie.iter().map(read).collect()
}

/// Opens the counters.
pub(super) fn counter_map(pins: &Pins) -> anyhow::Result<PerCpuHashMap<MapData, [u8; Tally::LEN], u64>> {
    let map = Map::from_map_data(MapData::from_fd(bpf::open(&pins.counters())?)?)?;
    Ok(PerCpuHashMap::try_from(map)?)
}

/// Reads the counters, summed over the processors; each ring and reason is there at least with interface 0.
pub(super) fn counters(pins: &Pins) -> anyhow::Result<Vec<(Tally, u64)>> {
    let counters = counter_map(pins)?;
    let mut found = Vec::new();
    for entry in counters.iter() {
        let (key, values) = entry?;
        let tally = Tally::from_bytes(key).context("a counter of another version")?;
        found.push((tally, values.iter().sum()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Opens the events that no other reader has taken yet; an item is read by [`portcullis_ebpf::Event::from_bytes`].
pub(super) fn events(pins: &Pins) -> anyhow::Result<RingBuf<MapData>> {
    let map = Map::from_map_data(MapData::from_fd(bpf::open(&pins.events())?)?)?;
    Ok(RingBuf::try_from(map)?)
}

/// The connections of vouched sockets.
pub(super) struct Flows(HashMap<MapData, [u8; FLOW_LEN], u8>);

impl Flows {
    /// Opens the map of the guard in `pins`.
    pub(super) fn open(pins: &Pins) -> io::Result<Self> {
        let map = MapData::from_fd(bpf::open(&pins.flows())?).and_then(Map::from_map_data).map_err(io::Error::other)?;
        HashMap::try_from(map).map(Self).map_err(io::Error::other)
    }

    /// Whether one end of this connection is a vouched socket.
    pub(super) fn has(&self, here: SocketAddr, there: SocketAddr) -> bool {
        let end = |end: SocketAddr| (address(end.ip().to_canonical()), end.port().to_be_bytes());
        let (here, there) = (end(here), end(there));
        [(here, there), (there, here)].iter().any(|(from, to)| {
            self.0.get(&flow_key(&from.0, from.1, &to.0, to.1), 0).is_ok_and(|state| state == flow::OPEN)
        })
    }
}

/// Writes the header of a generation anew, which switches its programs at once.
pub(super) fn set_header(pins: &Pins, header: &Header) -> io::Result<()> {
    let map = pinned(pins, header.generation, map::POLICY)?;
    let mut policy = Array::<_, [u8; Header::LEN]>::try_from(map).map_err(io::Error::other)?;
    policy.set(0, header.to_bytes(), 0).map_err(io::Error::other)
}

/// Makes the local addresses of a generation those of `now`, one by one: each packet finds either the old or the new.
pub(super) fn set_local(pins: &Pins, generation: u64, before: &[Prefix], now: &[Prefix]) -> anyhow::Result<()> {
    let mut trie = LpmTrie::<_, AddressKey, u8>::try_from(pinned(pins, generation, map::LOCAL)?)?;
    for prefix in now.iter().filter(|prefix| !before.contains(prefix)) {
        trie.insert(&Key::new(prefix.bits, prefix.address.0), prefix.kind, 0)?;
    }
    let stays = |gone: &Prefix| now.iter().any(|prefix| (prefix.address, prefix.bits) == (gone.address, gone.bits));
    for prefix in before.iter().filter(|prefix| !stays(prefix)) {
        trie.remove(&Key::new(prefix.bits, prefix.address.0))?;
    }
    Ok(())
}

fn pinned(pins: &Pins, generation: u64, name: &str) -> io::Result<Map> {
    let map = bpf::open(&pins.generation(generation).join(name.to_lowercase()))?;
    MapData::from_fd(map).and_then(Map::from_map_data).map_err(io::Error::other)
}
