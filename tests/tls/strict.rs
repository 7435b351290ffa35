//! What the testers of TLS servers look for: old protocols and weak suites, groups and signatures, by a ClientHello written by
//! hand wherever today's libraries have forgotten how; and that no bytes, however odd, bring the gate down.

mod hello;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use hello::{Answer, Hello};

use super::{TARGET, World, request, s_client};
use crate::support::image::Content;
use crate::support::pki::Key;
use crate::support::secure::Client;
use crate::support::{Gate, Serve, program, random, wait_for};

/// All that TLS 1.2 is spoken with, and TLS 1.3.
const SUITES: [u16; 9] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8];
/// x25519, P-256, P-384, and x25519 together with ML-KEM-768.
const GROUPS: [u16; 4] = [0x001d, 0x0017, 0x0018, 0x11ec];

const PROTOCOL_VERSION: Answer = Answer::Alert(70);
const HANDSHAKE_FAILURE: Answer = Answer::Alert(40);
const NO_APPLICATION_PROTOCOL: Answer = Answer::Alert(120);

/// A gate with a certificate of each kind, the one of RSA by its name.
fn both(world: &World) -> Gate {
    let rsa = world.ca.issue_as("rsa", &["rsa.test"], Key::Rsa2048, 30).unwrap();
    let serve = Serve::new(program()).unwrap().admin(world.admin).flag("--backend", world.registry.url());
    let config = world.dir.path().join("strict.toml");
    std::fs::write(&config, super::OPEN).unwrap();
    serve.tls(&world.identity).tls(&rsa).flag("--config", config).start().unwrap()
}

fn still_well(world: &World, gate: &mut Gate) {
    assert_eq!(Client::new(&world.ca, None).get(gate.addr(), TARGET).unwrap().0, 200, "{}", gate.log());
    assert!(gate.is_running() && !gate.log().contains("panicked"), "{}", gate.log());
}

#[test]
fn old_protocols_are_refused() {
    let world = World::new("tls-old");
    let mut gate = both(&world);
    for version in [0x0300, 0x0301, 0x0302] {
        let mut hello = Hello::tls12();
        hello.version = version;
        assert_eq!(hello.ask(gate.addr()), PROTOCOL_VERSION, "{version:04x}");
        // The same as a list, and with TLS 1.2 for those who do not read it.
        let mut hello = Hello::tls13();
        hello.versions = vec![version];
        assert_eq!(hello.ask(gate.addr()), PROTOCOL_VERSION, "{version:04x} as a list");
    }
    // SSL 2.0 has records of its own.
    let old = [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[7, 0, 0xc0, 3, 0, 0x80, 1], &[0x55; 30]].concat();
    assert!(!matches!(hello::tell(gate.addr(), &old), Answer::Hello(_)));
    assert_eq!(world.failures("incompatible"), 6, "{}", gate.log());
    still_well(&world, &mut gate);
}

/// All 65,536 numbers, so that nothing weak can have been forgotten: no NULL, EXPORT, anonymous, RC4, 3DES, CBC, static RSA,
/// finite-field Diffie-Hellman, and none that has not been invented yet.
#[test]
fn no_suite_but_these_is_taken() {
    let world = World::new("tls-suites");
    let mut gate = both(&world);
    let addr = gate.addr();
    for (base, name) in [(Hello::tls12(), "localhost"), (Hello::tls12(), "rsa.test"), (Hello::tls13(), "localhost")] {
        let base = Hello { name, ..base };
        let others: Vec<u16> = (0..=u16::MAX).filter(|suite| !SUITES.contains(suite)).collect();
        for suites in others.chunks(7_000) {
            let hello = Hello { suites: suites.to_vec(), ..base.clone() };
            assert_eq!(hello.ask(addr), HANDSHAKE_FAILURE, "{:04x} to {:04x}", suites[0], suites[suites.len() - 1]);
        }
        let taken: Vec<u16> = SUITES
            .into_iter()
            .filter(|suite| {
                let answer = Hello { suites: vec![*suite], ..base.clone() }.ask(addr);
                matches!(answer, Answer::Hello(said) if said.suite == *suite)
            })
            .collect();
        let expected = match (base.versions.is_empty(), name) {
            (false, _) => &SUITES[..3],
            (true, "localhost") => &SUITES[3..6],
            (true, _) => &SUITES[6..],
        };
        assert_eq!(taken, expected, "{name}");
    }
    still_well(&world, &mut gate);
}

