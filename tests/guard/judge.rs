//! The judge, as the kernel runs it, against the same code on the host: thousands of frames made from a seed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::{Map, MapData, PerCpuHashMap};
use aya::programs::{CgroupSkb, CgroupSkbAttachType, TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use portcullis_ebpf::decide::{self, MAX_EXTENSIONS, MAX_TAGS, Outcome, Tables};
use portcullis_ebpf::{Address, FLOW_LEN, Reason, Ring, Tally, local, port, target_key};

use super::world::World;

const FRAMES: usize = 15_000;
const ETHERNET: usize = 14;
/// The guarded namespace's cable; test_run(2) gives XDP frames to lo, which is 1.
const INTERFACE: u32 = 2;
const XDP_PASS: u32 = 2;

#[test]
fn the_kernel_judges_each_frame_as_the_host_does() {
    let Some(world) = World::new("the_kernel_judges_each_frame_as_the_host_does") else {
        return;
    };
    let container = IpAddr::from([172, 30, 0, 9]);
    let (gates, gate6) = ("198.51.100.0/24", "2001:db8:9::7");
    let options = format!("--protect {container}:6000 --allow {gates} --allow {gate6}");
    world.enforce(&options);
    let (tables, kernel) = (Expected::new(&world, container), Kernel::open(&world.pin));
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x9e37_79b9);
    world.within("in", move || compare(&tables, &kernel, seed));
}

fn compare(tables: &Expected, kernel: &Kernel, seed: u64) {
    let mut random = Random(seed);
    let mut seen: HashMap<(Ring, &str), usize> = HashMap::new();
    for number in 0..FRAMES {
        let (shape, frame) = tables.frame(&mut random);
        let mut outcomes = vec![(Ring::Xdp, decide::packet(&frame[..], tables))];
        // To the last ring comes what the kernel has taken for IP, with a whole header.
        if frame.len() >= ETHERNET + 40 {
            outcomes.push((Ring::Ingress, decide::delivered(&frame[ETHERNET..], tables, true)));
        }
        for (ring, outcome) in outcomes {
            let (passes, counted) = match outcome {
                Outcome::Untouched => (true, None),
                Outcome::Passed(why) => (true, Some(why)),
                Outcome::Refused(why, _) => (false, Some(why)),
            };
            let before = kernel.counts(ring);
            let found = kernel.run(ring, &frame);
            let after = kernel.counts(ring);
            let raised: Vec<Reason> =
                Reason::ALL.into_iter().filter(|reason| after[*reason as usize] != before[*reason as usize]).collect();
            assert_eq!(
                (found, raised.as_slice()),
                (passes, counted.as_slice()),
                "seed {seed}, frame {number}, {shape}, {ring:?}: {outcome:?} on the host: {frame:02x?}"
            );
            *seen.entry((ring, counted.map_or("untouched", Reason::name))).or_default() += 1;
        }
    }
    for ring in [Ring::Xdp, Ring::Ingress] {
        let reasons = Reason::ALL.iter().filter(|reason| reason.belongs_to(ring) && **reason != Reason::Vouched);
        for told in reasons.map(|reason| reason.name()).chain(["untouched"]) {
            let count = seen.get(&(ring, told)).copied().unwrap_or(0);
            assert!(count >= FRAMES / 1000, "{ring:?} hardly ever says {told}: {seen:?}");
        }
    }
}

/// The programs in force and their counters.
struct Kernel {
    xdp: Xdp,
    ingress: CgroupSkb,
    counters: PerCpuHashMap<MapData, [u8; Tally::LEN], u64>,
}

impl Kernel {
    fn open(pin: &Path) -> Self {
        let generation = pin.join("generation_1");
        let counters = Map::from_map_data(MapData::from_pin(pin.join("counters")).unwrap()).unwrap();
        Self {
            xdp: Xdp::from_pin(generation.join("guard_xdp"), XdpAttachType::Interface).unwrap(),
            ingress: CgroupSkb::from_pin(generation.join("guard_ingress"), CgroupSkbAttachType::Ingress).unwrap(),
            counters: PerCpuHashMap::try_from(counters).unwrap(),
        }
    }

