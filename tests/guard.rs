//! The guard against a real kernel, in network namespaces that each test makes and removes.
//!
//! Every attack is first shown to work without the guard.

#[path = "guard_commands.rs"]
mod commands;
mod events;
mod fleet;
mod frames;
mod gates;
mod judge;
mod paths;
mod wire;
mod world;

use std::fs;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use portcullis::edge::guard::vouch::Voucher;
use portcullis_ebpf::Header;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, connect, ipproto, sendto, socket};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use world::{BINARY, World, open, skipped};

#[test]
fn the_door_is_shut_from_outside_and_inside_and_opens_again() {
    let Some(world) = World::new("the_door_is_shut_from_outside_and_inside_and_opens_again") else {
        return;
    };
    world.serve("in", world.port);
    world.serve("in", world.port + 1);
    world.open_everywhere();

    let said = world.enforce("");
    assert!(said.contains("in0: native"), "{said}");
    world.shut_from_outside();
    world.shut_from_inside();
    assert!(world.count("stranger") >= 2);
    assert!(world.count("unvouched") >= 10);
    world.reach("out", SocketAddr::new(world.address(0, 1), world.port + 1)).expect("another port");
    world.reach_as_nobody("in", "127.0.0.1", world.port + 1).expect("another port");

    let status = world.guard("status");
    assert_eq!(status.status.code(), Some(0));
    let table = String::from_utf8(status.stdout).unwrap();
    assert!(table.lines().any(|line| line.split_whitespace().eq(["xdp", "in0", "native", "yes"])), "{table}");

    let output = world.guard("detach");
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("THE GUARD IS OFF"));
    assert!(!world.pin.exists());
    assert_eq!(world.guard("status").status.code(), Some(3));
    world.open_everywhere();
}

#[test]
fn fast_open_and_multipath_are_no_way_round() {
    let Some(world) = World::new("fast_open_and_multipath_are_no_way_round") else {
        return;
    };
    world.serve("in", world.port);
    let door = SocketAddr::from(([127, 0, 0, 1], world.port));
    let fast_open = move || {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
        sendto(&socket, b"x", flags, &door).map(drop)
    };
    let multipath = move || {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP))?;
        connect(&socket, &door)
    };
    assert_eq!(world.within("in", fast_open), Ok(()));
    let has_multipath = world.within("in", multipath) == Ok(());
    world.enforce("");
    assert_eq!(world.within("in", fast_open), Err(Errno::PERM));
    if has_multipath {
        assert_eq!(world.within("in", multipath), Err(Errno::PERM));
    } else {
        skipped("fast_open_and_multipath_are_no_way_round", "multipath half: this kernel has no MPTCP");
    }
}

#[test]
fn another_namespace_keeps_its_own_port() {
    let Some(world) = World::new("another_namespace_keeps_its_own_port") else {
        return;
    };
    world.serve("in", world.port);
    world.serve("out", world.port);
    world.reach("out", world.door()).unwrap();
    world.enforce("");
    let theirs = SocketAddr::new(world.address(0, 2), world.port);
    world.reach("in", theirs).expect("a port of another host, from the guarded one");
    world.reach("out", theirs).expect("its own address");
    for host in ["127.0.0.1", "::1", "0.0.0.0"] {
        world.reach_as_nobody("out", host, world.port).expect(host);
    }
    // The same ring stops the other namespace where the address is the guarded one's.
    let told = world.reach_as_nobody("out", &world.address(0, 1).to_string(), world.port).unwrap_err();
    assert!(told.contains("Operation not permitted"), "{told}");
}

