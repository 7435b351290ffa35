//! What this host is: its interfaces, its addresses, its privileges, its file systems.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use portcullis_ebpf::{Address, local};
use rustix::mount::MountFlags;

use super::netlink::{Netlink, attributes, u16_at, u32_at};
use super::policy::Prefix;
use crate::edge::sys::bpf;

const ETHERNET: u16 = 1;
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const BPF_FS: &str = "/sys/fs/bpf";

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) loopback: bool,
    pub(super) ethernet: bool,
    /// The kind of a virtual interface; hardware has none.
    pub(super) kind: Option<String>,
    pub(super) xdp: Option<Xdp>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xdp {
    pub(super) mode: &'static str,
    pub(super) program: u32,
}

/// The network namespace that the command runs in.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) netns: u64,
    pub(super) interfaces: Vec<Interface>,
    /// Addresses that packets end at here.
    pub(super) local: Vec<Prefix>,
    /// Interfaces that a default route leads to.
    pub(super) default_routes: HashSet<u32>,
}

impl Host {
    /// Asks the kernel.
    pub(super) fn read() -> anyhow::Result<Self> {
        let mut netlink = Netlink::open(None).context("cannot open a netlink socket")?;
        let netns =
            bpf::netns_cookie(&netlink).context("cannot tell network namespaces apart (Linux 5.14 or later can)")?;
        let interfaces = interfaces(&mut netlink).context("cannot list the interfaces")?;
        let (mut local, default_routes) = routes(&mut netlink).context("cannot list the routes")?;
        add_addresses(&mut netlink, &mut local).context("cannot list the addresses")?;
        Ok(Self { netns, interfaces, local, default_routes })
    }
}

/// The interfaces of this network namespace.
pub(super) fn interfaces(netlink: &mut Netlink) -> io::Result<Vec<Interface>> {
    const GET_LINK: u16 = 18;
    let mut found = Vec::new();
    netlink.dump(GET_LINK, &[0; 16], |_, payload| {
        found.extend(interface(payload));
    })?;
    Ok(found)
}

fn interface(payload: &[u8]) -> Option<Interface> {
    const LOOPBACK: u32 = 8;
    const NAME: u16 = 3;
    const LINK_INFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    const XDP: u16 = 43;
    let mut interface = Interface {
        index: u32_at(payload, 4)?,
        name: String::new(),
        loopback: u32_at(payload, 8)? & LOOPBACK != 0,
        ethernet: u16_at(payload, 2)? == ETHERNET,
        kind: None,
        xdp: None,
    };
    for (attribute, value) in attributes(payload.get(16..)?) {
        match attribute {
            NAME => interface.name = text(value),
            LINK_INFO => {
                interface.kind = attributes(value).find(|(kind, _)| *kind == INFO_KIND).map(|(_, v)| text(v));
            }
            XDP => interface.xdp = xdp(value),
            _ => {}
        }
    }
    Some(interface)
}

fn xdp(nested: &[u8]) -> Option<Xdp> {
    const ATTACHED: u16 = 2;
    const PROGRAM: u16 = 4;
    let attached = attributes(nested).find(|(kind, _)| *kind == ATTACHED)?.1.first().copied()?;
    let mode = match attached {
        0 => return None,
        1 => "native",
        2 => "generic",
        3 => "offloaded",
        _ => "several",
    };
    let program = attributes(nested).find(|(kind, _)| *kind == PROGRAM).and_then(|(_, id)| u32_at(id, 0)).unwrap_or(0);
    Some(Xdp { mode, program })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The local table says where packets end here: addresses, but also whole blocks that somebody routed to lo.
fn routes(netlink: &mut Netlink) -> io::Result<(Vec<Prefix>, HashSet<u32>)> {
    const GET_ROUTE: u16 = 26;
    let mut found = loopbacks();
    let mut defaults = HashSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; 12];
        request[0] = u8::try_from(family).unwrap_or_default();
        netlink.dump(GET_ROUTE, &request, |_, payload| {
            route(payload, &mut found, &mut defaults);
        })?;
    }
    Ok((found, defaults))
}

