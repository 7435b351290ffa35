//! One test for each rule of the packet judge and of the connect judge.

use std::collections::HashMap;

use super::*;
use crate::{Header, Mode};

const PORT: u16 = 5000;
const OWN4: [u8; 4] = [192, 0, 2, 1];
const OWN6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CONTAINER: [u8; 4] = [172, 17, 0, 2];
const ELSEWHERE4: [u8; 4] = [198, 51, 100, 7];
const GATE: [u8; 4] = [203, 0, 113, 9];
const STRANGER: [u8; 4] = [203, 0, 113, 10];
const STRANGER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

#[derive(Default)]
struct Fake {
    ports: HashMap<[u8; 2], u8>,
    local: HashMap<Address, u8>,
    targets: HashMap<[u8; Address::LEN + 2], u8>,
    allowed: Vec<Address>,
    flows: HashMap<[u8; FLOW_LEN], u8>,
}

impl Tables for Fake {
    fn port(&self, port: &[u8; 2]) -> u8 {
        self.ports.get(port).copied().unwrap_or(0)
    }
    fn local(&self, address: &Address) -> u8 {
        self.local.get(address).copied().unwrap_or(0)
    }
    fn target(&self, key: &[u8; Address::LEN + 2]) -> u8 {
        self.targets.get(key).copied().unwrap_or(0)
    }
    fn allowed(&self, source: &Address) -> bool {
        self.allowed.contains(source)
    }
    fn flow(&self, key: &[u8; FLOW_LEN]) -> u8 {
        self.flows.get(key).copied().unwrap_or(0)
    }
}

/// `--port 5000` on a host with one address of each family, one remote gate allowed.
fn whole() -> Fake {
    let flags = port::WHOLE | port::UNSPECIFIED;
    Fake {
        ports: HashMap::from([(PORT.to_be_bytes(), flags), (port::ANY, flags)]),
        local: HashMap::from([
            (Address::v4(OWN4), local::OWN),
            (Address::v6(OWN6), local::OWN),
            (Address::v4([127, 0, 0, 1]), local::LOOPBACK),
            (Address::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), local::LOOPBACK),
        ]),
        allowed: vec![Address::v4(GATE)],
        ..Fake::default()
    }
}

/// `--protect 172.17.0.2:5000`.
fn single() -> Fake {
    let address = Address::v4(CONTAINER);
    Fake {
        ports: HashMap::from([(PORT.to_be_bytes(), port::SINGLE), (port::ANY, port::SINGLE)]),
        local: HashMap::from([(Address::v4(OWN4), local::OWN)]),
        targets: HashMap::from([
            (target_key(&address, PORT.to_be_bytes()), local::OWN),
            (target_key(&address, port::ANY), local::OWN),
        ]),
        ..Fake::default()
    }
}

fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    for vid in tags {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(vid.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn tcp(port: u16) -> Vec<u8> {
    let mut header = vec![0; TCP_LEN];
    header[..2].copy_from_slice(&40_000u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header
}

fn v4(protocol: u8, source: [u8; 4], destination: [u8; 4], options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 20 + options];
    header[0] = 0x40 | (5 + options / 4) as u8;
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[9] = protocol;
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    header.extend(payload);
    header
}

fn v6(next: u8, source: [u8; 16], destination: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; IPV6_LEN];
    header[0] = 0x60;
    header[6] = next;
    header[8..24].copy_from_slice(&source);
    header[24..40].copy_from_slice(&destination);
    header.extend(payload);
    header
}

fn syn4(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    ethernet(&[], ETHERTYPE_IPV4, &v4(TCP, source, destination, 0, 0, &tcp(port)))
}

fn syn6(next: u8, chain: &[u8]) -> Vec<u8> {
    ethernet(&[], ETHERTYPE_IPV6, &v6(next, STRANGER6, OWN6, &[chain, &tcp(PORT)].concat()))
}

/// What becomes of a frame, without its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Untouched,
    Passed(Reason),
    Refused(Reason),
}

impl From<Outcome> for Fate {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Untouched => Self::Untouched,
            Outcome::Passed(why) => Self::Passed(why),
            Outcome::Refused(why, _) => Self::Refused(why),
        }
    }
}

#[track_caller]
fn judged(tables: &Fake, frame: &[u8], expected: Fate) {
    assert_eq!(Fate::from(packet(frame, tables)), expected);
}

