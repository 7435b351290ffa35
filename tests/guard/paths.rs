//! Ways in that no ring but the last one sees: tunnels, interfaces that nobody named, bridges, translated addresses.
//!
//! The one outside is a process of this host too, so the connect ring is left out wherever it would answer first.

use std::fs;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use portcullis::edge::guard::vouch::Voucher;

use super::wire::{eventually, holds_soon};
use super::world::{World, open, skipped};

#[test]
fn what_comes_through_a_tunnel_is_judged_at_the_socket() {
    let Some(world) = World::new("what_comes_through_a_tunnel_is_judged_at_the_socket") else {
        return;
    };
    world.serve("in", world.port);
    world.serve("in", world.port + 1);
    let mut doors = Vec::new();
    for (network, kind) in [(10, "vxlan"), (11, "ipip"), (12, "gre")] {
        if let Err(reason) = tunnel(&world, kind, network) {
            skipped("what_comes_through_a_tunnel_is_judged_at_the_socket", &format!("{kind}: {reason}"));
            continue;
        }
        let door = SocketAddr::new(world.address(network, 1), world.port);
        world.reach("out", door).unwrap();
        doors.push((kind, door));
    }
    world.enforce("--no-local");
    for (kind, door) in doors {
        let before = world.count_in("ingress", "stranger");
        let error = world.reach("out", door).expect_err(kind);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{kind}: {error}");
        assert!(world.count_in("ingress", "stranger") > before, "{kind}");
        world.reach("out", SocketAddr::new(door.ip(), world.port + 1)).expect("another port through the tunnel");
    }
    assert_eq!(world.dropped("xdp"), 0);
}

fn tunnel(world: &World, kind: &str, network: u8) -> Result<(), String> {
    for (space, interface, host, other) in [("in", "in0", 1, 2), ("out", "out0", 2, 1)] {
        let (local, remote) = (world.address(0, host), world.address(0, other));
        let end = match kind {
            "vxlan" => format!(
                "link add tun{network} type vxlan id 7 local {local} remote {remote} dev {interface} dstport 4789"
            ),
            _ => format!("link add tun{network} type {kind} local {local} remote {remote}"),
        };
        world.try_ip(space, &end)?;
        world.ip(space, &format!("addr add {}/24 dev tun{network}", world.address(network, host)));
        world.ip(space, &format!("link set tun{network} up"));
    }
    Ok(())
}

#[test]
fn an_interface_that_nobody_named_or_that_comes_later_is_no_way_in() {
    let Some(world) = World::new("an_interface_that_nobody_named_or_that_comes_later_is_no_way_in") else {
        return;
    };
    world.serve("in", world.port);
    world.cable(("in", "in1", 1, 1), ("out", "out1", 1, 2));
    let doors =
        |network| [world.address(network, 1), world.address6(network, 1)].map(|ip| SocketAddr::new(ip, world.port));
    for door in doors(1) {
        world.reach("out", door).unwrap();
    }
    let said = world.enforce("--no-local");
    assert!(said.contains("ingress  every way to a socket"), "{said}");
    // Over the named interface to the address of the other one, too: the host answers for all its addresses.
    for door in doors(1) {
        assert_eq!(world.reach("out", door).expect_err("not named").kind(), io::ErrorKind::TimedOut, "{door}");
    }
    assert!(world.count_in("ingress", "stranger") >= 2);

    // A link that comes later brings an address that the guard learns of from its agent alone.
    let agent = world.agent("--no-local --interface in0 --interface in1 --interface all");
    world.cable(("in", "in2", 2, 1), ("out", "out2", 2, 2));
    eventually("the agent guards what has come", || world.guards("in2"));
    for door in doors(2) {
        assert_eq!(world.reach("out", door).expect_err("came later").kind(), io::ErrorKind::TimedOut, "{door}");
    }
    world.ip("in", "link del in1");
    eventually("the agent forgets what has gone", || world.status()["state"] == "enforced" && !world.guards("in1"));
    world.cable(("in", "in1", 1, 1), ("out", "out1", 1, 2));
    eventually("the agent knows it again", || world.guards("in1"));
    agent.kill();
    assert_eq!(world.status()["state"], "enforced", "the guard stays when its agent is killed");
    for door in doors(2).into_iter().chain([world.door()]) {
        assert_eq!(world.reach("out", door).expect_err("killed").kind(), io::ErrorKind::TimedOut, "{door}");
    }
}