#[test]
fn no_weak_group_or_signature_is_taken() {
    let world = World::new("tls-groups");
    let mut gate = both(&world);
    let others: Vec<u16> = (0..=u16::MAX).filter(|group| !GROUPS.contains(group)).collect();
    for groups in others.chunks(7_000) {
        for base in [Hello::tls12(), Hello::tls13()] {
            let hello = Hello { groups: groups.to_vec(), ..base };
            assert_eq!(hello.ask(gate.addr()), HANDSHAKE_FAILURE, "{:04x} and on", groups[0]);
        }
    }
    for group in GROUPS {
        let hello = Hello { groups: vec![group], ..Hello::tls13() };
        assert!(matches!(hello.ask(gate.addr()), Answer::Hello(said) if said.is_retry), "{group:04x}");
    }
    // MD5 and SHA-1 with RSA, DSA and ECDSA, and anonymous ones.
    let weak = vec![0x0101, 0x0102, 0x0103, 0x0201, 0x0202, 0x0203, 0x0001, 0x0000];
    for name in ["localhost", "rsa.test"] {
        for base in [Hello::tls12(), Hello::tls13()] {
            let hello = Hello { signatures: weak.clone(), name, key: true, ..base };
            assert!(hello.is_refused(gate.addr(), &HANDSHAKE_FAILURE), "{name}");
        }
    }
    still_well(&world, &mut gate);
}

#[test]
fn nothing_is_compressed_beats_or_speaks_another_protocol() {
    let world = World::new("tls-extensions");
    let mut gate = both(&world);
    for base in [Hello::tls12(), Hello::tls13()] {
        // DEFLATE and LZS beside none, where that is allowed at all.
        let hello = Hello { compressions: vec![1, 64, 0], more: hello::heartbeat(), ..base.clone() };
        match hello.ask(gate.addr()) {
            Answer::Hello(said) => {
                assert_eq!(said.compression, 0);
                assert!(!said.extensions.contains(&15), "it agrees to heartbeats: {said:?}");
            }
            answer => assert!(!base.versions.is_empty() && matches!(answer, Answer::Alert(_)), "{answer:?}"),
        }
        let hello = Hello { compressions: vec![1, 64], ..base.clone() };
        assert!(matches!(hello.ask(gate.addr()), Answer::Alert(_)));
        for protocols in [&["h2"][..], &["h2", "http/1.0", "spdy/3.1", "acme-tls/1"]] {
            let hello = Hello { more: hello::alpn(protocols), key: true, ..base.clone() };
            assert!(hello.is_refused(gate.addr(), &NO_APPLICATION_PROTOCOL), "{protocols:?}");
        }
    }
    let Answer::Hello(said) = Hello::tls12().ask(gate.addr()) else { panic!("no TLS 1.2") };
    // Renegotiation is told to be secure (and never granted), the master secret is bound to the handshake.
    assert!(said.extensions.contains(&0xff01) && said.extensions.contains(&0x17), "{said:?}");
    // Who could speak TLS 1.3 and was talked out of it sees that here: what TLS_FALLBACK_SCSV was for.
    assert_eq!(&said.random[24..], b"DOWNGRD\x01");

    // A heartbeat that wants more back than it brings.
    let bleed = [&[0x18, 3, 3, 0, 3, 1, 0x40, 0][..]].concat();
    for before in [vec![], Hello::tls12().record(), Hello::tls13().record()] {
        let got = hello::tell_raw(gate.addr(), &[before, bleed.clone()].concat());
        assert!(!hello::records(&got).iter().any(|(kind, _)| *kind == 0x18), "{got:?}");
        assert!(got.len() < 8_000, "{}", got.len());
    }
    still_well(&world, &mut gate);
}