const STRANGE: Fate = Fate::Refused(Reason::Stranger);
const CUT_SHORT: Fate = Fate::Refused(Reason::Truncated);

#[test]
fn a_stranger_is_dropped_and_an_allowed_source_passes() {
    judged(&whole(), &syn4(STRANGER, OWN4, PORT), STRANGE);
    judged(&whole(), &syn4(GATE, OWN4, PORT), Fate::Passed(Reason::Admitted));
    judged(&whole(), &syn6(TCP, &[]), STRANGE);
}

#[test]
fn other_ports_protocols_and_addresses_are_untouched() {
    judged(&whole(), &syn4(STRANGER, OWN4, PORT + 1), Fate::Untouched);
    judged(&whole(), &syn4(STRANGER, ELSEWHERE4, PORT), Fate::Untouched);
    for protocol in [1, 17, 132] {
        let frame = ethernet(&[], ETHERTYPE_IPV4, &v4(protocol, STRANGER, OWN4, 0, 0, &tcp(PORT)));
        judged(&whole(), &frame, Fate::Untouched);
    }
    judged(&whole(), &ethernet(&[], 0x0806, &[0; 28]), Fate::Untouched);
    judged(&whole(), &[0; 10], Fate::Untouched);
}

#[test]
fn port_0_is_nobodys_though_it_stands_for_some_port_in_the_tables() {
    judged(&whole(), &syn4(STRANGER, OWN4, 0), Fate::Untouched);
    judged(&single(), &syn4(STRANGER, CONTAINER, 0), Fate::Untouched);
    assert!(!protects(&whole(), &Address::v4(OWN4), port::ANY, true));
}

#[test]
fn tunnels_pass_to_be_judged_after_decapsulation() {
    for protocol in [4, 41, 47, 50] {
        let inner = v4(TCP, STRANGER, OWN4, 0, 0, &tcp(PORT));
        let frame = ethernet(&[], ETHERTYPE_IPV4, &v4(protocol, STRANGER, OWN4, 0, 0, &inner));
        judged(&whole(), &frame, Fate::Untouched);
        judged(&whole(), &syn6(protocol, &[]), Fate::Untouched);
    }
}

#[test]
fn vlan_tags_are_looked_through_and_too_many_are_dropped() {
    let ip = v4(TCP, STRANGER, OWN4, 0, 0, &tcp(PORT));
    for tags in [&[0][..], &[10], &[0, 0], &[0, 0, 0, 10], &[0; MAX_TAGS]] {
        judged(&whole(), &ethernet(tags, ETHERTYPE_IPV4, &ip), STRANGE);
    }
    judged(&whole(), &ethernet(&[0; MAX_TAGS + 1], ETHERTYPE_IPV4, &ip), Fate::Refused(Reason::Tags));
    judged(&whole(), &ethernet(&[0; 40], ETHERTYPE_IPV4, &ip), Fate::Refused(Reason::Tags));
    let mut provider = ethernet(&[7], ETHERTYPE_IPV4, &ip);
    provider[12..14].copy_from_slice(&ETHERTYPE_QINQ.to_be_bytes());
    judged(&whole(), &provider, STRANGE);
}

#[test]
fn ipv4_options_do_not_hide_the_port() {
    for options in [4, 20, 40] {
        let frame = ethernet(&[], ETHERTYPE_IPV4, &v4(TCP, STRANGER, OWN4, options, 0, &tcp(PORT)));
        judged(&whole(), &frame, STRANGE);
    }
}

#[test]
fn the_first_fragment_is_judged_and_later_ones_pass() {
    let fragment = |bits, payload: &[u8]| ethernet(&[], ETHERTYPE_IPV4, &v4(TCP, STRANGER, OWN4, 0, bits, payload));
    judged(&whole(), &fragment(0x2000, &tcp(PORT)), STRANGE);
    judged(&whole(), &fragment(0x2000, &tcp(PORT)[..8]), CUT_SHORT);
    judged(&whole(), &fragment(0x2001, &tcp(PORT)), Fate::Untouched);
    judged(&whole(), &fragment(0x0003, &[0; 8]), Fate::Untouched);
    let first = [TCP, 0, 0, 1, 0, 0, 0, 9];
    judged(&whole(), &syn6(FRAGMENT, &first), STRANGE);
    let later = [TCP, 0, 0, 8, 0, 0, 0, 9];
    judged(&whole(), &syn6(FRAGMENT, &later), Fate::Untouched);
}