/// For some seconds a new IPv6 address may still turn out to be another host's (RFC 4862 §5.4). Until then nothing leads to it;
/// a guard that looked only at where packets end would leave it open from then on.
#[test]
fn an_address_that_is_not_in_use_yet_is_no_way_in_later() {
    let Some(world) = World::new("an_address_that_is_not_in_use_yet_is_no_way_in_later") else {
        return;
    };
    world.serve("in", world.port);
    world.serve("in", world.port + 1);
    world.within("in", || fs::write("/proc/sys/net/ipv6/conf/in0/dad_transmits", "5").unwrap());
    let address = world.address6(0, 77);
    world.ip("in", &format!("addr add {address}/64 dev in0"));
    let is_tried = || {
        let mut list = Command::new("ip");
        list.args(["-n", &world.space("in"), "-6", "addr", "show", "dev", "in0", "tentative"]);
        String::from_utf8(list.output().unwrap().stdout).unwrap().contains(&address.to_string())
    };
    world.enforce("");
    assert!(is_tried(), "it was in use before the guard was in force, which shows nothing");
    eventually("the address is in use", || !is_tried());
    let reach = |port| world.reach_from_afar(SocketAddr::new(address, port));
    eventually("it can be reached", || reach(world.port + 1).is_ok());
    assert_eq!(reach(world.port).expect_err("the door is open").kind(), io::ErrorKind::TimedOut);
}

