//! What the programs tell: events at a bounded rate, and the mode that one write switches.

use std::net::SocketAddr;
use std::path::Path;

use aya::maps::{Array, Map, MapData, RingBuf};
use portcullis_ebpf::{Address, EVENTS_A_SECOND, Event, Header, Mode, Reason, Ring, Verdict};

use super::wire::{Flood, eventually};
use super::world::World;

struct Events(RingBuf<MapData>);

impl Events {
    fn open(pin: &Path) -> Self {
        let map = Map::from_map_data(MapData::from_pin(pin.join("events")).unwrap()).unwrap();
        Self(RingBuf::try_from(map).unwrap())
    }

    fn read(&mut self) -> Vec<Event> {
        let mut found = Vec::new();
        while let Some(item) = self.0.next() {
            found.push(Event::from_bytes(&item).expect("an event"));
        }
        found
    }
}

fn switch(world: &World, mode: Mode) {
    let map = Map::from_map_data(MapData::from_pin(world.pin.join("generation_1/policy")).unwrap()).unwrap();
    let mut policy = Array::<_, [u8; Header::LEN]>::try_from(map).unwrap();
    let header = Header { mode, ..Header::from_bytes(&policy.get(&0, 0).unwrap()) };
    policy.set(0, header.to_bytes(), 0).unwrap();
}

#[test]
fn an_audit_refuses_nothing_and_tells_what_it_would_have() {
    let Some(world) = World::new("an_audit_refuses_nothing_and_tells_what_it_would_have") else {
        return;
    };
    world.serve("in", world.port);
    world.cable(("in", "in1", 1, 1), ("out", "out1", 1, 2));
    let late = SocketAddr::new(world.address(1, 1), world.port);
    world.enforce("");
    let mut events = Events::open(&world.pin);
    switch(&world, Mode::Audit);
    world.open_everywhere();
    world.reach("out", late).unwrap();
    let told = events.read();
    assert!(told.iter().all(|event| event.verdict == Verdict::Audited), "{told:?}");
    for (ring, reason) in [(Ring::Xdp, Reason::Stranger), (Ring::Connect, Reason::Unvouched)] {
        assert!(told.iter().any(|event| (event.ring, event.reason) == (ring, reason)), "{told:?}");
    }
    // A process of this host, though in another namespace: the ingress ring has it from the one that nobody guards.
    let ingress = told.iter().find(|event| event.ring == Ring::Ingress).expect("an event of the ingress ring");
    assert_eq!((ingress.reason, ingress.port), (Reason::Stranger, world.port));

    switch(&world, Mode::Enforce);
    world.shut_from_inside();
    world.shut_from_outside();
    let told = events.read();
    assert!(told.iter().all(|event| event.verdict == Verdict::Refused), "{told:?}");
    let inside = told.iter().find(|event| event.ring == Ring::Connect && event.uid == 65_534).expect("nobody's event");
    assert_eq!(inside.command(), b"bash");
    assert_eq!((inside.destination, inside.port), (Address::v4([127, 0, 0, 1]), world.port));
    assert!(inside.pid > 1);
    let outside = told.iter().find(|event| event.ring == Ring::Xdp).expect("an event from outside");
    assert_eq!(outside.port, world.port);
    assert!(outside.interface > 1 && outside.source_port > 0 && outside.pid == 0);
    assert!(told.windows(2).filter(|pair| pair[0].ring == pair[1].ring).all(|pair| pair[0].time <= pair[1].time));
}

#[test]
fn a_flood_is_counted_whole_and_told_in_part() {
    let Some(world) = World::new("a_flood_is_counted_whole_and_told_in_part") else {
        return;
    };
    world.serve("in", world.port);
    world.reach("out", world.door()).unwrap();
    world.enforce("");
    let mut events = Events::open(&world.pin);
    let flood = Flood::begin(&world);
    let mut told = Vec::new();
    eventually("the flood goes on over a second", || {
        told.extend(events.read());
        told.iter().any(|event| event.suppressed > 1000)
    });
    flood.end();
    told.extend(events.read());
    let seconds = told.last().unwrap().time.saturating_sub(told[0].time) / 1_000_000_000 + 2;
    let processors = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(told.len() as u64 <= EVENTS_A_SECOND * seconds * processors, "{} in {seconds} s", told.len());
    let hidden: u64 = told.iter().map(|event| event.suppressed).sum();
    assert!(world.dropped("xdp") >= told.len() as u64 + hidden);
}
