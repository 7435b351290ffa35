//! The judge: what may pass, as pure functions over a packet or a destination and the policy's tables.
//!
//! The same code runs in the kernel and in the tests. It is written for the verifier too: every read is checked
//! against the end of the packet, every loop has a constant bound, no offset can grow past a few kilobytes.

use crate::{Address, FLOW_LEN, Reason, flow, flow_key, local, port, target_key};

#[cfg(all(test, not(target_arch = "bpf")))]
mod tests;

/// VLAN tags that are looked through. Linux strips any number of tags with VID 0, hence more than these are dropped.
pub const MAX_TAGS: usize = 4;
/// IPv6 extension headers that are looked through; more are dropped.
pub const MAX_EXTENSIONS: usize = 8;

const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const FLAGS_AT: usize = 13;
const SYN: u8 = 2;
const ACK: u8 = 16;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// A packet that can be read at any offset.
pub trait Packet {
    /// `N` bytes at `offset`, or `None` when the packet ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

#[cfg(not(target_arch = "bpf"))]
impl Packet for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// The tables of the policy; a missing entry reads as 0.
pub trait Tables {
    /// [`port`] flags of a port.
    fn port(&self, port: &[u8; 2]) -> u8;
    /// [`local`] kind of an address of the guarded network namespace.
    fn local(&self, address: &Address) -> u8;
    /// [`local`] kind of an address and port that is protected by itself.
    fn target(&self, key: &[u8; Address::LEN + 2]) -> u8;
    /// Whether a source may open protected ports.
    fn allowed(&self, source: &Address) -> bool;
    /// [`flow`] state of a connection, by its [`flow_key`].
    fn flow(&self, key: &[u8; FLOW_LEN]) -> u8;
}

/// Both ends of a segment, as far as they could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// The source's port, in network order.
    pub source_port: [u8; 2],
    /// The destination's port, in network order.
    pub port: [u8; 2],
}

impl Ends {
    /// Nothing could be read.
    pub const UNKNOWN: Self = Self::between(Address::v4([0; 4]), Address::v4([0; 4]));

    const fn between(source: Address, destination: Address) -> Self {
        Self { source, destination, source_port: [0; 2], port: [0; 2] }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// None of the guard's business.
    Untouched,
    /// For a protected port, from somebody who may.
    Passed(Reason),
    /// To be dropped, why, and what it was.
    Refused(Reason, Ends),
}

/// Judges a frame that arrived on an interface of the guarded network namespace.
#[inline(always)]
pub fn packet<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T) -> Outcome {
    let (ethertype, at) = match untag(packet) {
        Ok(Some(found)) => found,
        Ok(None) => return Outcome::Untouched,
        Err(why) => return Outcome::Refused(why, Ends::UNKNOWN),
    };
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet, at, tables, arrived),
        ETHERTYPE_IPV6 => ipv6(packet, at, tables, arrived),
        _ => Outcome::Untouched,
    }
}

/// Judges an IP packet on its way to a socket, other than over the loopback interface: there the connect ring has
/// seen who it comes from. `local_ring` is whether it stands.
#[inline(always)]
pub fn delivered<P: Packet + ?Sized, T: Tables>(packet: &P, tables: &T, local_ring: bool) -> Outcome {
    // The whole of the shortest header: the verifier does not follow a look at a first byte alone.
    let Some(first) = packet.read::<20>(0) else {
        return Outcome::Refused(Reason::Truncated, Ends::UNKNOWN);
    };
    let judge = move |tables: &T, ends: &Ends, flags: u8| delivered_segment(tables, ends, flags, local_ring);
    match first[0] >> 4 {
        4 => ipv4(packet, 0, tables, judge),
        6 => ipv6(packet, 0, tables, judge),
        _ => Outcome::Untouched,
    }
}

/// Whether a connect(2) to this destination needs a vouched socket; `inside` when the socket is of the guarded
/// network namespace.
#[inline(always)]
pub fn protects<T: Tables>(tables: &T, destination: &Address, port: [u8; 2], inside: bool) -> bool {
    let flags = tables.port(&port);
    // Nobody can listen on port 0, whose place in the table stands for "some port".
    if flags == 0 || port == port::ANY {
        return false;
    }
    if destination.is_unspecified() {
        return inside && flags & port::UNSPECIFIED != 0;
    }
    if flags & port::WHOLE != 0 && reaches(tables.local(destination), inside) {
        return true;
    }
    flags & port::SINGLE != 0 && reaches(tables.target(&target_key(destination, port)), inside)
}

#[inline(always)]
fn reaches(kind: u8, inside: bool) -> bool {
    kind == local::OWN || (kind == local::LOOPBACK && inside)
}

/// Whether some port of this address is protected: what decides when the port itself cannot be read.
#[inline(always)]
fn covers<T: Tables>(tables: &T, destination: &Address) -> bool {
    let flags = tables.port(&port::ANY);
    (flags & port::WHOLE != 0 && tables.local(destination) != 0)
        || (flags & port::SINGLE != 0 && tables.target(&target_key(destination, port::ANY)) != 0)
}