#[test]
fn the_agent_adopts_what_is_there_and_puts_back_what_is_taken_away() {
    let Some(world) = World::new("the_agent_adopts_what_is_there_and_puts_back_what_is_taken_away") else {
        return;
    };
    world.serve("in", world.port);
    world.enforce("");
    let agent = world.agent("--interface in0");
    assert_eq!(world.status()["generation"], 1, "adopted, not replaced");
    // An address that comes later is guarded at once, in place.
    let later = SocketAddr::new(world.address(9, 1), world.port);
    world.ip("in", &format!("addr add {}/24 dev lo", later.ip()));
    let refused = || matches!(world.reach("in", later), Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    eventually("the new address is guarded", refused);
    assert_eq!(world.status()["generation"], 1);
    world.ip("in", &format!("addr del {}/24 dev lo", later.ip()));

    fs::remove_file(world.pin.join("link_connect4")).unwrap();
    assert_eq!(world.status()["state"], "broken");
    world.ip("in", "link set lo mtu 60000");
    eventually("the agent puts it back", || world.status()["state"] == "enforced");
    world.shut_from_inside();
    // Even all of it: whoever wants the port open has to stop the agent first.
    assert!(world.guard("detach").status.success());
    let back = holds_soon(|| world.status()["state"] == "enforced");
    let state = world.status();
    let stopped = agent.stop();
    assert!(back, "{stopped}\n{state}");
    assert!(stopped.contains("SOMEBODY HAS TAKEN A PART OF THE GUARD AWAY"), "{stopped}");
    assert!(stopped.contains("the guard stays as it is"), "{stopped}");
    assert_eq!(world.status()["state"], "enforced");
    world.shut_from_outside();
    world.shut_from_inside();
}

#[test]
fn the_agent_says_when_it_is_ready_and_keeps_three_capabilities() {
    let Some(world) = World::new("the_agent_says_when_it_is_ready_and_keeps_three_capabilities") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = world.guard_command("in", &format!("run --port {} --interface in0", world.port));
    let mut child = command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap();
    let mut told = [0; 64];
    let received = manager.recv(&mut told).map(|len| told[..len].to_vec());
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(received.unwrap(), b"READY=1");
    // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF.
    assert!(
        status.contains("CapEff:\t000000c000001000\n") && status.contains("CapPrm:\t000000c000001000\n"),
        "{status}"
    );
    assert_eq!(world.status()["state"], "enforced");
}

/// A bridge as docker makes one: the host on it, and a container behind a cable.
fn bridge(world: &World) {
    world.add_namespace("box");
    world.ip("in", "link add docker9 type bridge");
    world.ip("in", &format!("addr add {}/24 dev docker9", world.address(3, 1)));
    world.ip("in", "link set docker9 up");
    world.cable(("in", "veth9", 4, 1), ("box", "eth0", 3, 2));
    world.ip("in", "link set veth9 master docker9");
    world.ip("box", &format!("route add default via {}", world.address(3, 1)));
    world.within("in", || fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
}

#[test]
fn a_container_on_a_bridge_gets_in_only_with_a_vouched_socket() {
    let Some(world) = World::new("a_container_on_a_bridge_gets_in_only_with_a_vouched_socket") else {
        return;
    };
    bridge(&world);
    world.serve("in", world.port);
    let (door, bridge) = (world.door(), SocketAddr::new(world.address(3, 1), world.port));
    for to in [door, bridge] {
        world.reach("box", to).unwrap();
    }
    // By the address, where nobody looks at sockets …
    world.enforce("--no-local");
    for to in [door, bridge] {
        assert_eq!(world.reach("box", to).expect_err("a container").kind(), io::ErrorKind::TimedOut, "{to}");
    }
    // … and by the socket: the gate may live in a container.
    world.enforce("");
    for to in [door, bridge] {
        assert_eq!(world.reach("box", to).expect_err("a container").kind(), io::ErrorKind::PermissionDenied, "{to}");
        let voucher = Voucher::open(Some(&world.pin)).unwrap();
        let from = SocketAddr::new(world.address(3, 2), world.port + 9);
        let mut gate = world.within("box", move || open(voucher.as_ref(), Some(from), to)).expect("the gate");
        gate.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        world.enforce("--allow 192.0.2.9");
        let error = gate.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "a new policy leaves the gate's connection alone: {error}");
        drop(gate);
        // The same port of the same container, once the gate's socket is gone.
        let reused = world.within("box", move || open(None, Some(from), to)).expect_err("reused");
        assert_eq!(reused.kind(), io::ErrorKind::PermissionDenied);
        world.enforce("");
    }
    assert!(world.count_in("ingress", "vouched") >= 4);
}

#[test]
fn a_gate_on_the_host_reaches_a_protected_container() {
    let Some(world) = World::new("a_gate_on_the_host_reaches_a_protected_container") else {
        return;
    };
    bridge(&world);
    world.serve("box", world.port);
    let container = SocketAddr::new(world.address(3, 2), world.port);
    world.reach("in", container).unwrap();
    let output = world.guard(&format!("enforce --protect {container} --interface in0"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.reach("in", container).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let voucher = Voucher::open(Some(&world.pin)).unwrap();
    world.within("in", move || open(voucher.as_ref(), None, container)).expect("the gate");
    assert!(world.count_in("ingress", "vouched") >= 2);
}

#[test]
fn a_published_port_is_no_way_to_a_protected_container() {
    const NAME: &str = "a_published_port_is_no_way_to_a_protected_container";
    let Some(world) = World::new(NAME) else {
        return;
    };
    bridge(&world);
    world.serve("box", world.port);
    let container = SocketAddr::new(world.address(3, 2), world.port);
    let published = SocketAddr::new(world.address(0, 1), world.port + 3);
    let rule = format!("-t nat -A PREROUTING -p tcp --dport {} -j DNAT --to-destination {container}", published.port());
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", world.space("in")))
        .arg("iptables")
        .args(rule.split(' '))
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => return skipped(NAME, String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()),
        Err(error) => return skipped(NAME, &format!("iptables: {error}")),
    }
    world.reach("out", published).expect("published");
    let output = world.guard(&format!("enforce --protect {container} --interface in0 --no-local"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.reach("out", published).expect_err("published").kind(), io::ErrorKind::TimedOut);
    assert!(world.count_in("ingress", "stranger") >= 1);
}

#[test]
fn io_uring_opens_no_door_either() {
    let Some(world) = World::new("io_uring_opens_no_door_either") else {
        return;
    };
    world.serve("in", world.port);
    let door = SocketAddr::from(([127, 0, 0, 1], world.port));
    let knock = move || {
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
        runtime.block_on(async move { monoio::net::TcpStream::connect_addr(door).await.map(drop) })
    };
    match world.within("in", knock) {
        Ok(()) => {}
        Err(error) => return skipped("io_uring_opens_no_door_either", &format!("no io_uring here: {error}")),
    }
    world.enforce("");
    assert_eq!(world.within("in", knock).expect_err("shut").kind(), io::ErrorKind::PermissionDenied);
}