#[test]
fn a_forged_change_of_ciphers_is_no_key() {
    let world = World::new("tls-ccs");
    let mut gate = both(&world);
    let change = [0x14, 3, 3, 0, 1, 1];
    // In front of everything, and in the place of the client's key.
    assert!(!matches!(hello::tell(gate.addr(), &[&change[..], &Hello::tls12().record()].concat()), Answer::Hello(_)));
    let got =
        hello::tell_raw(gate.addr(), &[&Hello::tls12().record()[..], &change, &[0x16, 3, 3, 0, 40], &[0; 40]].concat());
    let records = hello::records(&got);
    assert!(records.iter().any(|(kind, body)| *kind == 0x15 && body[..] == [2, 10]), "{records:?}");
    assert!(!records.iter().any(|(kind, _)| *kind == 0x14), "{records:?}");
    still_well(&world, &mut gate);
}

#[test]
fn nothing_is_taken_before_the_handshake_is_over() {
    let world = World::new("tls-early");
    let gate = world.gate("", "");
    let (session, early) = (world.dir.path().join("session"), world.dir.path().join("early"));
    std::fs::write(&early, request("/v2/team/early/tags/list")).unwrap();
    let (session, early) = (session.to_str().unwrap(), early.to_str().unwrap());
    let got = s_client(gate.addr(), &["-tls1_3", "-sess_out", session], &request(TARGET));
    assert!(got.contains("Max Early Data: 0"), "{got}");
    let got = s_client(gate.addr(), &["-tls1_3", "-sess_in", session, "-early_data", early], &request(TARGET));
    assert!(got.contains("Reused, TLSv1.3") && !got.contains("Early data was accepted"), "{got}");
    assert!(world.registry.seen().iter().all(|seen| !seen.target.contains("early")), "{:?}", world.registry.seen());
}

/// The keys change every six hours, so that a ticket lives for twelve at the most; they are made anew at each start, are the
/// same for all workers, and no ticket is given out twice.
#[test]
fn tickets_are_short_lived_and_forgotten_at_the_end() {
    let world = World::new("tls-tickets");
    let session = world.dir.path().join("session");
    let session = session.to_str().unwrap();
    let ticket = |text: &str| -> String {
        let lines = text.lines().skip_while(|line| !line.contains("TLS session ticket:")).skip(1);
        lines.take_while(|line| line.contains(" - ")).map(|line| line.trim().get(..54).unwrap_or(line)).collect()
    };
    let mut seen = Vec::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let gate = world.gate("", "");
        let got = s_client(gate.addr(), &[version, "-sess_out", session], &request(TARGET));
        let hint = got.lines().find_map(|line| line.trim().strip_prefix("TLS session ticket lifetime hint: "));
        let seconds: u64 =
            hint.and_then(|hint| hint.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{got}"));
        assert!(seconds <= 12 * 3600, "{seconds}");
        seen.push(ticket(&got));
        // A worker for each processor: any of them takes it.
        for _ in 0..8 {
            let got = s_client(gate.addr(), &[version, "-sess_in", session], &request(TARGET));
            assert!(got.contains("Reused, TLSv"), "{got}");
            seen.extend(Some(ticket(&got)).filter(|_| version == "-tls1_3"));
        }
        drop(gate);
        let gate = world.gate("", "");
        let got = s_client(gate.addr(), &[version, "-sess_in", session], &request(TARGET));
        assert!(got.contains("New, TLSv") && got.contains("HTTP/1.1 200"), "{got}");
    }
    assert!(seen.iter().all(|ticket| ticket.len() > 100), "{seen:?}");
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all, "one ticket for two connections");
}