    /// Whether the frame passes.
    fn run(&self, ring: Ring, frame: &[u8]) -> bool {
        let mut options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        if ring == Ring::Xdp {
            return self.xdp.test_run(options).unwrap().return_value == XDP_PASS;
        }
        // `struct __sk_buff`, all zeros but the interface: over lo everything would pass.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&INTERFACE.to_ne_bytes());
        options.ctx_in = Some(&context);
        self.ingress.test_run(options).unwrap().return_value == 1
    }

    fn counts(&self, ring: Ring) -> Vec<u64> {
        let interface = if ring == Ring::Xdp { 1 } else { INTERFACE };
        let count = |reason: Reason| {
            let tally = Tally { ring, reason, interface };
            self.counters.get(&tally.to_bytes(), 0).map_or(0, |values| values.iter().sum())
        };
        Reason::ALL.into_iter().map(count).collect()
    }
}

/// What the maps hold, by another hand than the loader's.
struct Expected {
    port: u16,
    own: Vec<(Address, u8)>,
    container: Address,
    sources: Vec<(Address, bool)>,
}

fn key(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::v4(ip.octets()),
        IpAddr::V6(ip) => Address::v6(ip.octets()),
    }
}

fn text(text: &str) -> Address {
    key(text.parse().unwrap())
}

impl Expected {
    fn new(world: &World, container: IpAddr) -> Self {
        let own = [
            (key(world.address(0, 1)), local::OWN),
            (key(world.address6(0, 1)), local::OWN),
            (text("127.0.0.1"), local::LOOPBACK),
            (text("127.9.9.9"), local::LOOPBACK),
            (text("::1"), local::LOOPBACK),
        ];
        let sources = [
            ("198.51.100.7", true),
            ("198.51.101.7", false),
            ("203.0.113.9", false),
            ("2001:db8:9::7", true),
            ("2001:db8:9::8", false),
            ("::ffff:198.51.100.7", false),
        ];
        Self {
            port: world.port,
            own: own.to_vec(),
            container: key(container),
            sources: sources.map(|(source, allowed)| (text(source), allowed)).to_vec(),
        }
    }

    /// A frame that is mostly right, and a name for what it is.
    fn frame(&self, random: &mut Random) -> (&'static str, Vec<u8>) {
        let mut frame = vec![2; 12];
        let tags = random.one_of(&[0, 0, 0, 1, 2, MAX_TAGS, MAX_TAGS + 1, 9]);
        for _ in 0..tags {
            frame.extend(random.one_of(&[[0x81, 0], [0x81, 0], [0x88, 0xa8]]));
            frame.extend(random.one_of(&[[0, 0], [0, 0], [0, 9], [0xe0, 0]]));
        }
        let v6 = random.below(2) == 0;
        let (mut shape, packet) = if v6 { self.ipv6(random) } else { self.ipv4(random) };
        frame.extend(match random.below(40) {
            0 => [8, 6],
            1 => [0x86, 0xdd],
            2 => [8, 0],
            _ if v6 => [0x86, 0xdd],
            _ => [8, 0],
        });
        frame.extend(packet);
        match random.below(8) {
            0 => {
                shape = "cut short";
                frame.truncate(14 + random.below(frame.len() - 14));
            }
            1 => {
                shape = "with a byte changed";
                let at = 12 + random.below(frame.len() - 12);
                frame[at] = random.below(256) as u8;
            }
            _ => {}
        }
        (shape, frame)
    }

