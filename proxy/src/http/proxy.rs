//! The PROXY protocol, versions 1 and 2: who a connection really comes from, as told by the balancer in front.
//!
//! Pure and strict: the same bytes give the same answer however they arrive, and what is not exactly a header is an
//! error. A peer that has to speak the protocol and does not gets no second reading of its bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// What every version 2 header begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What every version 1 header begins with.
const WORD: &[u8; 6] = b"PROXY ";

/// The longest version 1 header, its line end included.
const LONGEST_V1: usize = 107;

/// The bytes of a version 2 header before its addresses.
const FIXED_V2: usize = 16;

/// The longest version 2 header that is taken: room for a Unix address and for what balancers say of TLS, and no more.
pub const LONGEST: usize = FIXED_V2 + 4096;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length; the connection's own bytes begin there.
    pub len: usize,
    /// Where the connection comes from; none when the balancer speaks for itself (a health check) or does not know.
    pub source: Option<SocketAddr>,
}

/// Why the bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotProxy {
    /// They begin like something else.
    #[error("no PROXY header")]
    Absent,
    /// They begin like one.
    #[error("a malformed PROXY header: {0}")]
    Malformed(&'static str),
}

use NotProxy::Malformed;

/// Finds a header at the start of `bytes`; none while more is needed to say.
///
/// # Errors
/// As soon as no continuation could make it a header.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    if begins(bytes, SIGNATURE) {
        return if bytes.len() < FIXED_V2 { early_v2(bytes) } else { v2(bytes) };
    }
    if begins(bytes, WORD) {
        return v1(bytes);
    }
    Err(NotProxy::Absent)
}

/// Whether `bytes` begin with `start`, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let n = bytes.len().min(start.len());
    bytes[..n] == start[..n]
}

fn v1(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    // The return is the last byte but one at the latest.
    let window = &bytes[..bytes.len().min(LONGEST_V1 - 1)];
    let Some(end) = window.iter().position(|&b| b == b'\r' || b == b'\n') else {
        return if window.len() == LONGEST_V1 - 1 { Err(Malformed("longer than 107 bytes")) } else { Ok(None) };
    };
    if window[end] == b'\n' {
        return Err(Malformed("its line ends without a return"));
    }
    match bytes.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(Malformed("a return inside its line")),
    }
    let line = std::str::from_utf8(&bytes[WORD.len()..end]).map_err(|_| Malformed("not ASCII"))?;
    Ok(Some(Header { len: end + 2, source: v1_source(line)? }))
}

fn v1_source(line: &str) -> Result<Option<SocketAddr>, NotProxy> {
    let mut words = line.split(' ');
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // What follows is to be ignored.
        return Ok(None);
    }
    let mut word = || words.next().ok_or(Malformed("not four words behind the family"));
    let (source, destination, source_port, destination_port) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(Malformed("not four words behind the family"));
    }
    let address: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |text| text.parse().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse().ok().map(IpAddr::V6),
        _ => return Err(Malformed("a family other than TCP4, TCP6 and UNKNOWN")),
    };
    let address = |text| address(text).ok_or(Malformed("an address that is not of its family"));
    address(destination)?;
    v1_port(destination_port)?;
    Ok(Some(SocketAddr::new(address(source)?, v1_port(source_port)?)))
}

/// Decimal, without a sign or a leading zero: no second spelling.
fn v1_port(text: &str) -> Result<u16, NotProxy> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain).ok_or(Malformed("a port that is no number from 0 to 65535"))
}

/// What can be said before the fixed part is whole.
fn early_v2(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    match bytes.get(12) {
        Some(first) if first >> 4 != 2 => Err(Malformed("a version other than 2")),
        Some(first) if first & 0xf > 1 => Err(Malformed("a command other than LOCAL and PROXY")),
        _ => Ok(None),
    }
}

fn v2(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    early_v2(bytes)?;
    let len = FIXED_V2 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if len > LONGEST {
        return Err(Malformed("longer than 4096 bytes behind its fixed part"));
    }
    let (local, family) = (bytes[12] & 0xf == 0, bytes[13]);
    let addresses = match (local, family) {
        // Of itself the balancer may say anything; it is to be skipped.
        (true, _) | (false, 0x00) => 0,
        (false, 0x11) => 12,
        (false, 0x21) => 36,
        (false, 0x31) => 216,
        // UDP, or a family that does not exist: nothing that comes by a TCP connection.
        (false, _) => return Err(Malformed("a family or transport that no TCP connection has")),
    };
    if len - FIXED_V2 < addresses {
        return Err(Malformed("too short for the addresses of its family"));
    }
    let Some(body) = bytes.get(FIXED_V2..len) else { return Ok(None) };
    if !local {
        check_tlvs(&body[addresses..])?;
    }
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let source = match (local, family) {
        (false, 0x11) => {
            let address: [u8; 4] = body[..4].try_into().unwrap_or_default();
            Some(SocketAddr::new(Ipv4Addr::from(address).into(), port(8)))
        }
        (false, 0x21) => {
            let address: [u8; 16] = body[..16].try_into().unwrap_or_default();
            Some(SocketAddr::new(Ipv6Addr::from(address).into(), port(32)))
        }
        _ => None,
    };
    Ok(Some(Header { len, source }))
}

/// Additions of type, length and value fill the rest exactly. None of them is used.
fn check_tlvs(mut rest: &[u8]) -> Result<(), NotProxy> {
    while !rest.is_empty() {
        let [_, high, low, values @ ..] = rest else { return Err(Malformed("an addition that is cut off")) };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        rest = values.get(len..).ok_or(Malformed("an addition that is longer than the header"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
