use proptest::prelude::*;

use super::*;

fn v2_header(first: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[first, family], &len, body].concat()
}

fn v4_body() -> Vec<u8> {
    [&[192, 0, 2, 1][..], &[10, 0, 0, 1], &1234u16.to_be_bytes(), &443u16.to_be_bytes()].concat()
}

fn source(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn version_1() {
    for (line, from) in [
        ("PROXY TCP4 192.0.2.1 10.0.0.1 1234 443\r\n", source("192.0.2.1:1234")),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", source("255.255.255.255:65535")),
        ("PROXY TCP6 2001:db8::1 ::1 0 443\r\n", source("[2001:db8::1]:0")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff::1 whatever 1 2 3\r\n", None),
    ] {
        let bytes = [line.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&bytes), Ok(Some(Header { len: line.len(), source: from })), "{line}");
    }
    let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535";
    let longest = format!("{longest}{}\r\n", "x".repeat(105 - longest.len()));
    assert_eq!(longest.len(), 107);
    assert_eq!(parse(longest.as_bytes()), Ok(Some(Header { len: 107, source: None })));
}

#[test]
fn version_1_is_strict() {
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(too_long.len(), 108);
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(500));
    for line in [
        "PROXY TCP4 192.0.2.1 10.0.0.1 65536 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 1 -1\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 01 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1  443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 1 443 \r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 1 443 5\r\n",
        "PROXY TCP4  192.0.2.1 10.0.0.1 1 443\r\n",
        "PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n",
        "PROXY TCP4 192.0.2.256 10.0.0.1 1 443\r\n",
        "PROXY TCP4 192.0.2.01 10.0.0.1 1 443\r\n",
        "PROXY TCP4 ::1 ::1 1 443\r\n",
        "PROXY TCP4 192.0.2.1 ::1 1 443\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.1 1 443\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 1 443\r\n",
        "PROXY UDP4 192.0.2.1 10.0.0.1 1 443\r\n",
        "PROXY tcp4 192.0.2.1 10.0.0.1 1 443\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY UNKNOWN\n",
        "PROXY UNKNOWN\rx",
        "PROXY UNKNOWN\r\r\n",
        "PROXY TCP4 192.0.2.\u{661} 10.0.0.1 1 443\r\n",
        &too_long,
        &endless,
    ] {
        assert!(matches!(parse(line.as_bytes()), Err(Malformed(_))), "{line:?}: {:?}", parse(line.as_bytes()));
    }
    for other in ["GET / HTTP/1.1\r\n", "proxy TCP4", "\x16\x03\x01", "\r\n\r\nGET", " PROXY", "PROXY\t", "\0"] {
        assert_eq!(parse(other.as_bytes()), Err(NotProxy::Absent), "{other:?}");
    }
}

#[test]
fn version_2() {
    let v6 = [&Ipv6Addr::LOCALHOST.octets()[..], &[0xff; 16], &7u16.to_be_bytes(), &8u16.to_be_bytes()].concat();
    let tlv = [&[0x04, 0, 3][..], b"abc", &[0x20, 0, 0]].concat();
    for (first, family, body, from) in [
        (0x21, 0x11, v4_body(), source("192.0.2.1:1234")),
        (0x21, 0x11, [v4_body(), tlv.clone()].concat(), source("192.0.2.1:1234")),
        (0x21, 0x21, v6.clone(), source("[::1]:7")),
        (0x21, 0x21, [v6, tlv.clone()].concat(), source("[::1]:7")),
        (0x21, 0x31, vec![b'/'; 216], None),
        (0x21, 0x00, vec![], None),
        (0x21, 0x00, tlv, None),
        (0x20, 0x00, vec![], None),
        (0x20, 0x11, v4_body(), None),
        (0x20, 0xff, vec![9; 5], None),
        (0x20, 0x00, vec![9; 4096], None),
    ] {
        let header = v2_header(first, family, &body);
        let bytes = [&header[..], b"GET"].concat();
        assert_eq!(parse(&bytes), Ok(Some(Header { len: header.len(), source: from })), "{first:x} {family:x}");
    }
}

