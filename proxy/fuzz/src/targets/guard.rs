//! Frames before the guard's judge, next to a second reading of them as the kernel reads: without bounds.

use portcullis_ebpf::decide::{Outcome, Tables, packet};
use portcullis_ebpf::{Address, FLOW_LEN, Reason, local, port, target_key};

const PORT: [u8; 2] = 5000_u16.to_be_bytes();
const OWN4: Address = Address::v4([192, 0, 2, 1]);
const CONTAINER: Address = Address::v4([172, 17, 0, 2]);
const GATE: Address = Address::v4([203, 0, 113, 9]);
const OWN6: Address = Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Port 5000 of the machine, or that of one container only.
struct Policy {
    whole: bool,
}

impl Policy {
    fn flags(&self) -> u8 {
        if self.whole { port::WHOLE | port::UNSPECIFIED } else { port::SINGLE }
    }

    /// What the operator asked for, in one sentence.
    fn protects(&self, destination: Address, to: [u8; 2]) -> bool {
        let ours = if self.whole {
            destination == OWN4 || destination == OWN6 || destination.is_unspecified()
        } else {
            destination == CONTAINER
        };
        to == PORT && ours
    }
}

impl Tables for Policy {
    fn port(&self, key: &[u8; 2]) -> u8 {
        if *key == PORT || *key == port::ANY { self.flags() } else { 0 }
    }
    fn local(&self, address: &Address) -> u8 {
        if *address == OWN4 || *address == OWN6 { local::OWN } else { 0 }
    }
    fn target(&self, key: &[u8; Address::LEN + 2]) -> u8 {
        let ours = [PORT, port::ANY].iter().any(|to| *key == target_key(&CONTAINER, *to));
        if ours && !self.whole { local::OWN } else { 0 }
    }
    fn allowed(&self, source: &Address) -> bool {
        *source == GATE
    }
    fn flow(&self, _: &[u8; FLOW_LEN]) -> u8 {
        0
    }
}

/// A frame that holds a whole TCP header: from, to, port.
fn segment(frame: &[u8]) -> Option<(Address, Address, [u8; 2])> {
    let mut rest = frame.get(12..)?;
    while rest.starts_with(&[0x81, 0]) || rest.starts_with(&[0x88, 0xa8]) {
        rest = rest.get(4..)?;
    }
    let (kind, ip) = rest.split_at_checked(2)?;
    let (from, to, tcp) = match kind {
        [8, 0] => ipv4(ip)?,
        [0x86, 0xdd] => ipv6(ip)?,
        _ => return None,
    };
    tcp.get(..20).map(|tcp| (from, to, [tcp[2], tcp[3]]))
}

fn ipv4(ip: &[u8]) -> Option<(Address, Address, &[u8])> {
    let (header, words) = (ip.first_chunk::<20>()?, usize::from(ip[0] & 15));
    let first_fragment = header[6] & 0x1f == 0 && header[7] == 0;
    let [.., a, b, c, d, e, f, g, h] = *header;
    let tcp = ip.get(words * 4..)?;
    (words >= 5 && header[9] == 6 && first_fragment).then_some((
        Address::v4([a, b, c, d]),
        Address::v4([e, f, g, h]),
        tcp,
    ))
}

fn ipv6(ip: &[u8]) -> Option<(Address, Address, &[u8])> {
    let (header, mut rest) = ip.split_at_checked(40)?;
    let (from, to) = (Address::v6(*header[8..].first_chunk()?), Address::v6(*header[24..].first_chunk()?));
    let mut next = header[6];
    while next != 6 {
        let [after, len, high, low, ..] = *rest else { return None };
        let skipped = match next {
            0 | 43 | 60 => (usize::from(len) + 1) * 8,
            51 => (usize::from(len) + 2) * 4,
            44 if high == 0 && low & 0xf8 == 0 => 8,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
        next = after;
    }
    Some((from, to, rest))
}

/// A policy by the first byte, then a frame: nothing that the kernel would hand to the port passes from a stranger, and
/// nothing else is touched.
pub(super) fn frame(data: &[u8]) {
    let Some((&choice, frame)) = data.split_first() else { return };
    let policy = Policy { whole: choice & 1 == 0 };
    let outcome = packet(frame, &policy);
    let Some((from, to, at)) = segment(frame) else { return };
    let bounded = matches!(outcome, Outcome::Refused(Reason::Tags | Reason::Extensions, _));
    let right = match (policy.protects(to, at), from == GATE) {
        // A packet to no address is the kernel's to drop; where its port cannot be read the guard leaves it to that.
        (true, false) => matches!(outcome, Outcome::Refused(..)) || to.is_unspecified(),
        (true, true) => outcome == Outcome::Passed(Reason::Admitted) || bounded,
        (false, _) => outcome == Outcome::Untouched || bounded,
    };
    assert!(right, "{outcome:?} for {from:?} to {to:?} port {at:?}");
}
