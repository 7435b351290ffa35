//! Which drivers take XDP programs, asked from the kernel's `netdev` family (Linux 6.3 or later tells).

use std::collections::HashMap;
use std::io;

use super::netlink::{Netlink, attributes, u16_at, u32_at};

const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const DEV_GET: u8 = 1;
const INTERFACE: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// The driver runs XDP programs.
const BASIC: u32 = 1;
const GENERIC_HEADER: usize = 4;

/// Interface → whether its driver takes an XDP program.
pub(super) fn native() -> io::Result<HashMap<u32, bool>> {
    let mut netlink = Netlink::open(Some(rustix::net::netlink::GENERIC))?;
    let mut family = None;
    netlink.dump(CONTROL, &[GET_FAMILY, 1, 0, 0], |_, payload| {
        let Some(rest) = payload.get(GENERIC_HEADER..) else { return };
        let is = attributes(rest).any(|(kind, name)| kind == FAMILY_NAME && name == b"netdev\0");
        if is {
            family = attributes(rest).find(|(kind, _)| *kind == FAMILY_ID).and_then(|(_, id)| u16_at(id, 0));
        }
    })?;
    let family = family.ok_or(io::ErrorKind::Unsupported)?;
    let mut found = HashMap::new();
    netlink.dump(family, &[DEV_GET, 1, 0, 0], |_, payload| {
        let Some(rest) = payload.get(GENERIC_HEADER..) else { return };
        let word = |wanted: u16| attributes(rest).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| u32_at(v, 0));
        if let (Some(index), Some(features)) = (word(INTERFACE), word(XDP_FEATURES)) {
            found.insert(index, features & BASIC != 0);
        }
    })?;
    Ok(found)
}
