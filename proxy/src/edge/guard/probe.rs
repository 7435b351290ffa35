//! The probes of `guard verify`: what a stranger, a process of this host and the gate itself would meet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use portcullis_ebpf::{Address, local, port};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::frames::{ETHERNET, Way, frame};
use super::pins::{Hook, Pins};
use super::policy::{Policy, ip};
use super::vouch::Voucher;
use crate::edge::sys::bpf;
use crate::edge::sys::privilege::{Account, become_account};

/// How long a connection may take to be answered.
const PATIENCE: Duration = Duration::from_secs(2);
const NOBODY: Account = Account { uid: 65_534, gid: 65_534 };
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const CGROUP_REFUSE: u32 = 0;

/// What a probe has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// As it should be.
    Good(String),
    /// Not as it should be.
    Bad(String),
    /// It could not be tried, and why; the rest decides.
    Untried(String),
}

/// One way in, or the gate's own, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// Where it comes from.
    pub(super) side: &'static str,
    /// What was tried.
    pub(super) way: String,
    pub(super) found: Found,
}

/// Every address and port that the policy protects on this host, as its neighbours would address them.
pub(super) fn doors(policy: &Policy) -> Vec<SocketAddr> {
    let whole: Vec<u16> =
        policy.ports.iter().filter(|(_, flags)| **flags & port::WHOLE != 0).map(|(n, _)| *n).collect();
    let single = |prefix: &&super::policy::Prefix| {
        let width = Address::FAMILY_BITS + if ip(&prefix.address).is_ipv4() { 32 } else { 128 };
        prefix.kind == local::OWN && prefix.bits == width
    };
    let own = policy.local.iter().filter(single).map(|prefix| ip(&prefix.address));
    let mut doors: Vec<SocketAddr> =
        own.flat_map(|ip| whole.iter().map(move |port| SocketAddr::new(ip, *port))).collect();
    doors.extend(policy.targets.iter().map(|(address, port, _)| SocketAddr::new(ip(address), *port)));
    doors
}

/// Somebody whom the policy does not let in.
pub(super) fn stranger(policy: &Policy, to: SocketAddr) -> Option<SocketAddr> {
    let documentation: [IpAddr; 5] = match to {
        SocketAddr::V4(_) => [[192, 0, 2, 77], [198, 51, 100, 77], [203, 0, 113, 77], [198, 18, 0, 77], [9, 9, 9, 77]]
            .map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        SocketAddr::V6(_) => [0x2001_0db8u128, 0x3fff_0000, 0x2001_0002, 0x2620_0000, 0x2a00_0000]
            .map(|first| IpAddr::V6(Ipv6Addr::from(first << 96 | 77))),
    };
    let ends = documentation.map(|ip| SocketAddr::new(ip, 40_077));
    ends.into_iter().find(|end| !policy.lets_in(*end))
}

/// Shows the program on an interface frames as they would arrive there: the kernel itself runs it.
pub(super) fn interface(
    pins: &Pins,
    program: u32,
    index: u32,
    name: &str,
    policy: &Policy,
) -> anyhow::Result<Vec<Probe>> {
    let hook = Hook::Xdp(index);
    let Some(program) = pins.program(hook.program(), program)? else {
        let found = Found::Bad("its link runs a program that is not the guard's".to_owned());
        return Ok(vec![Probe { side: "outside", way: format!("through {name}"), found }]);
    };
    let through = |frame: &[u8]| bpf::test_run(program.as_fd(), frame, &xdp_context(frame.len(), index));
    let verdict = |result: u32| match result {
        XDP_DROP => None,
        XDP_PASS => Some("passes".to_owned()),
        other => Some(format!("ends with XDP code {other}")),
    };
    Ok(show(&format!("through {name}"), policy, 0, through, verdict))
}

/// Shows the program before each socket packets that came by an interface that no XDP program guards, as out of a tunnel.
pub(super) fn ingress(program: BorrowedFd<'_>, index: u32, name: &str, policy: &Policy) -> Vec<Probe> {
    let past = |frame: &[u8]| bpf::test_run(program, frame, &socket_context(index));
    let verdict = |result: u32| (result != CGROUP_REFUSE).then(|| "reaches the socket".to_owned());
    show(&format!("past XDP, by {name}"), policy, ETHERNET, past, verdict)
}

/// Each door with each kind of frame; one probe a door.
fn show(
    place: &str,
    policy: &Policy,
    skip: usize,
    run: impl Fn(&[u8]) -> io::Result<u32>,
    passes: impl Fn(u32) -> Option<String>,
) -> Vec<Probe> {
    let mut probes = Vec::new();
    for door in doors(policy) {
        let way = format!("{place} to {door}");
        let Some(from) = stranger(policy, door) else {
            let found = Found::Untried("the allow list lets everybody in".to_owned());
            probes.push(Probe { side: "outside", way, found });
            continue;
        };
        let mut open = Vec::new();
        // A tag is taken off long before a socket.
        for kind in Way::ALL.into_iter().filter(|kind| skip == 0 || *kind != Way::Tagged) {
            match run(&frame(kind, from, door)) {
                Ok(result) => open.extend(passes(result).map(|how| format!("a {} {how}", kind.name()))),
                Err(error) => open.push(format!("a {} cannot be tried ({error})", kind.name())),
            }
        }
        let found = if open.is_empty() { Found::Good("dropped".to_owned()) } else { Found::Bad(open.join(", ")) };
        probes.push(Probe { side: "outside", way, found });
    }
    probes
}

