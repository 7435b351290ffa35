//! The policy as the host sees it: what the maps are filled with, and what is read back from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use portcullis_ebpf::decide::{Tables, protects};
use portcullis_ebpf::{Address, FLOW_LEN, Header, capacity, local, port, target_key};

use super::host::{Host, Interface, address};
use super::options::EnforceArgs;

/// A block of addresses with what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) address: Address,
    /// Fixed bits, those of the family octet included.
    pub(super) bits: u32,
    pub(super) kind: u8,
}

impl Prefix {
    /// A block of `bits` leading bits of `ip`.
    pub(super) fn new(ip: IpAddr, bits: u8, kind: u8) -> Self {
        Self { address: address(ip), bits: Address::FAMILY_BITS + u32::from(bits), kind }
    }

    fn covers(&self, other: &Address) -> bool {
        let (whole, rest) = ((self.bits / 8) as usize, self.bits % 8);
        if self.address.0[..whole] != other.0[..whole] {
            return false;
        }
        let mask = !(0xffu8 >> rest);
        rest == 0 || (self.address.0[whole] ^ other.0[whole]) & mask == 0
    }

    /// The block in the usual notation.
    pub(super) fn to_text(self) -> String {
        format!("{}/{}", ip(&self.address), self.bits.saturating_sub(Address::FAMILY_BITS))
    }
}

/// An address of a map in the usual form.
pub(super) fn ip(address: &Address) -> IpAddr {
    match address.octets() {
        [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
        octets => octets.first_chunk::<16>().map_or(IpAddr::from([0; 16]), |octets| IpAddr::from(*octets)),
    }
}

/// Everything that the maps of one generation say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) header: Header,
    /// Port → flags, without the entry for [`port::ANY`].
    pub(super) ports: BTreeMap<u16, u8>,
    pub(super) targets: Vec<(Address, u16, u8)>,
    pub(super) local: Vec<Prefix>,
    pub(super) allowed: Vec<Prefix>,
}

impl Policy {
    /// What the options ask for on this host.
    pub(super) fn resolve(args: &EnforceArgs, host: &Host, header: Header) -> anyhow::Result<Self> {
        let mut policy = Self {
            header,
            ports: BTreeMap::new(),
            targets: Vec::new(),
            local: host.local.clone(),
            allowed: args.allow.iter().map(|cidr| Prefix::new(cidr.address, cidr.bits, 1)).collect(),
        };
        for port in &args.ports {
            policy.flag(*port, port::WHOLE | port::UNSPECIFIED);
        }
        for target in &args.protect {
            policy.protect(*target);
        }
        policy.fits()?;
        Ok(policy)
    }

    fn flag(&mut self, port: u16, flags: u8) {
        *self.ports.entry(port).or_default() |= flags;
    }

    fn protect(&mut self, target: SocketAddr) {
        let address = address(target.ip());
        let kind = if target.ip().is_loopback() { local::LOOPBACK } else { local::OWN };
        // A socket bound to a local address reaches that address by connecting to 0.0.0.0.
        let unspecified = if self.local(&address) == 0 { 0 } else { port::UNSPECIFIED };
        self.flag(target.port(), port::SINGLE | unspecified);
        self.targets.push((address, target.port(), kind));
    }

    /// Refuses what the maps cannot hold.
    pub(super) fn fits(&self) -> anyhow::Result<()> {
        for (what, len, capacity) in [
            ("ports", self.ports.len() + 1, capacity::PORTS),
            ("protected addresses", 2 * self.targets.len(), capacity::TARGETS),
            ("local addresses", self.local.len(), capacity::LOCAL),
            ("allowed blocks", self.allowed.len(), capacity::ALLOWED),
        ] {
            if len > capacity {
                bail!("{len} {what} are more than the {capacity} that fit into the guard's map");
            }
        }
        Ok(())
    }