#[test]
fn version_2_is_strict() {
    let with = |more: &[u8]| [v4_body(), more.to_vec()].concat();
    for (first, family, body) in [
        (0x11, 0x11, v4_body()),
        (0x31, 0x11, v4_body()),
        (0x22, 0x11, v4_body()),
        (0x2f, 0x11, v4_body()),
        (0x21, 0x12, v4_body()),
        (0x21, 0x10, v4_body()),
        (0x21, 0x01, v4_body()),
        (0x21, 0x41, v4_body()),
        (0x21, 0xff, v4_body()),
        (0x21, 0x11, v4_body()[..11].to_vec()),
        (0x21, 0x21, vec![0; 35]),
        (0x21, 0x31, vec![0; 215]),
        (0x21, 0x11, with(&[4])),
        (0x21, 0x11, with(&[4, 0])),
        (0x21, 0x11, with(&[4, 0, 1])),
        (0x21, 0x11, with(&[4, 0xff, 0xff, 1])),
        (0x21, 0x11, with(&[0; 4085])),
        (0x20, 0x00, vec![0; 4097]),
        (0x20, 0x00, vec![0; 65535]),
    ] {
        let bytes = v2_header(first, family, &body);
        assert!(matches!(parse(&bytes), Err(Malformed(_))), "{first:x} {family:x}: {:?}", parse(&bytes));
    }
    assert_eq!(parse(b"\r\n\r\n\0\r\nQUIT\r"), Err(NotProxy::Absent));
}

#[test]
fn a_wrong_length_is_refused_before_its_bytes_have_come() {
    let header = v2_header(0x21, 0x11, &[0; 5000]);
    assert!(parse(&header[..16]).is_err());
}

#[test]
fn an_overlong_line_is_named_so_however_it_comes() {
    for end in ["\n", "\r\n", "x\n"] {
        let line = format!("PROXY UNKNOWN {}{end}", "x".repeat(92));
        for n in 106..=line.len() {
            assert_eq!(parse(&line.as_bytes()[..n]), Err(Malformed("longer than 107 bytes")), "{n} of {line:?}");
        }
    }
}

fn some_header() -> impl Strategy<Value = Vec<u8>> {
    let port = 0u32..70_000;
    let v1 = ("TCP4|TCP6|UNKNOWN|UDP4", any::<Ipv4Addr>(), any::<Ipv6Addr>(), any::<bool>(), port).prop_map(
        |(family, v4, v6, swap, port)| {
            let text = if (family == "TCP6") != swap { v6.to_string() } else { v4.to_string() };
            format!("PROXY {family} {text} {text} {port} 443\r\n").into_bytes()
        },
    );
    let v2 =
        (0x1fu8..0x23, prop::sample::select(vec![0u8, 0x11, 0x12, 0x21, 0x31]), prop::collection::vec(0u8..4, 0..260))
            .prop_map(|(first, family, body)| v2_header(first, family, &body));
    let any = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![4 => v1, 4 => v2, 1 => any]
}

proptest! {
    /// An answer never changes when more bytes come: whole or in pieces is the same.
    #[test]
    fn pieces_give_what_the_whole_gives(header in some_header(), rest in prop::collection::vec(any::<u8>(), 0..20)) {
        let bytes = [header, rest].concat();
        let whole = parse(&bytes);
        let first = (0..=bytes.len()).map(|n| parse(&bytes[..n])).find(|answer| *answer != Ok(None));
        prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
        for n in 0..=bytes.len() {
            let part = parse(&bytes[..n]);
            prop_assert!(part == Ok(None) || part == whole, "{} bytes: {:?}, then {:?}", n, part, whole);
        }
    }

    #[test]
    fn a_header_is_never_longer_than_said(header in some_header()) {
        if let Ok(Some(found)) = parse(&header) {
            prop_assert!(found.len <= header.len() && found.len <= LONGEST);
            prop_assert_eq!(parse(&header[..found.len]), Ok(Some(found)));
        }
    }

    #[test]
    fn every_address_comes_back(address in any::<SocketAddr>(), destination in any::<u16>()) {
        let address = SocketAddr::new(address.ip(), address.port());
        let family = if address.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!("PROXY {family} {ip} {ip} {} {destination}\r\n", address.port(), ip = address.ip());
        prop_assert_eq!(parse(line.as_bytes()), Ok(Some(Header { len: line.len(), source: Some(address) })));
    }
}