/// `struct xdp_md`: data, its end, its meta data, interface, queue, outgoing interface.
fn xdp_context(len: usize, index: u32) -> Vec<u8> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    [0, len, 0, index, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

/// `struct __sk_buff`, as far as its interface.
fn socket_context(index: u32) -> Vec<u8> {
    const INTERFACE: usize = 10;
    let mut words = [0u32; 48];
    words[INTERFACE] = index;
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Every way in which a process of this host may name what is protected.
fn names(policy: &Policy) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    let mut add = |ip: IpAddr, port: u16| {
        let end = SocketAddr::new(ip, port);
        if !found.contains(&end) {
            found.push(end);
        }
        if let IpAddr::V4(v4) = ip {
            found.push(SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), port));
        }
    };
    for (number, flags) in &policy.ports {
        if flags & port::WHOLE != 0 {
            add(Ipv4Addr::LOCALHOST.into(), *number);
            add(Ipv6Addr::LOCALHOST.into(), *number);
        }
        if flags & port::UNSPECIFIED != 0 {
            add(Ipv4Addr::UNSPECIFIED.into(), *number);
            add(Ipv6Addr::UNSPECIFIED.into(), *number);
        }
    }
    for door in doors(policy) {
        add(door.ip(), door.port());
    }
    found
}

/// connect(2) of an unprivileged thread to each of them.
pub(super) fn inside(policy: &Policy) -> anyhow::Result<Vec<Probe>> {
    let names = names(policy);
    let knock = move || {
        let nobody = become_account(NOBODY).is_ok();
        let results: Vec<_> = names.iter().map(|name| (*name, knock(None, *name))).collect();
        (nobody, results)
    };
    let joined = thread::Builder::new().name("nobody".to_owned()).spawn(knock).context("no thread")?.join();
    let (nobody, results) = joined.map_err(|_| anyhow::anyhow!("the probing thread ended with a panic"))?;
    let who = if nobody { "a process of nobody" } else { "a process of this user" };
    let probe = |(name, result): (SocketAddr, Answer)| {
        let found = match result {
            Answer::Refused => Found::Good("refused".to_owned()),
            Answer::NoFamily => Found::Good("this host has no such addresses".to_owned()),
            Answer::Reached => Found::Bad("connects".to_owned()),
            Answer::Nobody => Found::Bad("gets through; nothing listens there".to_owned()),
            Answer::Silent => Found::Bad("gets through to silence".to_owned()),
            Answer::Other(error) => Found::Bad(format!("is let go ({error})")),
        };
        Probe { side: "inside", way: format!("{who} to {name}"), found }
    };
    Ok(results.into_iter().map(probe).collect())
}

/// The gate's own way: a vouched socket to each protected port.
pub(super) fn gate(pins: &Pins, policy: &Policy) -> anyhow::Result<Vec<Probe>> {
    let voucher = Voucher::open(Some(pins.dir()))?;
    let voucher = voucher.filter(|_| policy.header.connect_ring);
    let mut probes = Vec::new();
    let whole = policy.ports.iter().filter(|(_, flags)| **flags & port::WHOLE != 0).map(|(number, _)| *number);
    for number in whole {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let own = doors(policy).into_iter().filter(|door| door.port() == number && !is_of_a_link(door.ip()));
        let ends = loopback.into_iter().map(|ip| SocketAddr::new(ip, number)).chain(own);
        probes.push(gate_to(voucher.as_ref(), &format!("port {number}"), ends));
    }
    for (address, number, _) in &policy.targets {
        let end = SocketAddr::new(ip(address), *number);
        probes.push(gate_to(voucher.as_ref(), &end.to_string(), [end].into_iter()));
    }
    Ok(probes)
}

/// Whether an address holds on one link only: connect(2) wants an interface beside it, and on another it leads nowhere.
pub(super) fn is_of_a_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The first end that answers; a refusal by the guard anywhere on the way is a failure.
fn gate_to(voucher: Option<&Voucher>, what: &str, ends: impl Iterator<Item = SocketAddr>) -> Probe {
    let way = format!("a vouched socket to {what}");
    let mut last = Found::Bad("no address to try".to_owned());
    for end in ends {
        last = match knock(voucher, end) {
            Answer::Reached => return Probe { side: "gate", way, found: Found::Good(format!("connects to {end}")) },
            Answer::Refused => {
                return Probe { side: "gate", way, found: Found::Bad(format!("{end} is refused to the gate too")) };
            }
            Answer::Nobody => Found::Good("let through; nothing listens there".to_owned()),
            Answer::NoFamily => continue,
            Answer::Silent => Found::Bad(format!("no answer from {end}")),
            Answer::Other(error) => Found::Bad(format!("{end}: {error}")),
        };
    }
    Probe { side: "gate", way, found: last }
}

enum Answer {
    /// The kernel says EPERM: the guard.
    Refused,
    Reached,
    /// Nothing listens.
    Nobody,
    Silent,
    NoFamily,
    Other(Errno),
}

fn knock(voucher: Option<&Voucher>, to: SocketAddr) -> Answer {
    match try_connect(voucher, to) {
        Ok(true) => Answer::Reached,
        Ok(false) => Answer::Silent,
        Err(Errno::PERM) => Answer::Refused,
        Err(Errno::CONNREFUSED) => Answer::Nobody,
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => Answer::NoFamily,
        Err(error) => Answer::Other(error),
    }
}

fn try_connect(voucher: Option<&Voucher>, to: SocketAddr) -> Result<bool, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if let Some(voucher) = voucher {
        voucher.vouch(socket.as_fd()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    match connect(&socket, &to) {
        Err(Errno::INPROGRESS) => {}
        result => return result.map(|()| true),
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    sockopt::socket_error(&socket)?.map(|()| true)
}
