//! Frames over a real wire: `verify` makes a network namespace, joins it to the guarded one by a cable that no XDP program
//! guards, and sends a stranger's segments through it. The guard's own counters say what became of them.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use portcullis_ebpf::{Mode, Ring};

use super::frames::{Way, frame};
use super::host::{self, interfaces};
use super::loader;
use super::netlink::Netlink;
use super::pins::Pins;
use super::policy::Policy;
use super::probe::{Found, Probe, doors, is_of_a_link, stranger};
use crate::edge::sys::namespace::{enter_new_network, send_frame};

/// How long the frames may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// Addresses of the cable, from the block for tests of networks: a source without a route back would be dropped before
/// it meets the guard.
const HERE: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 253);
const THERE: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);
const BLOCK: u8 = 30;
/// Where [`frame`] sends to.
const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FAR_END: &str = "knock";

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const NAME: u16 = 3;

/// Tries the doors of this network namespace; where that cannot be done, the probe says why.
pub(super) fn knock(pins: &Pins, policy: &Policy) -> Vec<Probe> {
    let way = "over a cable from another network namespace".to_owned();
    let found = match through(pins, policy) {
        Ok(found) => found,
        Err(error) => Found::Untried(format!("{error:#}")),
    };
    vec![Probe { side: "outside", way, found }]
}

fn through(pins: &Pins, policy: &Policy) -> anyhow::Result<Found> {
    let mut frames = Vec::new();
    for door in doors(policy).into_iter().filter(|door| here(policy, *door) && !is_of_a_link(door.ip())) {
        let from = match door {
            SocketAddr::V4(_) => Some(SocketAddr::new(IpAddr::V4(THERE), 40_077)).filter(|from| !policy.lets_in(*from)),
            SocketAddr::V6(_) => stranger(policy, door),
        };
        frames.extend(from.map(|from| frame(Way::Syn, from, door)));
    }
    if frames.is_empty() {
        return Ok(Found::Untried("no address of this namespace is protected, or everybody is allowed".to_owned()));
    }
    let sent = u64::try_from(frames.len()).unwrap_or(u64::MAX);
    let (opened, namespace) = mpsc::channel();
    let (ready, frames_to_send) = mpsc::channel();
    let outside = thread::Builder::new().name("outside".to_owned()).spawn(move || send(&opened, &frames_to_send))?;
    let namespace = namespace.recv()?.context("cannot make a network namespace")?;
    let cable = Cable::make(&namespace).context("cannot make a cable")?;
    ready.send(frames)?;
    outside.join().map_err(|_| anyhow!("the sending thread ended with a panic"))?.context("cannot send")?;

    let deadline = Instant::now() + PATIENCE;
    loop {
        let counted = refused(pins, cable.index)?;
        if counted >= sent {
            return Ok(match policy.header.mode {
                Mode::Audit => Found::Bad(format!("{sent} SYNs were counted, and let through")),
                Mode::Enforce | Mode::Trial => Found::Good(format!("{sent} SYNs sent, as many dropped")),
            });
        }
        if Instant::now() > deadline {
            let why = format!("{counted} of {sent} SYNs met the guard");
            return Ok(if policy.header.ingress_ring && counted == 0 && !stands(pins)? {
                Found::Bad("nothing stops what comes by an interface without XDP".to_owned())
            } else {
                Found::Untried(format!("{why}: a firewall or a filter of this host may have been first"))
            });
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn here(policy: &Policy, door: SocketAddr) -> bool {
    use portcullis_ebpf::decide::Tables as _;
    policy.local(&host::address(door.ip())) != 0
}

fn stands(pins: &Pins) -> anyhow::Result<bool> {
    let links = pins.links()?;
    Ok(links.iter().any(|link| link.hook == super::pins::Hook::Ingress && link.is_attached()))
}

fn refused(pins: &Pins, index: u32) -> anyhow::Result<u64> {
    let of_cable = loader::counters(pins)?
        .into_iter()
        .filter(|(tally, _)| tally.interface == index && tally.ring != Ring::Connect && !tally.reason.passes());
    Ok(of_cable.map(|(_, count)| count).sum())
}

/// The thread outside: shows its namespace, waits for the cable and the frames, sends them.
fn send(opened: &mpsc::Sender<io::Result<File>>, frames: &mpsc::Receiver<Vec<Vec<u8>>>) -> io::Result<()> {
    let namespace = enter_new_network().and_then(|()| File::open("/proc/thread-self/ns/net"));
    opened.send(namespace).map_err(io::Error::other)?;
    // Without frames there is no cable: whoever would have made it says why.
    let Ok(frames) = frames.recv() else { return Ok(()) };
    let mut netlink = Netlink::open(None)?;
    let index = index(&mut netlink, FAR_END)?;
    netlink.request(NEW_LINK, &up(index))?;
    frames.iter().try_for_each(|frame| send_frame(index, frame))
}

/// The near end of a cable; it goes when this is dropped, and with the far end's namespace in any case.
struct Cable {
    netlink: Netlink,
    index: u32,
}

impl Cable {
    fn make(namespace: &File) -> io::Result<Self> {
        let name = format!("pcv{}", std::process::id());
        let mut netlink = Netlink::open(None)?;
        let far =
            [&[0; 16][..], &attribute(NAME, &text(FAR_END))[..], &number(28, namespace.as_raw_fd().unsigned_abs())];
        let kind = [attribute(1, b"veth\0"), attribute(2, &attribute(1, &far.concat()))].concat();
        let near = [&[0; 16][..], &attribute(NAME, &text(&name))[..], &attribute(1, &HARDWARE), &attribute(18, &kind)];
        netlink.make(NEW_LINK, &near.concat())?;
        let index = index(&mut netlink, &name)?;
        let mut cable = Self { netlink, index };
        let family = u8::try_from(libc::AF_INET).map_err(io::Error::other)?;
        let header = [&[family, BLOCK, 0, 0][..], &index.to_ne_bytes()].concat();
        let address = [&header[..], &attribute(2, &HERE.octets()), &attribute(1, &HERE.octets())].concat();
        cable.netlink.make(NEW_ADDRESS, &address)?;
        cable.netlink.request(NEW_LINK, &up(index))?;
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.netlink.request(DELETE_LINK, &link(self.index, 0)).ok();
    }
}

fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let found = interfaces(netlink)?.into_iter().find(|interface| interface.name == name);
    found.map(|interface| interface.index).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn up(index: u32) -> Vec<u8> {
    const UP: u32 = 1;
    link(index, UP)
}

/// `struct ifinfomsg`: family and type, index, flags, and which of them to change.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, flags].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_ne_bytes())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