#[test]
fn a_vouched_socket_passes_and_the_vouching_dies_with_it() {
    let Some(world) = World::new("a_vouched_socket_passes_and_the_vouching_dies_with_it") else {
        return;
    };
    world.serve("in", world.port);
    world.enforce("");
    let voucher = Voucher::open(Some(&world.pin)).unwrap().expect("a guard");
    let door = SocketAddr::from(([127, 0, 0, 1], world.port));
    let from = SocketAddr::from(([127, 0, 0, 1], world.port + 5));

    let mut stream = world.within("in", move || {
        // What the gate has left once it has dropped its privileges.
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        open(Some(&voucher), Some(from), door).unwrap()
    });
    let ours = stream.local_addr().unwrap();
    assert_eq!(ours, from);
    assert!(world.count("vouched") >= 1);

    // A later policy leaves the gate's connection alone.
    let said = world.enforce("--allow 192.0.2.0/24");
    assert!(said.contains("policy 2"), "{said}");
    assert!(said.contains("cut      0"), "{said}");
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(stream);

    let reused = world.within("in", move || open(None, Some(from), door)).unwrap_err();
    assert_eq!(reused.kind(), io::ErrorKind::PermissionDenied, "the port of a gate that is gone opens nothing");
    world.shut_from_inside();
}

#[test]
fn a_voucher_needs_a_guard_where_one_is_named() {
    let missing = Path::new("/sys/fs/bpf/portcullis-test-nowhere");
    let error = Voucher::open(Some(missing)).unwrap_err().to_string();
    assert!(error.contains("portcullis-test-nowhere"), "{error}");
}

#[test]
fn connections_that_were_open_are_cut() {
    let Some(world) = World::new("connections_that_were_open_are_cut") else {
        return;
    };
    world.serve("in", world.port);
    world.serve("in", world.port + 1);
    let mut outside = world.reach("out", world.door()).unwrap();
    let mut inside = world.reach("in", SocketAddr::from(([127, 0, 0, 1], world.port))).unwrap();
    let mut other = world.reach("in", SocketAddr::from(([127, 0, 0, 1], world.port + 1))).unwrap();
    let said = world.enforce("");
    // Both ends of the inner one and the inner end of the outer one are here.
    assert!(said.contains("cut      3") || said.contains("cut      2"), "{said}");
    let error = inside.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset), "{error}");
    assert_eq!(outside.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "another port's stays");
}

#[test]
fn an_allowed_source_comes_in_until_it_is_no_longer_allowed() {
    let Some(world) = World::new("an_allowed_source_comes_in_until_it_is_no_longer_allowed") else {
        return;
    };
    world.serve("in", world.port);
    world.enforce(&format!("--no-local --allow {}", world.address(0, 2)));
    world.reach("out", world.door()).expect("allowed");
    // The SYN and the ACK for certain: the server has answered. The FIN may still be on its way.
    assert!(world.count("admitted") >= 2);
    let error = world.reach("out", world.door6()).expect_err("only its IPv4 address is allowed");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    world.reach_as_nobody("in", "127.0.0.1", world.port).expect("the connect ring was left out");
    world.enforce("");
    world.shut_from_outside();
    world.shut_from_inside();
}

