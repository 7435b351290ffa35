//! What the guard's eBPF programs and their loader must agree on: map names, keys, values, counters, events.
//!
//! Keys and values cross the kernel boundary as byte arrays, so that neither side depends on how the other lays out
//! a struct. [`ABI_VERSION`] is raised with every change of this file that a pinned map could outlive.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod decide;
mod tally;

use core::mem::size_of;

pub use tally::{EVENTS_A_SECOND, Event, Reason, Ring, Tally, Verdict};

/// Raised whenever a name, a key, a value or the meaning of one changes.
pub const ABI_VERSION: u32 = 2;

/// Names of the programs in the object.
pub mod program {
    /// Judges packets as they arrive on an interface.
    pub const XDP: &str = "guard_xdp";
    /// Judges connect(2) of an IPv4 socket.
    pub const CONNECT4: &str = "guard_connect4";
    /// Judges connect(2) of an IPv6 socket, v4-mapped destinations included.
    pub const CONNECT6: &str = "guard_connect6";
    /// Judges TCP segments as they reach a socket, however they came.
    pub const INGRESS: &str = "guard_ingress";
    /// Writes down which connections vouched sockets open, for the ingress ring of this same host.
    pub const FLOWS: &str = "guard_flows";
}

/// Names of the maps in the object.
pub mod map {
    /// Array of one [`Header`](super::Header): which policy this is.
    pub const POLICY: &str = "POLICY";
    /// Hash: port → [`port`](super::port) flags. Most traffic is let go after this one look.
    pub const PORTS: &str = "PORTS";
    /// Hash: address and port → [`local`](super::local) kind, for addresses that are protected one by one.
    pub const TARGETS: &str = "TARGETS";
    /// LPM trie: addresses of the guarded network namespace → [`local`](super::local) kind.
    pub const LOCAL: &str = "LOCAL";
    /// LPM trie: sources that may open protected ports from outside.
    pub const ALLOWED: &str = "ALLOWED";
    /// Per-CPU hash: [`Tally`](super::Tally) → how often.
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`Event`](super::Event): what was refused, or would have been.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array, one entry a ring: how many events this second has had.
    pub const RATES: &str = "RATES";
    /// LRU hash: connections that vouched sockets have opened → [`flow`](super::flow).
    pub const FLOWS: &str = "FLOWS";
    /// Socket storage: a socket with a value here may open protected addresses.
    pub const VOUCHED: &str = "VOUCHED";
}

/// Capacities of the maps.
pub mod capacity {
    /// Entries of [`PORTS`](super::map::PORTS).
    pub const PORTS: usize = 1024;
    /// Entries of [`TARGETS`](super::map::TARGETS).
    pub const TARGETS: usize = 4096;
    /// Entries of [`LOCAL`](super::map::LOCAL).
    pub const LOCAL: usize = 16_384;
    /// Entries of [`ALLOWED`](super::map::ALLOWED).
    pub const ALLOWED: usize = 16_384;
    /// Entries of [`COUNTERS`](super::map::COUNTERS); interfaces past it are counted as interface 0.
    pub const COUNTERS: usize = 4096;
    /// Bytes of [`EVENTS`](super::map::EVENTS).
    pub const EVENTS: usize = 64 * 1024;
    /// Entries of [`FLOWS`](super::map::FLOWS).
    pub const FLOWS: usize = 65_536;
}

/// What a connection in [`map::FLOWS`] is.
pub mod flow {
    /// Its socket is vouched for and lives.
    pub const OPEN: u8 = 1;
    /// Its socket is gone: its last segments may arrive, a new connection from the same port may not.
    pub const CLOSED: u8 = 2;
}

/// Flags of a port in [`map::PORTS`].
pub mod port {
    /// Protected on every address of the guarded network namespace.
    pub const WHOLE: u8 = 1;
    /// Protected on at least one address in [`map::TARGETS`](super::map::TARGETS).
    pub const SINGLE: u8 = 2;
    /// A connect(2) to 0.0.0.0 or `::` from inside the guarded namespace may end on a protected address.
    pub const UNSPECIFIED: u8 = 4;

    /// Key whose flags are the union of all: tells whether an address alone can matter.
    pub const ANY: [u8; 2] = [0, 0];
}

/// What an address is to the guarded network namespace.
pub mod local {
    /// Reaches the namespace from wherever it is routed to it.
    pub const OWN: u8 = 1;
    /// Means this namespace only to those inside it.
    pub const LOOPBACK: u8 = 2;
}

/// Whether the programs act on what they find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Count what would be refused, refuse nothing.
    Audit = 0,
    /// Refuse.
    Enforce = 1,
    /// Refuse until [`Header::confirm_by`], then only count: nobody need live to open again what nobody confirmed.
    Trial = 2,
}

/// An address of either family as it stands in keys: the family, then 4 or 16 octets, then zeros.
///
/// The family comes first so that `::/0` never covers IPv4 and a v4-mapped source on the wire is not mistaken for
/// the IPv4 address it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Address(pub [u8; Address::LEN]);

impl Address {
    /// Octets of a key.
    pub const LEN: usize = 17;
    /// Prefix length of the family octet alone.
    pub const FAMILY_BITS: u32 = 8;
    /// Prefix length of one whole key.
    pub const ALL_BITS: u32 = 8 * Self::LEN as u32;

