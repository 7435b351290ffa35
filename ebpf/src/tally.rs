//! What the programs count and tell.

use crate::Address;

/// Events that each ring tells in a second on each processor; more are only counted.
pub const EVENTS_A_SECOND: u64 = 50;

/// One of the three places where the guard judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Ring {
    /// Frames as an interface receives them.
    Xdp = 0,
    /// connect(2) of this host's processes.
    Connect = 1,
    /// Segments as they reach a socket.
    Ingress = 2,
}

impl Ring {
    /// Every ring, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::Connect, Self::Ingress];

    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Connect => "connect",
            Self::Ingress => "ingress",
        }
    }
}

/// Why something was let through or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// A segment to a protected port from an allowed source.
    Admitted = 0,
    /// A segment to a protected port from anybody else.
    Stranger = 1,
    /// Still VLAN-tagged after [`decide::MAX_TAGS`](crate::decide::MAX_TAGS) tags.
    Tags = 2,
    /// More IPv6 extension headers than [`decide::MAX_EXTENSIONS`](crate::decide::MAX_EXTENSIONS).
    Extensions = 3,
    /// The headers end before the port could be read.
    Truncated = 4,
    /// A vouched socket opened a protected address, or a segment of such a connection arrived.
    Vouched = 5,
    /// Any other socket tried to open a protected address.
    Unvouched = 6,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Admitted, Self::Stranger, Self::Tags, Self::Extensions, Self::Truncated, Self::Vouched, Self::Unvouched];

    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Stranger => "stranger",
            Self::Tags => "too-many-tags",
            Self::Extensions => "too-many-extensions",
            Self::Truncated => "truncated",
            Self::Vouched => "vouched",
            Self::Unvouched => "unvouched",
        }
    }

    /// Whether it lets through rather than refuses.
    pub fn passes(self) -> bool {
        matches!(self, Self::Admitted | Self::Vouched)
    }

    /// Whether `ring` ever counts it.
    pub fn belongs_to(self, ring: Ring) -> bool {
        match ring {
            Ring::Connect => matches!(self, Self::Vouched | Self::Unvouched),
            Ring::Xdp => !matches!(self, Self::Vouched | Self::Unvouched),
            Ring::Ingress => !matches!(self, Self::Unvouched | Self::Tags),
        }
    }
}

/// Key of [`map::COUNTERS`](crate::map::COUNTERS): who counts what, and where it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tally {
    /// Who counts.
    pub ring: Ring,
    /// What.
    pub reason: Reason,
    /// On which interface; 0 for the connect ring, and when the map is full.
    pub interface: u32,
}

impl Tally {
    /// Bytes of the key.
    pub const LEN: usize = 8;

    /// The key as it stands in the map.
    #[inline(always)]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [a, b, c, d] = self.interface.to_ne_bytes();
        [self.ring as u8, self.reason as u8, 0, 0, a, b, c, d]
    }

    /// Reads a key back; `None` when no program of this version has written it.
    pub fn from_bytes([ring, reason, _, _, a, b, c, d]: [u8; Self::LEN]) -> Option<Self> {
        Some(Self {
            ring: *Ring::ALL.get(usize::from(ring))?,
            reason: *Reason::ALL.get(usize::from(reason))?,
            interface: u32::from_ne_bytes([a, b, c, d]),
        })
    }
}

/// What became of something that the policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Let through, because the guard only audits.
    Audited = 1,
    /// Refused.
    Refused = 2,
}

impl Verdict {
    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Audited => "audited",
            Self::Refused => "refused",
        }
    }
}

/// One entry of [`map::EVENTS`](crate::map::EVENTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// Who judged.
    pub ring: Ring,
    /// Why.
    pub reason: Reason,
    /// What became of it.
    pub verdict: Verdict,
    /// Where it came in; 0 for the connect ring.
    pub interface: u32,
    /// Where it came from; unspecified for the connect ring and where the headers could not be read.
    pub source: Address,
    /// Where it wanted to go.
    pub destination: Address,
    /// The source's port; 0 as above.
    pub source_port: u16,
    /// The destination's port; 0 where it could not be read.
    pub port: u16,
    /// The process that called connect(2), else 0.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, padded with zeros.
    pub command: [u8; 16],
    /// How many events of this ring were only counted on this processor since the one before.
    pub suppressed: u64,
}

impl Event {
    /// Bytes of an entry.
    pub const LEN: usize = 96;

    /// The entry as it stands in the ring buffer.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.time.to_ne_bytes());
        bytes[8] = self.ring as u8;
        bytes[9] = self.reason as u8;
        bytes[10] = self.verdict as u8;
        bytes[12..16].copy_from_slice(&self.interface.to_ne_bytes());
        bytes[16..33].copy_from_slice(&self.source.0);
        bytes[33..50].copy_from_slice(&self.destination.0);
        bytes[50..52].copy_from_slice(&self.source_port.to_ne_bytes());
        bytes[52..54].copy_from_slice(&self.port.to_ne_bytes());
        bytes[56..60].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[60..64].copy_from_slice(&self.uid.to_ne_bytes());
        bytes[64..80].copy_from_slice(&self.command);
        bytes[80..88].copy_from_slice(&self.suppressed.to_ne_bytes());
        bytes
    }

    /// Reads an entry back; `None` when no program of this version has written it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let two = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let four = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let eight = |at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Self {
            time: eight(0)?,
            ring: *Ring::ALL.get(usize::from(bytes[8]))?,
            reason: *Reason::ALL.get(usize::from(bytes[9]))?,
            verdict: match bytes[10] {
                1 => Verdict::Audited,
                2 => Verdict::Refused,
                _ => return None,
            },
            interface: four(12),
            source: Address(*bytes.get(16..)?.first_chunk()?),
            destination: Address(*bytes.get(33..)?.first_chunk()?),
            source_port: two(50),
            port: two(52),
            pid: four(56),
            uid: four(60),
            command: *bytes.get(64..)?.first_chunk()?,
            suppressed: eight(80)?,
        })
    }

    /// The name of the process that called connect(2), without its padding.
    pub fn command(&self) -> &[u8] {
        self.command.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

#[cfg(all(test, not(target_arch = "bpf")))]
mod tests {
    use super::*;

    #[test]
    fn tallies_survive_their_bytes() {
        for ring in Ring::ALL {
            for reason in Reason::ALL {
                let tally = Tally { ring, reason, interface: 0x0102_0304 };
                assert_eq!(Tally::from_bytes(tally.to_bytes()), Some(tally));
            }
        }
        assert_eq!(Tally::from_bytes([3, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Tally::from_bytes([0, 7, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn events_survive_their_bytes_and_nothing_else_is_one() {
        let event = Event {
            time: 0x0123_4567_89ab_cdef,
            ring: Ring::Connect,
            reason: Reason::Unvouched,
            verdict: Verdict::Refused,
            interface: 7,
            source: Address::v4([192, 0, 2, 1]),
            destination: Address::v6([9; 16]),
            source_port: 40_000,
            port: 5000,
            pid: 4711,
            uid: 65_534,
            command: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            suppressed: 3,
        };
        let bytes = event.to_bytes();
        assert_eq!(Event::from_bytes(&bytes), Some(event));
        assert_eq!(event.command(), b"curl");
        assert_eq!(Event::from_bytes(&bytes[1..]), None);
        assert_eq!(Event::from_bytes(&[0; Event::LEN]), None, "no verdict");
    }
}
