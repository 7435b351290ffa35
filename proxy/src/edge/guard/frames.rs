//! Frames that strangers might send: what `verify` shows to the kernel's own programs.

use std::net::{IpAddr, SocketAddr};

/// Where the network header begins in a frame without tags.
pub(super) const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// One way to send a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A plain SYN.
    Syn,
    /// An ACK out of nowhere.
    Ack,
    /// A SYN inside a priority tag, which Linux strips.
    Tagged,
    /// A SYN behind IP options or an extension header.
    Options,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Syn, Self::Ack, Self::Tagged, Self::Options];

    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN",
            Self::Ack => "ACK",
            Self::Tagged => "tagged SYN",
            Self::Options => "SYN behind options",
        }
    }
}

/// An Ethernet frame with a TCP segment; both ends must be of one family.
pub(super) fn frame(way: Way, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let segment = segment(way, from, to);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if way == Way::Tagged {
        frame.extend(VLAN);
        frame.extend([0, 0]);
    }
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let options: &[u8] = if way == Way::Options { &[1, 1, 1, 0] } else { &[] };
            let words = u8::try_from(5 + options.len() / 4).unwrap_or(5);
            let total = u16::try_from(20 + options.len() + segment.len()).unwrap_or(u16::MAX).to_be_bytes();
            let mut header = vec![0x40 | words, 0, total[0], total[1], 0, 1, 0, 0, 64, TCP, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            header.extend(options);
            let sum = checksum(&header, 0).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            frame.extend(IPV4);
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let chain: &[u8] = if way == Way::Options { &[TCP, 0, 1, 4, 0, 0, 0, 0] } else { &[] };
            let next = if chain.is_empty() { TCP } else { HOP_BY_HOP };
            let length = u16::try_from(chain.len() + segment.len()).unwrap_or(u16::MAX).to_be_bytes();
            frame.extend(IPV6);
            frame.extend([0x60, 0, 0, 0, length[0], length[1], next, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            frame.extend(chain);
        }
        _ => return Vec::new(),
    }
    frame.extend(segment);
    frame
}

fn segment(way: Way, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let flags = if way == Way::Ack { ACK } else { SYN };
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = Vec::new();
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => pseudo.extend(ip.octets()),
            IpAddr::V6(ip) => pseudo.extend(ip.octets()),
        }
    }
    pseudo.extend([0, TCP, 0, 20]);
    let sum = checksum(&segment, !checksum(&pseudo, 0)).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// The Internet checksum, continuing from a sum that was begun elsewhere.
fn checksum(bytes: &[u8], begun: u16) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum = pairs.sum::<u32>() + u32::from(begun);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_sum_up_to_nothing() {
        let (from, to) = ("192.0.2.1:4000".parse().unwrap(), "10.0.0.1:5000".parse().unwrap());
        for way in Way::ALL {
            let frame = frame(way, from, to);
            let ip = &frame[if way == Way::Tagged { ETHERNET + 4 } else { ETHERNET }..];
            let words = usize::from(ip[0] & 15) * 4;
            assert_eq!(checksum(&ip[..words], 0), 0, "{way:?}");
            let pseudo = [&ip[12..20], &[0, TCP, 0, 20]].concat();
            assert_eq!(checksum(&ip[words..], !checksum(&pseudo, 0)), 0, "{way:?}");
        }
        let (from, to) = ("[2001:db8::1]:4000".parse().unwrap(), "[fd00::1]:5000".parse().unwrap());
        assert_eq!(frame(Way::Syn, from, to).len(), ETHERNET + 40 + 20);
        assert_eq!(frame(Way::Options, from, to)[ETHERNET + 6], HOP_BY_HOP);
    }
}