    /// Whether another policy judges like this one, whatever its header says of mode and generation.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let sorted = |prefixes: &[Prefix]| {
            let mut keys: Vec<_> = prefixes.iter().map(|prefix| (prefix.address.0, prefix.bits, prefix.kind)).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        let targets = |policy: &Self| {
            let mut keys: Vec<_> =
                policy.targets.iter().map(|(address, port, kind)| (address.0, *port, *kind)).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        let (ours, theirs) = (&self.header, &other.header);
        (ours.connect_ring, ours.ingress_ring, ours.interfaces, ours.netns)
            == (theirs.connect_ring, theirs.ingress_ring, theirs.interfaces, theirs.netns)
            && self.ports == other.ports
            && targets(self) == targets(other)
            && sorted(&self.local) == sorted(&other.local)
            && sorted(&self.allowed) == sorted(&other.allowed)
    }

    /// The entries of the port map.
    pub(super) fn port_entries(&self) -> Vec<([u8; 2], u8)> {
        let any = self.ports.values().fold(0, |all, flags| all | flags);
        let ports = self.ports.iter().map(|(port, flags)| (port.to_be_bytes(), *flags));
        ports.chain([(port::ANY, any)]).collect()
    }

    /// The entries of the map of single addresses.
    pub(super) fn target_entries(&self) -> Vec<([u8; Address::LEN + 2], u8)> {
        let entries = |(address, number, kind): &(Address, u16, u8)| {
            [(target_key(address, number.to_be_bytes()), *kind), (target_key(address, port::ANY), *kind)]
        };
        self.targets.iter().flat_map(entries).collect()
    }

    /// Whether a socket of the guarded namespace with this end is on a protected port.
    pub(super) fn protects(&self, end: SocketAddr) -> bool {
        protects(self, &address(end.ip().to_canonical()), end.port().to_be_bytes(), true)
    }

    /// Whether `peer` is the address of a gate on another host.
    pub(super) fn lets_in(&self, peer: SocketAddr) -> bool {
        let address = address(peer.ip().to_canonical());
        self.allowed(&address) && self.local(&address) == 0
    }

    /// What is protected, for people.
    pub(super) fn protected(&self) -> Vec<String> {
        let whole = self.ports.iter().filter(|(_, flags)| *flags & port::WHOLE != 0);
        let whole = whole.map(|(port, _)| format!("port {port}"));
        let single = self.targets.iter().map(|(address, port, _)| SocketAddr::new(ip(address), *port).to_string());
        whole.chain(single).collect()
    }
}

impl Tables for Policy {
    fn port(&self, port: &[u8; 2]) -> u8 {
        self.ports.get(&u16::from_be_bytes(*port)).copied().unwrap_or(0)
    }

    fn local(&self, address: &Address) -> u8 {
        let covering = self.local.iter().filter(|prefix| prefix.covers(address));
        covering.max_by_key(|prefix| prefix.bits).map_or(0, |prefix| prefix.kind)
    }

    fn target(&self, key: &[u8; Address::LEN + 2]) -> u8 {
        let found = self.targets.iter().find(|(address, port, _)| target_key(address, port.to_be_bytes()) == *key);
        found.map_or(0, |(_, _, kind)| *kind)
    }

    fn flow(&self, _key: &[u8; FLOW_LEN]) -> u8 {
        0
    }

    fn allowed(&self, source: &Address) -> bool {
        self.allowed.iter().any(|prefix| prefix.covers(source))
    }
}

/// The interfaces that the options mean.
pub(super) fn interfaces(names: &[String], host: &Host) -> anyhow::Result<Vec<Interface>> {
    if names.is_empty() {
        let outside = |interface: &&Interface| {
            interface.ethernet
                && !interface.loopback
                && (interface.kind.is_none() || host.default_routes.contains(&interface.index))
        };
        let found: Vec<Interface> = host.interfaces.iter().filter(outside).cloned().collect();
        if found.is_empty() {
            bail!("no interface faces outside (hardware, or with a default route): name one with --interface");
        }
        return Ok(found);
    }
    let mut found: Vec<Interface> = Vec::new();
    for name in names {
        let named: Vec<&Interface> = if name == "all" {
            host.interfaces.iter().filter(|interface| interface.ethernet && !interface.loopback).collect()
        } else {
            vec![named(name, host)?]
        };
        for interface in named {
            if !found.contains(interface) {
                found.push(interface.clone());
            }
        }
    }
    Ok(found)
}