    const V4: u8 = 4;
    const V6: u8 = 6;

    /// An IPv4 address.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([Self::V4, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// An IPv6 address, taken literally.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        Self([
            Self::V6,
            o[0],
            o[1],
            o[2],
            o[3],
            o[4],
            o[5],
            o[6],
            o[7],
            o[8],
            o[9],
            o[10],
            o[11],
            o[12],
            o[13],
            o[14],
            o[15],
        ])
    }

    /// An IPv6 destination as a socket means it: a v4-mapped one is the IPv4 address.
    #[inline(always)]
    pub fn socket_v6(o: [u8; 16]) -> Self {
        let mapped = o[..10] == [0; 10] && o[10] == 0xff && o[11] == 0xff;
        if mapped { Self::v4([o[12], o[13], o[14], o[15]]) } else { Self::v6(o) }
    }

    /// Whether this is 0.0.0.0 or `::`.
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        self.0[1..] == [0; 16]
    }

    /// The octets after the family: 4 or 16.
    pub fn octets(&self) -> &[u8] {
        if self.0[0] == Self::V4 { &self.0[1..5] } else { &self.0[1..] }
    }
}

/// Key of [`map::TARGETS`]: an address and a port; port 0 stands for "some port of this address".
#[inline(always)]
pub fn target_key(address: &Address, port: [u8; 2]) -> [u8; Address::LEN + 2] {
    let mut key = [0; Address::LEN + 2];
    key[..Address::LEN].copy_from_slice(&address.0);
    key[Address::LEN..].copy_from_slice(&port);
    key
}

/// Octets of a [`flow_key`].
pub const FLOW_LEN: usize = 2 * Address::LEN + 4;

/// Key of [`map::FLOWS`]: both ends of a connection, as its segments carry them from the socket that opened it.
#[inline(always)]
pub fn flow_key(source: &Address, source_port: [u8; 2], destination: &Address, port: [u8; 2]) -> [u8; FLOW_LEN] {
    let mut key = [0; FLOW_LEN];
    key[..Address::LEN].copy_from_slice(&source.0);
    key[Address::LEN..2 * Address::LEN].copy_from_slice(&destination.0);
    key[2 * Address::LEN..2 * Address::LEN + 2].copy_from_slice(&source_port);
    key[2 * Address::LEN + 2..].copy_from_slice(&port);
    key
}

/// The one entry of [`map::POLICY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`ABI_VERSION`] of whoever wrote it.
    pub abi: u32,
    /// Whether the programs act; they look here for each packet, so that writing this entry switches them all.
    pub mode: Mode,
    /// Whether the connect ring is part of this policy.
    pub connect_ring: bool,
    /// Whether the ingress ring is part of this policy.
    pub ingress_ring: bool,
    /// On how many interfaces the XDP ring was put.
    pub interfaces: u16,
    /// Cookie of the guarded network namespace.
    pub netns: u64,
    /// Counts the policies that this guard has had.
    pub generation: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME` until which the policy wants to be confirmed; 0 when it need not be. The
    /// programs look at it in [`Mode::Trial`] only.
    pub confirm_by: u64,
}

const CONNECT_RING: u8 = 1;
const INGRESS_RING: u8 = 2;

impl Header {
    /// Bytes of the value.
    pub const LEN: usize = 32;
    const _SIZE: () = assert!(Self::LEN == 4 + 4 + 3 * size_of::<u64>());

    /// The value as it stands in the map.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.abi.to_ne_bytes());
        bytes[4] = self.mode as u8;
        bytes[5] = if self.connect_ring { CONNECT_RING } else { 0 } | if self.ingress_ring { INGRESS_RING } else { 0 };
        bytes[6..8].copy_from_slice(&self.interfaces.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.netns.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_ne_bytes());
        bytes[24..].copy_from_slice(&self.confirm_by.to_ne_bytes());
        bytes
    }

    /// Whether the programs refuse at this time.
    #[inline(always)]
    pub fn refuses(&self, now: impl Fn() -> u64) -> bool {
        match self.mode {
            Mode::Audit => false,
            Mode::Enforce => true,
            Mode::Trial => now() <= self.confirm_by,
        }
    }

    /// Reads a value back; anything but an explicit audit or trial is an enforcement.
    #[inline(always)]
    pub fn from_bytes(b: &[u8; Self::LEN]) -> Self {
        Self {
            abi: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            mode: if b[4] == Mode::Audit as u8 {
                Mode::Audit
            } else if b[4] == Mode::Trial as u8 {
                Mode::Trial
            } else {
                Mode::Enforce
            },
            connect_ring: b[5] & CONNECT_RING != 0,
            ingress_ring: b[5] & INGRESS_RING != 0,
            interfaces: u16::from_ne_bytes([b[6], b[7]]),
            netns: u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
            generation: u64::from_ne_bytes([b[16], b[17], b[18], b[19], b[20], b[21], b[22], b[23]]),
            confirm_by: u64::from_ne_bytes([b[24], b[25], b[26], b[27], b[28], b[29], b[30], b[31]]),
        }
    }
}