#[test]
fn a_killed_enforce_never_leaves_a_guard_that_cannot_be_adopted() {
    let Some(world) = World::new("a_killed_enforce_never_leaves_a_guard_that_cannot_be_adopted") else {
        return;
    };
    world.serve("in", world.port);
    for round in 0..12 {
        let args = format!("enforce --port {} --interface in0", world.port);
        let mut child = world.guard_command("in", &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(4 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let before = world.status()["generation"].as_u64();
    world.enforce("");
    let status = world.status();
    assert_eq!(status["state"], "enforced");
    assert!(status["generation"].as_u64() > before);
    let left = fs::read_dir(&world.pin).unwrap().flatten();
    let generations = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("generation_")).count();
    assert_eq!(generations, 1, "earlier generations are cleared away");
    world.shut_from_outside();
    world.shut_from_inside();
}

#[test]
fn a_refused_enforce_changes_nothing() {
    let Some(world) = World::new("a_refused_enforce_changes_nothing") else {
        return;
    };
    world.serve("in", world.port);
    // The driver takes no XDP program while its peer sends frames of more than a page.
    world.ip("in", "link add plain0 mtu 9000 type veth peer name plain1 mtu 9000");
    let port = world.port;
    let both = format!("enforce --port {port} --interface in0 --interface plain0 --mode native");
    world.refused(&both, "the driver of plain0 takes no XDP program");
    assert!(!world.pin.exists());
    world.open_everywhere();

    world.enforce("");
    world.refused(&both, "the driver of plain0 takes no XDP program");
    assert_eq!(world.status()["generation"], 1);
    assert_eq!(world.status()["state"], "enforced");
    world.shut_from_outside();
    world.refused(&format!("enforce --port {port} --interface none0"), "there is no interface \"none0\"");
    world.refused(&format!("enforce --port {port} --interface lo"), "connect ring");
    world.refused(&format!("enforce --port {port} --interface in0 --mode generic"), "native mode");
    let elsewhere = world.guard_command("out", &format!("enforce --port {port} --interface out0")).output().unwrap();
    assert!(String::from_utf8_lossy(&elsewhere.stderr).contains("another network namespace"));

    let auto = world.enforce("--interface plain0");
    assert!(auto.contains("in0: native") && auto.contains("plain0: generic"), "{auto}");
}

#[test]
fn somebody_elses_xdp_program_is_never_replaced() {
    let Some(world) = World::new("somebody_elses_xdp_program_is_never_replaced") else {
        return;
    };
    world.serve("in", world.port);
    // To a second guard with pins of its own, the first one's program is a stranger's.
    world.enforce("");
    let other = PathBuf::from(format!("{}-b", world.pin.display()));
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", world.space("in")))
        .args([BINARY, "guard", "enforce", "--port", "9", "--interface", "in0", "--pin"])
        .arg(&other)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("in0 already has the XDP program \"guard_xdp\" (id "), "{told}");
    assert!(!other.exists());
    assert_eq!(world.status()["state"], "enforced");
}

#[test]
fn a_ring_that_is_taken_away_shows_in_the_status() {
    let Some(world) = World::new("a_ring_that_is_taken_away_shows_in_the_status") else {
        return;
    };
    world.enforce("");
    fs::remove_file(world.pin.join("link_connect6")).unwrap();
    let output = world.guard("status");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(world.status()["state"], "broken");
    world.enforce("");
    assert_eq!(world.guard("status").status.code(), Some(0));
}

#[test]
fn a_guard_of_another_version_is_refused_but_can_be_detached() {
    let Some(world) = World::new("a_guard_of_another_version_is_refused_but_can_be_detached") else {
        return;
    };
    world.enforce("");
    let pinned = MapData::from_pin(world.pin.join("generation_1/policy")).unwrap();
    let mut policy = Array::<_, [u8; Header::LEN]>::try_from(Map::from_map_data(pinned).unwrap()).unwrap();
    let mut header = Header::from_bytes(&policy.get(&0, 0).unwrap());
    header.abi += 1;
    policy.set(0, header.to_bytes(), 0).unwrap();

    let speaks = format!("speaks ABI {}", header.abi);
    world.refused("status", &speaks);
    world.refused(&format!("enforce --port {} --interface in0", world.port), &speaks);
    let error = Voucher::open(Some(&world.pin)).unwrap_err().to_string();
    assert!(error.contains(&speaks), "{error}");
    assert!(world.guard("detach").status.success());
    assert!(!world.pin.exists());
}

#[test]
fn a_containers_address_is_protected_on_its_way_through() {
    let Some(world) = World::new("a_containers_address_is_protected_on_its_way_through") else {
        return;
    };
    world.add_namespace("box");
    world.cable(("in", "in1", 1, 1), ("box", "box0", 1, 2));
    world.ip("box", &format!("route add default via {}", world.address(1, 1)));
    world.within("in", || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    });
    let port = world.port;
    let container = SocketAddr::new(world.address(1, 2), port);
    world.serve("in", port);
    world.serve("box", port);
    world.serve("box", port + 1);
    world.reach("out", container).expect("forwarded");

    let output = world.guard(&format!("enforce --protect {container} --interface in0"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.reach("out", container).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let told = world.reach_as_nobody("in", &container.ip().to_string(), port).unwrap_err();
    assert!(told.contains("Operation not permitted"), "{told}");
    world.reach("out", world.door()).expect("the host's own port of that number");
    world.reach("out", SocketAddr::new(container.ip(), port + 1)).expect("the container's other port");

    // Without the connect ring it is XDP that stops the one from outside.
    let output = world.guard(&format!("enforce --protect {container} --interface in0 --no-local"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.reach("out", container).unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(world.count("stranger") >= 1);
}