/// Those of the interfaces that the options mean which are there; a name alone may come and go.
pub(super) fn present(names: &[String], host: &Host) -> Vec<Interface> {
    if names.is_empty() {
        return interfaces(names, host).unwrap_or_default();
    }
    let mut found: Vec<Interface> = Vec::new();
    for name in names {
        for interface in interfaces(std::slice::from_ref(name), host).unwrap_or_default() {
            if !found.contains(&interface) {
                found.push(interface);
            }
        }
    }
    found
}

fn named<'a>(name: &str, host: &'a Host) -> anyhow::Result<&'a Interface> {
    let Some(interface) = host.interfaces.iter().find(|interface| interface.name == name) else {
        let names: Vec<&str> = host.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        bail!("there is no interface {name:?} here: there are {}", names.join(", "));
    };
    if interface.loopback {
        bail!("{name} is the loopback: the connect ring guards it, XDP cannot tell the gate from others there");
    }
    if !interface.ethernet {
        bail!("{name} carries no Ethernet frames: XDP cannot judge what comes in there");
    }
    Ok(interface)
}

#[cfg(test)]
mod tests {
    use portcullis_ebpf::{ABI_VERSION, Mode};

    use super::*;

    fn prefix(text: &str, kind: u8) -> Prefix {
        let cidr: crate::config::Cidr = text.parse().unwrap();
        Prefix::new(cidr.address, cidr.bits, kind)
    }

    fn policy() -> Policy {
        Policy {
            header: Header {
                abi: ABI_VERSION,
                mode: Mode::Enforce,
                connect_ring: true,
                ingress_ring: true,
                interfaces: 1,
                confirm_by: 0,
                netns: 1,
                generation: 1,
            },
            ports: BTreeMap::new(),
            targets: Vec::new(),
            local: vec![prefix("127.0.0.0/8", local::LOOPBACK), prefix("192.0.2.1", local::OWN)],
            allowed: vec![prefix("::/0", 1), prefix("10.0.0.0/9", 1)],
        }
    }

    #[test]
    fn a_block_covers_what_it_should_and_never_the_other_family() {
        let policy = policy();
        assert!(policy.allowed(&address("10.127.0.1".parse().unwrap())));
        assert!(!policy.allowed(&address("10.128.0.1".parse().unwrap())));
        assert!(policy.allowed(&address("2001:db8::1".parse().unwrap())));
        assert_eq!(policy.allowed[1].to_text(), "10.0.0.0/9");
    }

    #[test]
    fn both_kinds_of_protection_reach_what_they_name() {
        let mut policy = policy();
        policy.flag(5000, port::WHOLE | port::UNSPECIFIED);
        policy.protect("172.17.0.2:6000".parse().unwrap());
        for end in ["127.0.0.2:5000", "192.0.2.1:5000", "0.0.0.0:5000", "172.17.0.2:6000", "[::ffff:192.0.2.1]:5000"] {
            assert!(policy.protects(end.parse().unwrap()), "{end}");
        }
        for end in ["192.0.2.2:5000", "192.0.2.1:6000", "172.17.0.2:5000", "0.0.0.0:6000"] {
            assert!(!policy.protects(end.parse().unwrap()), "{end}");
        }
        assert_eq!(policy.protected(), ["port 5000", "172.17.0.2:6000"]);
    }

    #[test]
    fn a_local_single_address_is_reached_through_the_wildcard_too() {
        let mut policy = policy();
        policy.protect("192.0.2.1:6000".parse().unwrap());
        assert!(policy.protects("0.0.0.0:6000".parse().unwrap()));
        assert!(!policy.protects("127.0.0.1:6000".parse().unwrap()));
    }
}