/// Hellos with bytes changed, cut, doubled and made up. `PORTCULLIS_SEED=N` makes the same ones again.
#[test]
fn garbage_ends_in_an_alert_or_nothing() {
    let seed = std::env::var("PORTCULLIS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(random);
    let world = World::new("tls-garbage");
    let mut gate = world.gate("", "[limits]\ntls_timeout = \"2s\"");
    let mut content = Content(seed);
    let mut below = move |n: usize| {
        let mut bytes = [0; 8];
        content.fill(&mut bytes);
        usize::try_from(u64::from_be_bytes(bytes) % n as u64).unwrap()
    };
    for round in 0..400 {
        let mut bytes = if round % 2 == 0 { Hello::tls12().record() } else { Hello::tls13().record() };
        for _ in 0..=below(6) {
            let at = below(bytes.len());
            match below(5) {
                0 => bytes[at] = below(256) as u8,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, below(256) as u8),
                3 => bytes.extend_from_within(at..),
                _ => (0..below(200)).for_each(|_| bytes.push(below(256) as u8)),
            }
        }
        let mut stream = TcpStream::connect(gate.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        assert!(!got.starts_with(b"HTTP"), "seed {seed}, round {round}: {bytes:?}");
    }
    wait_for("nobody is left", || world.metric("portcullis_connections") == 0);
    assert!(gate.is_running() && !gate.log().contains("panicked"), "seed {seed}\n{}", gate.log());
    still_well(&world, &mut gate);
}

/// A hello in as many records as it has bytes is a hello; one that never ends is none.
#[test]
fn a_hello_may_come_in_pieces_and_not_for_ever() {
    let world = World::new("tls-pieces");
    let mut gate = both(&world);
    let hello = Hello::tls12().record();
    let pieces: Vec<u8> = hello[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
    assert!(matches!(hello::tell(gate.addr(), &pieces), Answer::Hello(_)));
    endless(gate.addr());
    still_well(&world, &mut gate);
}

/// Says that 16 MiB of hello are to come, and sends them as long as anybody listens.
fn endless(addr: SocketAddr) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let beginning = [0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
    let more = [&[0x16, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let taken = stream.write_all(&beginning).and_then(|()| (0..1024).try_for_each(|_| stream.write_all(&more)));
    assert!(taken.is_err(), "it listens to 16 MiB of a hello");
}

/// After the handshake, too, what is no record of this session ends it and nothing else; also in the middle of a request, and
/// in the middle of a message of the handshake that goes on and on.
#[test]
fn garbage_on_a_finished_session_ends_it_alone() {
    let world = World::new("tls-after");
    let mut gate = both(&world);
    let record = |kind: u8, body: &[u8]| [&[kind, 3, 3][..], &(body.len() as u16).to_be_bytes(), body].concat();
    let broken = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        record(23, &[0x55; 100]),
        record(22, &[0x55; 100]),
        record(21, &[2, 40]),
        record(20, &[1]),
        record(24, &[1, 0x40, 0]),
        record(23, &[0; 17_000]),
        [record(23, &[1; 300]), record(23, &[2; 300])].concat(),
        record(23, &[0x55; 100])[..50].to_vec(),
    ];
    for bytes in &broken {
        for begun in
            ["", "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Be", "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n"]
        {
            let mut stream = Client::new(&world.ca, None).connect(gate.addr()).unwrap();
            stream.write_all(begun.as_bytes()).unwrap();
            stream.flush().unwrap();
            let _ = stream.sock.write_all(bytes);
            let _ = stream.sock.shutdown(Shutdown::Write);
            let mut got = Vec::new();
            let _ = stream.sock.read_to_end(&mut got);
        }
    }
    wait_for("nobody is left", || world.metric("portcullis_connections") == 0);
    still_well(&world, &mut gate);
}