/// Addresses that are here but that no route leads to: those of an interface that is down, and IPv6 addresses that may still
/// turn out to be another host's (RFC 4862 §5.4). Packets will end at them once that is over.
fn add_addresses(netlink: &mut Netlink, found: &mut Vec<Prefix>) -> io::Result<()> {
    const GET_ADDRESS: u16 = 22;
    netlink.dump(GET_ADDRESS, &[0; 8], |_, payload| {
        if let Some(address) = own_address(payload) {
            add_own(address, None, found);
        }
    })
}

fn own_address(payload: &[u8]) -> Option<IpAddr> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let (family, rest) = (*payload.first()?, payload.get(8..)?);
    // On a point-to-point link the address is the other end's, and there is a local one.
    let of = |kind: u16| attributes(rest).find(|(attribute, _)| *attribute == kind).map(|(_, value)| value);
    ip(family, of(LOCAL).or_else(|| of(ADDRESS))?)
}

/// Adds a block of `bits`, or a single address.
fn add_own(address: IpAddr, bits: Option<u8>, found: &mut Vec<Prefix>) {
    let bits = bits.unwrap_or(if address.is_ipv4() { 32 } else { 128 });
    let prefix = Prefix::new(address, bits, if address.is_loopback() { local::LOOPBACK } else { local::OWN });
    if !found.contains(&prefix) {
        found.push(prefix);
    }
}

fn route(payload: &[u8], found: &mut Vec<Prefix>, defaults: &mut HashSet<u32>) {
    const DESTINATION: u16 = 1;
    const OUT_INTERFACE: u16 = 4;
    const MULTIPATH: u16 = 9;
    const TABLE_MAIN: u8 = 254;
    const TABLE_LOCAL: u8 = 255;
    const UNICAST: u8 = 1;
    const LOCAL: u8 = 2;
    let (Some(header), Some(rest)) = (payload.first_chunk::<8>(), payload.get(12..)) else {
        return;
    };
    let [family, bits, _, _, table, _, _, kind] = *header;
    // VRFs keep their addresses in tables of their own; a whole-world local route there is a transparent proxy's.
    if kind == LOCAL && (table == TABLE_LOCAL || bits > 0) {
        let destination = attributes(rest).find(|(attribute, _)| *attribute == DESTINATION).map(|(_, value)| value);
        if let Some(address) = destination.and_then(|octets| ip(family, octets)) {
            add_own(address, Some(bits), found);
        }
    }
    if table == TABLE_MAIN && kind == UNICAST && bits == 0 {
        for (attribute, value) in attributes(rest) {
            match attribute {
                OUT_INTERFACE => defaults.extend(u32_at(value, 0)),
                MULTIPATH => defaults.extend(next_hops(value)),
                _ => {}
            }
        }
    }
}

fn next_hops(mut value: &[u8]) -> Vec<u32> {
    let mut interfaces = Vec::new();
    while let (Some(len), Some(index)) = (u16_at(value, 0), u32_at(value, 4)) {
        interfaces.push(index);
        let step = usize::from(len).next_multiple_of(4).max(8);
        value = value.get(step..).unwrap_or_default();
    }
    interfaces
}

/// These are local even while lo is down and its routes are missing.
fn loopbacks() -> Vec<Prefix> {
    vec![
        Prefix::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, local::LOOPBACK),
        Prefix::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128, local::LOOPBACK),
    ]
}

fn ip(family: u8, octets: &[u8]) -> Option<IpAddr> {
    if i32::from(family) == libc::AF_INET {
        octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets))
    } else {
        octets.first_chunk::<16>().map(|octets| IpAddr::from(*octets))
    }
}

/// An address as the maps have it.
pub(super) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address::v6(v6.octets()),
    }
}