    fn ipv4(&self, random: &mut Random) -> (&'static str, Vec<u8>) {
        let protocol = random.one_of(&[6, 6, 6, 6, 6, 1, 4, 17, 41, 47, 50, 132]);
        let words = random.one_of(&[5, 5, 5, 5, 6, 10, 15, 0, 4]);
        let fragment: u16 = random.one_of(&[0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0004, 0x1fff, 0x8000]);
        let mut packet = vec![0; usize::from(words).max(5) * 4];
        packet[0] = 0x40 | words;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&self.end(random, true, 4));
        packet[16..20].copy_from_slice(&self.end(random, false, 4));
        packet.extend(self.tcp(random));
        let shape = match (protocol, fragment & 0x1fff, words) {
            (6, 0, 5) => "IPv4",
            (6, 0, _) => "IPv4 with options",
            (6, ..) => "a later IPv4 fragment",
            _ => "another protocol over IPv4",
        };
        (shape, packet)
    }

    fn ipv6(&self, random: &mut Random) -> (&'static str, Vec<u8>) {
        const KINDS: [u8; 6] = [0, 43, 60, 51, 44, 135];
        let headers = random.one_of(&[0, 0, 0, 1, 2, 3, MAX_EXTENSIONS - 1, MAX_EXTENSIONS, MAX_EXTENSIONS + 1, 12]);
        let last = random.one_of(&[6, 6, 6, 6, 6, 17, 50, 59, 41]);
        let mut kinds: Vec<u8> = (0..headers).map(|_| KINDS[random.below(if headers > 4 { 4 } else { 6 })]).collect();
        kinds.push(last);
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds[0], 64];
        packet.extend(self.end(random, true, 16));
        packet.extend(self.end(random, false, 16));
        for pair in kinds.windows(2) {
            let units = random.one_of(&[0, 0, 0, 1, 2, 30]);
            let (len, field) = match pair[0] {
                44 => (8, 0),
                51 => (8 + 4 * usize::from(units), units),
                _ => (8 + 8 * usize::from(units), units),
            };
            let mut header = vec![0; len];
            header[0] = pair[1];
            header[1] = field;
            if pair[0] == 44 {
                header[3] = random.one_of(&[0, 1, 1, 8]);
            }
            packet.extend(header);
        }
        packet.extend(self.tcp(random));
        (if headers == 0 { "IPv6" } else { "IPv6 with extension headers" }, packet)
    }

    fn end(&self, random: &mut Random, source: bool, len: usize) -> Vec<u8> {
        let elsewhere = [text("192.0.2.200"), text("255.255.255.255"), text("2001:db8:5::5"), text("ff02::1")];
        let mut pool: Vec<Address> = if source {
            self.sources.iter().map(|(source, _)| *source).collect()
        } else {
            let own: Vec<Address> = self.own.iter().map(|(own, _)| *own).collect();
            own.iter().chain(&own).chain(&elsewhere).copied().chain([self.container]).collect()
        };
        pool.retain(|address| address.octets().len() == len);
        pool[random.below(pool.len())].octets().to_vec()
    }

    fn tcp(&self, random: &mut Random) -> Vec<u8> {
        let mut header = vec![0; 20 + random.one_of(&[0, 0, 0, 4, 100])];
        header[..2].copy_from_slice(&random.one_of(&[40_000u16, self.port]).to_be_bytes());
        let to = random.one_of(&[self.port, self.port, self.port, self.port, 6000, self.port + 1, 0]);
        header[2..4].copy_from_slice(&to.to_be_bytes());
        header[13] = random.one_of(&[2, 16, 18, 4, 1, 0]);
        header
    }
}

impl Tables for Expected {
    fn port(&self, key: &[u8; 2]) -> u8 {
        match u16::from_be_bytes(*key) {
            0 => port::WHOLE | port::SINGLE | port::UNSPECIFIED,
            number if number == self.port => port::WHOLE | port::UNSPECIFIED,
            6000 => port::SINGLE,
            _ => 0,
        }
    }

    fn local(&self, address: &Address) -> u8 {
        if address.octets()[0] == 127 && address.octets().len() == 4 {
            return local::LOOPBACK;
        }
        self.own.iter().find(|(own, _)| own == address).map_or(0, |(_, kind)| *kind)
    }

    fn target(&self, key: &[u8; Address::LEN + 2]) -> u8 {
        let known = [port::ANY, 6000u16.to_be_bytes()].map(|port| target_key(&self.container, port));
        if known.contains(key) { local::OWN } else { 0 }
    }

    fn allowed(&self, source: &Address) -> bool {
        source.octets()[..3] == [198, 51, 100] && source.octets().len() == 4 || self.sources.contains(&(*source, true))
    }

    fn flow(&self, _: &[u8; FLOW_LEN]) -> u8 {
        0
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