#[test]
fn a_truncated_header_is_dropped_only_where_something_is_protected() {
    let full = syn4(STRANGER, OWN4, PORT);
    for len in ETHERNET_LEN..full.len() {
        judged(&whole(), &full[..len], CUT_SHORT);
    }
    let other = syn4(STRANGER, ELSEWHERE4, PORT);
    judged(&whole(), &other[..other.len() - 1], Fate::Untouched);
    let full = syn6(HOP_BY_HOP, &[TCP, 0, 0, 0, 0, 0, 0, 0]);
    for len in ETHERNET_LEN..full.len() {
        judged(&whole(), &full[..len], CUT_SHORT);
    }
}

#[test]
fn ipv6_extension_headers_are_walked_as_far_as_the_bound() {
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION] {
        judged(&whole(), &syn6(kind, &[TCP, 0, 0, 0, 0, 0, 0, 0]), STRANGE);
        let long = [&[TCP, 2][..], &[0; 22]].concat();
        judged(&whole(), &syn6(kind, &long), STRANGE);
    }
    judged(&whole(), &syn6(AUTHENTICATION, &[&[TCP, 4][..], &[0; 22]].concat()), STRANGE);
    let chain = |headers: usize| {
        let mut chain = [DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(headers);
        let last = chain.len() - 8;
        chain[last] = TCP;
        syn6(DESTINATION, &chain)
    };
    judged(&whole(), &chain(MAX_EXTENSIONS), STRANGE);
    judged(&whole(), &chain(MAX_EXTENSIONS + 1), Fate::Refused(Reason::Extensions));
    judged(&single(), &chain(MAX_EXTENSIONS + 1), Fate::Untouched);
}

#[test]
fn a_mapped_source_on_the_wire_is_not_the_ipv4_source_it_claims_to_be() {
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(&GATE);
    let frame = ethernet(&[], ETHERTYPE_IPV6, &v6(TCP, mapped, OWN6, &tcp(PORT)));
    judged(&whole(), &frame, STRANGE);
}

#[test]
fn a_single_protected_address_leaves_the_hosts_own_port_alone() {
    judged(&single(), &syn4(STRANGER, CONTAINER, PORT), STRANGE);
    judged(&single(), &syn4(STRANGER, OWN4, PORT), Fate::Untouched);
    judged(&single(), &syn4(STRANGER, CONTAINER, PORT + 1), Fate::Untouched);
    let short = syn4(STRANGER, CONTAINER, PORT);
    judged(&single(), &short[..short.len() - 1], CUT_SHORT);
}

#[track_caller]
fn delivers(tables: &Fake, packet: &[u8], local_ring: bool, expected: Fate) {
    assert_eq!(Fate::from(delivered(packet, tables, local_ring)), expected);
}

fn with_flags(source: [u8; 4], destination: [u8; 4], flags: u8) -> Vec<u8> {
    let mut header = tcp(PORT);
    header[FLAGS_AT] = flags;
    v4(TCP, source, destination, 0, 0, &header)
}

#[test]
fn at_the_socket_a_stranger_is_dropped_however_it_came() {
    let packet = with_flags(STRANGER, OWN4, SYN);
    delivers(&whole(), &packet, true, STRANGE);
    delivers(&whole(), &packet, false, STRANGE);
    // Translated to a loopback address on its way.
    delivers(&whole(), &with_flags(STRANGER, [127, 0, 0, 1], SYN), true, STRANGE);
    delivers(&whole(), &with_flags(GATE, OWN4, SYN), true, Fate::Passed(Reason::Admitted));
    delivers(&whole(), &with_flags(STRANGER, ELSEWHERE4, SYN), true, Fate::Untouched);
    delivers(&whole(), &v6(TCP, STRANGER6, OWN6, &tcp(PORT)), true, STRANGE);
    delivers(&whole(), &packet[..19], true, CUT_SHORT);
    delivers(&whole(), &packet[..30], true, CUT_SHORT);
    delivers(&whole(), &[0x50; 40], true, Fate::Untouched);
}