/// Checks the privileges that switching the guard needs.
pub(super) fn require_privileges(command: &str) -> anyhow::Result<()> {
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    const SYS_ADMIN: u32 = 21;
    /// From here on capabilities were split off CAP_SYS_ADMIN, which still stands in for them.
    const BPF_FAMILY: u32 = 38;
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .context("/proc/self/status has no CapEff line")?;
    let has = |bit: u32| held & (1 << bit) != 0;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| !has(*bit) && (*bit < BPF_FAMILY || !has(SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        bail!("`guard {command}` needs {}, which this process lacks: run it as root", missing.join(", "));
    }
    Ok(())
}

/// Makes sure that `dir` will be on a BPF file system; the standard one is mounted when it is missing.
pub(super) fn require_bpf_fs(dir: &Path) -> anyhow::Result<()> {
    if is_bpf_fs(dir) {
        return Ok(());
    }
    let standard = Path::new(BPF_FS);
    if !dir.starts_with(standard) {
        bail!("{} is not on a BPF file system: choose a --pin directory below {BPF_FS}", dir.display());
    }
    fs::create_dir_all(standard).with_context(|| format!("cannot create {BPF_FS}: mount sysfs on /sys first"))?;
    rustix::mount::mount(
        "bpf",
        standard,
        "bpf",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"mode=700",
    )
    .with_context(|| format!("cannot mount the BPF file system: try `mount -t bpf bpf {BPF_FS}`"))
}

/// Whether `dir`, or the nearest directory above it that exists, is on a BPF file system.
fn is_bpf_fs(dir: &Path) -> bool {
    dir.ancestors()
        .find_map(|dir| rustix::fs::statfs(dir).ok())
        .is_some_and(|found| u64::try_from(found.f_type).is_ok_and(|magic| magic & 0xffff_ffff == BPF_FS_MAGIC))
}

/// Where the cgroup2 hierarchy is mounted, as far as this process sees it.
pub(super) fn cgroup_mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    cgroup2_mount(&mounts).context("no cgroup2 hierarchy is mounted")
}

/// The root of the cgroup2 hierarchy: whoever attaches there sees the sockets of every process.
pub(super) fn cgroup_root() -> anyhow::Result<File> {
    const ROOT_INODE: u64 = 1;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let Some(path) = cgroup2_mount(&mounts) else {
        bail!(
            "no cgroup2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup`, or leave the connect ring out with --no-local"
        );
    };
    let dir = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if dir.metadata()?.ino() != ROOT_INODE {
        bail!(
            "{} is not the root of the cgroup2 hierarchy: run this on the host, not in a container (or with --no-local)",
            path.display()
        );
    }
    Ok(dir)
}

fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, path) = (fields.next()?, fields.next()?);
        (source.split(' ').next()? == "cgroup2" && root == "/").then(|| PathBuf::from(path))
    })
}

/// Whether the kernel may give this port to an outgoing connection, whose answers the guard would then drop.
pub(super) fn is_ephemeral(port: u16) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    within(&read("ip_local_port_range"), port) && !within(&read("ip_local_reserved_ports"), port)
}

/// Whether a list of ports and ranges, as the kernel prints them, has this port.
fn within(list: &str, port: u16) -> bool {
    list.trim().split(',').any(|range| {
        let mut ends = range.split(['-', '\t', ' ']).filter_map(|end| end.parse::<u16>().ok());
        let Some(first) = ends.next() else { return false };
        (first..=ends.next().unwrap_or(first)).contains(&port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_cgroup2_mount_of_unified_and_hybrid_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount("41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(cgroup2_mount(""), None);
    }

    #[test]
    fn reads_ports_and_ranges_as_the_kernel_prints_them() {
        assert!(within("32768\t60999\n", 40_000));
        assert!(!within("32768\t60999\n", 5000));
        assert!(within("80,5000-5001,9000\n", 5001));
        assert!(!within("\n", 5000));
    }

    #[test]
    fn reads_every_next_hop_of_a_default_route() {
        let hop = |index: u32| [&8u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes()].concat();
        assert_eq!(next_hops(&[hop(3), hop(7)].concat()), [3, 7]);
        assert_eq!(next_hops(&[0, 0, 0]), Vec::<u32>::new());
    }
}
