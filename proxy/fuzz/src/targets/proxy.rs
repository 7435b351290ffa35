//! PROXY headers: who a connection is said to come from.

use std::net::SocketAddr;

use portcullis::http::proxy::{Header, LONGEST, parse};

/// A header and what follows it: the answer comes once, is the same however the bytes come, and never looks behind the
/// header; the address in it, written by us, is read back.
pub(super) fn header(data: &[u8]) {
    let whole = parse(data);
    let mut decided = None;
    for n in 0..=data.len().min(LONGEST) {
        let part = parse(&data[..n]);
        if let Some(first) = decided {
            assert_eq!(part, first, "{n} bytes: an answer that changed");
        } else if part != Ok(None) {
            decided = Some(part);
        }
    }
    assert_eq!(decided.unwrap_or(Ok(None)), whole, "in pieces");
    // A peer that never decides would be waited for with an ever larger buffer.
    assert!(whole != Ok(None) || data.len() < LONGEST);
    let Ok(Some(found)) = whole else { return };
    assert!(found.len <= data.len().min(LONGEST));
    assert_eq!(parse(&data[..found.len]), Ok(Some(found)), "what follows has a say");
    let Some(source) = found.source else { return };
    for again in [version_1(source), version_2(source)] {
        assert_eq!(parse(&again), Ok(Some(Header { len: again.len(), source: Some(source) })));
    }
}

fn version_1(source: SocketAddr) -> Vec<u8> {
    let (family, ip) = (if source.is_ipv4() { "TCP4" } else { "TCP6" }, source.ip());
    format!("PROXY {family} {ip} {ip} {} 443\r\n", source.port()).into_bytes()
}

fn version_2(source: SocketAddr) -> Vec<u8> {
    let (family, address) = match source {
        SocketAddr::V4(v4) => (0x11, v4.ip().octets().to_vec()),
        SocketAddr::V6(v6) => (0x21, v6.ip().octets().to_vec()),
    };
    let length = u8::try_from(address.len() * 2 + 4).unwrap();
    let start = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, family, 0, length]].concat();
    [start, address.clone(), address, source.port().to_be_bytes().to_vec(), vec![1, 187]].concat()
}