/// Looks through VLAN tags: the EtherType behind them and where its payload begins.
#[inline(always)]
fn untag<P: Packet + ?Sized>(packet: &P) -> Result<Option<(u16, usize)>, Reason> {
    let mut at = ETHERNET_LEN;
    let mut index = 0;
    while index <= MAX_TAGS {
        let Some(bytes) = packet.read::<2>(at - 2) else {
            return Ok(None);
        };
        let ethertype = u16::from_be_bytes(bytes);
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            return Ok(Some((ethertype, at)));
        }
        at += TAG_LEN;
        index += 1;
    }
    Err(Reason::Tags)
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    at: usize,
    tables: &T,
    judge: impl Fn(&T, &Ends, u8) -> Outcome,
) -> Outcome {
    let Some(header) = packet.read::<20>(at) else {
        return Outcome::Refused(Reason::Truncated, Ends::UNKNOWN);
    };
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[9] != TCP || fragment_offset != 0 {
        return Outcome::Untouched;
    }
    let source = Address::v4([header[12], header[13], header[14], header[15]]);
    let destination = Address::v4([header[16], header[17], header[18], header[19]]);
    let payload = at + usize::from(header[0] & 0x0f) * 4;
    segment(packet, payload, Ends::between(source, destination), tables, judge)
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    at: usize,
    tables: &T,
    judge: impl Fn(&T, &Ends, u8) -> Outcome,
) -> Outcome {
    // Next header, hop limit and both addresses, by one look: of two, LLVM drops the check of the first where the second
    // implies it, and Linux before 6.3 then finds addresses that nobody has read.
    let Some(header) = packet.read::<34>(at + 6) else {
        return Outcome::Refused(Reason::Truncated, Ends::UNKNOWN);
    };
    let source = core::array::from_fn(|i| header[2 + i]);
    let destination = core::array::from_fn(|i| header[18 + i]);
    let ends = Ends::between(Address::v6(source), Address::v6(destination));
    match upper_layer(packet, header[0], at + IPV6_LEN) {
        Ok(Some(payload)) => segment(packet, payload, ends, tables, judge),
        Ok(None) => Outcome::Untouched,
        Err(why) if covers(tables, &ends.destination) => Outcome::Refused(why, ends),
        Err(_) => Outcome::Untouched,
    }
}

/// Walks the extension headers: where the TCP header begins, or `None` when what comes is not TCP or a later fragment.
#[inline(always)]
fn upper_layer<P: Packet + ?Sized>(packet: &P, first: u8, start: usize) -> Result<Option<usize>, Reason> {
    let mut next = first;
    let mut at = start;
    let mut index = 0;
    while index <= MAX_EXTENSIONS {
        match next {
            TCP => return Ok(Some(at)),
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT | AUTHENTICATION => {}
            _ => return Ok(None),
        }
        let Some(header) = packet.read::<4>(at) else {
            return Err(Reason::Truncated);
        };
        at += match next {
            FRAGMENT => {
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return Ok(None);
                }
                8
            }
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
        index += 1;
    }
    Err(Reason::Extensions)
}

#[inline(always)]
fn segment<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    at: usize,
    ends: Ends,
    tables: &T,
    judge: impl Fn(&T, &Ends, u8) -> Outcome,
) -> Outcome {
    let Some(header) = packet.read::<TCP_LEN>(at) else {
        let covered = covers(tables, &ends.destination);
        return if covered { Outcome::Refused(Reason::Truncated, ends) } else { Outcome::Untouched };
    };
    let ends = Ends { source_port: [header[0], header[1]], port: [header[2], header[3]], ..ends };
    if !protects(tables, &ends.destination, ends.port, true) {
        return Outcome::Untouched;
    }
    judge(tables, &ends, header[FLAGS_AT])
}

/// From outside, only the source can tell who it is.
#[inline(always)]
fn arrived<T: Tables>(tables: &T, ends: &Ends, _flags: u8) -> Outcome {
    if tables.allowed(&ends.source) {
        Outcome::Passed(Reason::Admitted)
    } else {
        Outcome::Refused(Reason::Stranger, *ends)
    }
}

/// At the socket, it may also come from a vouched socket of this host in another network namespace, or to one from
/// here (the gate and a container, whichever way round).
#[inline(always)]
fn delivered_segment<T: Tables>(tables: &T, ends: &Ends, flags: u8, local_ring: bool) -> Outcome {
    if tables.allowed(&ends.source) {
        return Outcome::Passed(Reason::Admitted);
    }
    if local_ring {
        let opens = flags & (SYN | ACK) == SYN;
        match tables.flow(&flow_key(&ends.source, ends.source_port, &ends.destination, ends.port)) {
            flow::OPEN => return Outcome::Passed(Reason::Vouched),
            flow::CLOSED if !opens => return Outcome::Passed(Reason::Vouched),
            _ => {}
        }
    } else if tables.local(&ends.source) == local::OWN && tables.local(&ends.destination) == 0 {
        // Nobody asked to keep this host's processes out. An own source that comes in to an own address is forged.
        return Outcome::Passed(Reason::Admitted);
    }
    Outcome::Refused(Reason::Stranger, *ends)
}
