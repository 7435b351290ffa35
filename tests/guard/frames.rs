//! Packets made by hand, down to their checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
pub(super) const TCP: u8 = 6;

/// A TCP segment with its checksum and eight octets of data, as a stranger's first one would be.
pub(super) fn segment(source: IpAddr, destination: IpAddr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut header = vec![0; 28];
    header[..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[4..8].copy_from_slice(&[1, 2, 3, 4]);
    header[12] = 5 << 4;
    header[13] = flags;
    header[14..16].copy_from_slice(&64_000u16.to_be_bytes());
    let mut pseudo = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => panic!("two families"),
    };
    pseudo.extend([0, TCP, 0, 28]);
    pseudo.extend(&header);
    let sum = checksum(&pseudo);
    header[16..18].copy_from_slice(&sum);
    header
}

/// An IPv4 packet; `fragment` is the field of flags and offset.
pub(super) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, options: &[u8], fragment: u16, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet.extend(options);
    let len = packet.len();
    packet[0] = 0x40 | u8::try_from(len / 4).unwrap();
    packet[2..4].copy_from_slice(&u16::try_from(len + payload.len()).unwrap().to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = 64;
    packet[9] = TCP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// An IPv6 packet whose first header after the fixed one is `next`.
pub(super) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
