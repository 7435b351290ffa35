//! Attacks from the wire that no connect(2) would make: each reaches the server's TCP without the guard.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya_obj::programs::XdpAttachType;
use portcullis_ebpf::decide::MAX_TAGS;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use super::frames::{ACK, SYN, TCP, ipv4, ipv6, segment};
use super::world::{World, skipped};

const LIMIT: Duration = Duration::from_secs(10);
const MORE_FRAGMENTS: u16 = 0x2000;

struct Attack {
    name: &'static str,
    packets: Vec<Vec<u8>>,
    to: IpAddr,
}

/// Sends whole IP packets from the namespace outside.
fn send(world: &World, packets: Vec<Vec<u8>>, to: IpAddr) {
    world.within("out", move || {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        for packet in packets {
            sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0)).unwrap();
        }
    });
}

/// Segments that TCP has received in the guarded namespace.
fn received(world: &World) -> u64 {
    let snmp = world.within("in", || fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let names = lines.next().unwrap().split(' ');
    let at = names.clone().position(|name| name == "InSegs").unwrap();
    lines.next().unwrap().split(' ').nth(at).unwrap().parse().unwrap()
}

#[track_caller]
pub(super) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    assert!(holds_soon(holds), "{what}");
}

/// Whether something comes true within a generous time.
pub(super) fn holds_soon(mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > LIMIT {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

fn attacks(world: &World) -> Vec<Attack> {
    // Sources that nobody has, so that nothing is answered and nothing else is counted.
    let (from, to) = (world.address(0, 77), world.address(0, 1));
    let (from6, to6) = (world.address6(0, 77), world.address6(0, 1));
    let (IpAddr::V4(a), IpAddr::V4(b), IpAddr::V6(c), IpAddr::V6(d)) = (from, to, from6, to6) else {
        panic!("families");
    };
    let tcp = |flags| segment(from, to, (40_000, world.port), flags);
    let tcp6 = |flags| segment(from6, to6, (40_000, world.port), flags);
    let whole = |options: &[u8], payload: &[u8]| vec![ipv4(a, b, options, 0, 7, payload)];
    let chain = |kinds: &[u8]| vec![ipv6(c, d, kinds[0], &[extensions(kinds), tcp6(SYN)].concat())];
    let attack = |name, packets| Attack { name, packets, to };
    let attack6 = |name, packets| Attack { name, packets, to: to6 };
    let mut found = vec![
        attack("a SYN", whole(&[], &tcp(SYN))),
        attack("an ACK out of nothing", whole(&[], &tcp(ACK))),
        attack("a SYN behind IPv4 options", whole(&[1; 40], &tcp(SYN))),
        attack("fragments in order", fragments(a, b, 8, &tcp(SYN), false)),
        attack("fragments, last one first", fragments(a, b, 9, &tcp(SYN), true)),
        attack6("a SYN over IPv6", vec![ipv6(c, d, TCP, &tcp6(SYN))]),
        attack6("an ACK over IPv6", vec![ipv6(c, d, TCP, &tcp6(ACK))]),
        attack6("destination options", chain(&[60])),
        attack6("hop-by-hop and destination options", chain(&[0, 60, 60])),
        attack6("an atomic fragment", chain(&[44])),
    ];
    found.push(attack6("IPv6 fragments, last one first", fragments6(c, d, &tcp6(SYN))));
    found
}

/// Extension headers of eight octets each; the last one leads to TCP.
fn extensions(kinds: &[u8]) -> Vec<u8> {
    let next = kinds[1..].iter().copied().chain([TCP]);
    // PadN fills the six octets of options; a fragment header has offset 0 and no more to come.
    kinds
        .iter()
        .zip(next)
        .flat_map(|(kind, next)| if *kind == 44 { [next, 0, 0, 0, 0, 0, 0, 9] } else { [next, 0, 1, 4, 0, 0, 0, 0] })
        .collect()
}

fn fragments(from: Ipv4Addr, to: Ipv4Addr, id: u16, segment: &[u8], reversed: bool) -> Vec<Vec<u8>> {
    let mut both =
        vec![ipv4(from, to, &[], MORE_FRAGMENTS, id, &segment[..16]), ipv4(from, to, &[], 2, id, &segment[16..])];
    if reversed {
        both.reverse();
    }
    both
}

/// The whole header has to be in the first one, or the kernel itself refuses it.
fn fragments6(from: Ipv6Addr, to: Ipv6Addr, segment: &[u8]) -> Vec<Vec<u8>> {
    let piece = |field: u8, bytes: &[u8]| ipv6(from, to, 44, &[&[TCP, 0, 0, field, 0, 0, 0, 5], bytes].concat());
    vec![piece(24, &segment[24..]), piece(1, &segment[..24])]
}

#[test]
fn nothing_made_by_hand_reaches_the_server() {
    let Some(world) = World::new("nothing_made_by_hand_reaches_the_server") else {
        return;
    };
    world.serve("in", world.port);
    // The kernel would have to ask for the address of the door first.
    world.reach("out", world.door()).unwrap();
    world.reach("out", world.door6()).unwrap();
    for attack in attacks(&world) {
        let before = received(&world);
        send(&world, attack.packets, attack.to);
        eventually(attack.name, || received(&world) > before);
    }
    world.enforce("");
    let before = received(&world);
    for attack in attacks(&world) {
        let refused = world.dropped("xdp");
        send(&world, attack.packets, attack.to);
        eventually(attack.name, || world.dropped("xdp") > refused);
        assert_eq!(received(&world), before, "{}", attack.name);
    }
}

#[test]
fn tags_that_the_kernel_strips_hide_nothing() {
    let Some(world) = World::new("tags_that_the_kernel_strips_hide_nothing") else {
        return;
    };
    if Command::new("python3").arg("--version").output().is_err() {
        skipped("tags_that_the_kernel_strips_hide_nothing", "needs python3, to send frames with tags");
        return;
    }
    world.serve("in", world.port);
    let (IpAddr::V4(from), IpAddr::V4(to)) = (world.address(0, 77), world.address(0, 1)) else { panic!("families") };
    let syn = segment(from.into(), to.into(), (40_000, world.port), SYN);
    let packet = ipv4(from, to, &[], 0, 3, &syn);
    let mac: String = world.mac("in", "in0").split(':').collect();
    let bytes: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    // Any number of tags with VID 0 is stripped; even more than the guard looks through.
    let stacks = [1, 2, MAX_TAGS, MAX_TAGS + 1, 12];
    let frames = stacks.map(|tags| format!("{mac}020202020202{}0800{bytes}", "81000000".repeat(tags)));
    let before = received(&world);
    world.send_frames("out", "out0", &frames);
    eventually("frames with tags arrive", || received(&world) >= before + 5);
    world.enforce("");
    let before = received(&world);
    world.send_frames("out", "out0", &frames);
    eventually("frames with tags are dropped", || world.dropped("xdp") >= 5);
    assert_eq!(received(&world), before);
    assert_eq!(world.count("too-many-tags"), 2);
}

#[test]
fn two_hundred_swaps_under_a_flood_let_nothing_through() {
    let Some(world) = World::new("two_hundred_swaps_under_a_flood_let_nothing_through") else {
        return;
    };
    world.serve("in", world.port);
    world.reach("out", world.door()).unwrap();
    let flood = Flood::begin(&world);
    let before = received(&world);
    eventually("without the guard the flood arrives", || received(&world) > before + 1000);

    world.enforce("");
    let first = Xdp::from_pin(world.pin.join("generation_1/guard_xdp"), XdpAttachType::Interface).unwrap();
    world.enforce("--allow 192.0.2.1");
    let second = Xdp::from_pin(world.pin.join("generation_2/guard_xdp"), XdpAttachType::Interface).unwrap();
    let name = fs::read_dir(&world.pin).unwrap().flatten().map(|entry| entry.file_name());
    let name = name.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("link_xdp_")).unwrap();

    let (arrived, dropped, sent) = (received(&world), world.dropped("xdp"), flood.sent());
    let mut programs = [first, second];
    for round in 0..200 {
        let link = FdLink::from(PinnedLink::from_pin(world.pin.join(&name)).unwrap());
        let program = &mut programs[round % 2];
        let id = program.attach_to_link(XdpLink::try_from(link).unwrap()).unwrap();
        drop(program.take_link(id).unwrap());
        // At least something must have been sent between two swaps.
        let so_far = flood.sent();
        while flood.sent() < so_far + 10 {
            thread::yield_now();
        }
    }
    for round in 0..3 {
        world.enforce(&format!("--allow 192.0.2.{}", round + 2));
    }
    let (sent, dropped) = (flood.sent() - sent, world.dropped("xdp") - dropped);
    assert_eq!(received(&world), arrived, "of {sent} sent");
    assert!(dropped > sent / 2, "{dropped} of {sent}: the flood did not reach the guard");
    flood.end();
}

/// SYNs to the door, as fast as one thread can send them.
pub(super) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Flood {
    pub(super) fn begin(world: &World) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (from, to) = (world.address(0, 77), world.address(0, 1));
        let (IpAddr::V4(a), IpAddr::V4(b)) = (from, to) else { panic!("families") };
        // An ACK out of nothing leaves no half-open connection behind.
        let packet = ipv4(a, b, &[], 0, 1, &segment(from, to, (40_000, world.port), ACK));
        let task = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    if sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0)).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        Self { stop, sent, thread: world.spawn_within("out", task) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