#[test]
fn a_vouched_connection_reaches_another_namespace_and_nothing_follows_it() {
    let flow_of = |source, destination, state| {
        let (source, destination) = (Address::v4(source), Address::v4(destination));
        (flow_key(&source, 40_000u16.to_be_bytes(), &destination, PORT.to_be_bytes()), state)
    };
    let mut tables = single();
    tables.flows = HashMap::from([flow_of(OWN4, CONTAINER, flow::OPEN)]);
    let vouched = Fate::Passed(Reason::Vouched);
    for flags in [SYN, ACK, SYN | ACK, 1 | ACK] {
        delivers(&tables, &with_flags(OWN4, CONTAINER, flags), true, vouched);
        delivers(&tables, &with_flags(STRANGER, CONTAINER, flags), true, STRANGE);
    }
    tables.flows = HashMap::from([flow_of(OWN4, CONTAINER, flow::CLOSED)]);
    delivers(&tables, &with_flags(OWN4, CONTAINER, ACK), true, vouched);
    delivers(&tables, &with_flags(OWN4, CONTAINER, SYN), true, STRANGE);
    // What the flow says is no way past XDP.
    judged(&tables, &syn4(OWN4, CONTAINER, PORT), STRANGE);
}

#[test]
fn without_the_connect_ring_this_host_reaches_its_containers_but_nobody_forges_it() {
    let admitted = Fate::Passed(Reason::Admitted);
    delivers(&single(), &with_flags(OWN4, CONTAINER, SYN), false, admitted);
    delivers(&single(), &with_flags(OWN4, CONTAINER, SYN), true, STRANGE);
    delivers(&single(), &with_flags(STRANGER, CONTAINER, SYN), false, STRANGE);
    delivers(&whole(), &with_flags(OWN4, OWN4, SYN), false, STRANGE);
}

#[test]
fn connect_knows_loopback_and_wildcards_inside_only() {
    let tables = whole();
    let port = PORT.to_be_bytes();
    let mapped = |octets: [u8; 4]| {
        let mut address = [0; 16];
        address[10..12].fill(0xff);
        address[12..].copy_from_slice(&octets);
        Address::socket_v6(address)
    };
    let loopback6 = Address::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let inside_only = [
        Address::v4([127, 0, 0, 1]),
        Address::v4([0; 4]),
        Address::v6([0; 16]),
        loopback6,
        mapped([127, 0, 0, 1]),
        mapped([0; 4]),
    ];
    for address in inside_only {
        assert!(protects(&tables, &address, port, true), "{address:?}");
        assert!(!protects(&tables, &address, port, false), "{address:?}");
    }
    for address in [Address::v4(OWN4), Address::v6(OWN6), mapped(OWN4)] {
        assert!(protects(&tables, &address, port, true), "{address:?}");
        assert!(protects(&tables, &address, port, false), "{address:?}");
    }
    assert!(!protects(&tables, &Address::v4(ELSEWHERE4), port, true));
    assert!(!protects(&tables, &Address::v4(OWN4), (PORT + 1).to_be_bytes(), true));
    assert!(protects(&single(), &Address::v4(CONTAINER), port, false));
    assert!(!protects(&single(), &Address::v4([0; 4]), port, true));
}

#[test]
fn the_header_survives_its_bytes() {
    let header = Header {
        abi: crate::ABI_VERSION,
        mode: Mode::Enforce,
        connect_ring: true,
        ingress_ring: false,
        confirm_by: 0x1122_3344_5566_7788,
        interfaces: 300,
        netns: 0x0123_4567_89ab_cdef,
        generation: 7,
    };
    assert_eq!(Header::from_bytes(&header.to_bytes()), header);
}

#[test]
fn a_trial_refuses_until_its_time_is_over() {
    let header = |mode| Header {
        abi: 2,
        mode,
        connect_ring: true,
        ingress_ring: true,
        interfaces: 1,
        netns: 1,
        generation: 1,
        confirm_by: 100,
    };
    for (mode, before, after) in [(Mode::Audit, false, false), (Mode::Enforce, true, true), (Mode::Trial, true, false)]
    {
        let read = Header::from_bytes(&header(mode).to_bytes());
        assert_eq!((read.refuses(|| 100), read.refuses(|| 101)), (before, after), "{mode:?}");
    }
    assert!(Header::from_bytes(&[0xff; Header::LEN]).refuses(|| u64::MAX), "a policy that is missing");
}
