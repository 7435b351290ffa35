//! Connections that were open before the guard was: they are found with sock_diag and cut with SOCK_DESTROY.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::INET_DIAG;

use super::netlink::Netlink;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `struct inet_diag_req_v2`: family, protocol, two bytes, states, then the socket's id.
const REQUEST_LEN: usize = 56;
const REQUEST_ID: usize = 8;
/// `struct inet_diag_msg`: family, state, two bytes, then the socket's id.
const MESSAGE_ID: usize = 4;
const ID_LEN: usize = 48;
/// Every state but LISTEN, TIME_WAIT and CLOSE.
const OPEN_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;

struct Connection {
    family: u8,
    id: [u8; ID_LEN],
    here: SocketAddr,
    there: SocketAddr,
}

/// The TCP connections of this network namespace for which `strange(here, there)` holds.
pub(super) fn open(strange: impl Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut netlink = Netlink::open(Some(INET_DIAG))?;
    let mut open = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        netlink.dump(BY_FAMILY, &request(family, None), |_, payload| {
            open.extend(connection(payload).map(|found| (found.here, found.there)));
        })?;
    }
    open.retain(|(here, there)| strange(*here, *there));
    Ok(open)
}

/// Cuts the TCP connections of this network namespace for which `strange(here, there)` holds; says how many.
pub(super) fn cut(strange: impl Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    let mut netlink = Netlink::open(Some(INET_DIAG))?;
    let mut count = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        let mut found = Vec::new();
        netlink.dump(BY_FAMILY, &request(family, None), |_, payload| {
            found.extend(connection(payload));
        })?;
        for connection in found.iter().filter(|connection| strange(connection.here, connection.there)) {
            match netlink.request(DESTROY, &request(connection.family, Some(&connection.id))) {
                Ok(()) => count += 1,
                // It ended by itself in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

fn request(family: u8, id: Option<&[u8; ID_LEN]>) -> [u8; REQUEST_LEN] {
    const TCP: u8 = 6;
    let mut request = [0; REQUEST_LEN];
    request[0] = family;
    request[1] = TCP;
    request[4..8].copy_from_slice(&OPEN_STATES.to_ne_bytes());
    if let Some(id) = id {
        request[REQUEST_ID..].copy_from_slice(id);
    }
    request
}

fn connection(payload: &[u8]) -> Option<Connection> {
    let family = *payload.first()?;
    let id: [u8; ID_LEN] = *payload.get(MESSAGE_ID..)?.first_chunk()?;
    let end = |port: usize, address: usize| {
        let octets: [u8; 16] = *id.get(address..)?.first_chunk()?;
        let ip = if i32::from(family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            IpAddr::from([a, b, c, d])
        } else {
            IpAddr::from(octets)
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(*id.get(port..)?.first_chunk()?)))
    };
    Some(Connection { family, id, here: end(0, 4)?, there: end(2, 20)? })
}
