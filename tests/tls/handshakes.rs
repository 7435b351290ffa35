//! Handshakes that take too long, are too many, or are none.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::{TARGET, World};
use crate::support::secure::Client;
use crate::support::wait_for;

/// The first bytes of a ClientHello, and no more of it.
const BEGINNING: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01";

fn open(world_gate: &crate::support::Gate, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(world_gate.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

#[test]
fn a_handshake_has_a_deadline() {
    let world = World::new("tls-deadline");
    let gate = world.gate("", "[limits]\ntls_timeout = \"300ms\"");
    for bytes in [&b""[..], BEGINNING] {
        let mut got = Vec::new();
        let _ = open(&gate, bytes).read_to_end(&mut got);
        assert!(got.len() <= 7, "an alert at most: {got:?}");
    }
    wait_for("both timed out", || world.failures("timeout") == 2);
}

#[test]
fn handshakes_wait_for_their_turn_and_the_silent_take_none() {
    let world = World::new("tls-turns");
    let gate = world.gate("", "[limits]\nhandshakes = 1\ntls_timeout = \"20s\"");
    let client = Client::new(&world.ca, None);
    // Several that say nothing are in nobody's way.
    let silent: Vec<TcpStream> = (0..5).map(|_| open(&gate, b"")).collect();
    assert_eq!(client.get(gate.addr(), TARGET).unwrap().0, 200);

    let holds = open(&gate, BEGINNING);
    wait_for("it has the turn", || world.metric("portcullis_tls_handshakes_under_way") == 1);
    let (addr, waiting) = (gate.addr(), client.clone());
    let waits = thread::spawn(move || waiting.get(addr, TARGET).unwrap().0);
    wait_for("both are there", || world.metric("portcullis_connections") >= 7);
    // However long it waits: as long as the turn is taken, it is not served.
    thread::sleep(Duration::from_millis(300));
    assert!(!waits.is_finished(), "it did not wait for its turn");
    drop(holds);
    assert_eq!(waits.join().unwrap(), 200, "{}", gate.log());
    drop(silent);
}

#[test]
fn what_is_no_tls_is_counted_and_told_once() {
    let world = World::new("tls-none");
    let gate = world.gate("", "");
    for _ in 0..20 {
        let mut got = Vec::new();
        let _ = open(&gate, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").read_to_end(&mut got);
        assert!(!got.starts_with(b"HTTP"), "{got:?}");
    }
    wait_for("all are counted", || world.failures("malformed") == 20);
    assert!(gate.says("no TLS with 127.0.0.1"), "{}", gate.log());
    let lines = gate.log().matches("no TLS with").count();
    assert!(lines <= 10, "{lines} lines\n{}", gate.log());
}
