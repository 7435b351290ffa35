//! bpf(2), as far as the guard needs it and aya does not offer it: links without aya's silent fall-back to netlink,
//! link updates for cgroups, and map updates through a shared reference.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

const LINK_CGROUP: u32 = 3;
const LINK_XDP: u32 = 6;

/// Where in the kernel a program may be hooked in (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    /// Packets on their way to a socket.
    InetIngress = 0,
    /// What happens to TCP sockets.
    SockOps = 3,
    /// connect(2) of IPv4 sockets.
    Inet4Connect = 10,
    /// connect(2) of IPv6 sockets.
    Inet6Connect = 11,
    /// Packets as an interface receives them.
    Xdp = 37,
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A network interface, with `XDP_FLAGS_*`.
    Interface(u32, u32),
    /// A cgroup's directory.
    Cgroup(BorrowedFd<'a>),
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The program that runs.
    pub(crate) program: u32,
    /// Where.
    pub(crate) place: Place,
}

/// Where a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On an interface; 0 when the interface is gone.
    Interface(u32),
    /// On a cgroup, by its id and attach type; 0 when the cgroup is gone.
    Cgroup(u64, u32),
    /// On something that the guard never attaches to.
    Other,
}

/// Calls bpf(2) with `attr`, a prefix of `union bpf_attr`.
///
/// # Safety
/// `attr` must be laid out as `command` wants it, and every pointer in it must be valid for what the command does.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the size is that of the attribute; its contents are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative.
    fd.as_raw_fd().unsigned_abs()
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program; the attachment lasts as long as the link, or a pin of it.
pub(crate) fn link_create(program: BorrowedFd<'_>, target: Target<'_>, at: AttachType) -> io::Result<OwnedFd> {
    let (target, flags) = match target {
        Target::Interface(index, flags) => (index, flags),
        Target::Cgroup(dir) => (raw(dir), 0),
    };
    let mut attr = LinkCreate { program: raw(program), target, attach_type: at as u32, flags };
    // SAFETY: the attribute is that of BPF_LINK_CREATE and has no pointers.
    owned(unsafe { bpf(LINK_CREATE, &mut attr) }?)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Swaps the program of a link; no packet passes between the old one and the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    // SAFETY: the attribute is that of BPF_LINK_UPDATE and has no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link at once; closing it would do so some time later.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    // SAFETY: the attribute of BPF_LINK_DETACH is the link's descriptor alone.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    _pad: u32,
}

/// The ids of the programs on a cgroup, sixteen at most.
pub(crate) fn programs_on(cgroup: BorrowedFd<'_>, at: AttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 16];
    let mut attr = Query {
        target: raw(cgroup),
        attach_type: at as u32,
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: 16,
        _pad: 0,
    };
    // SAFETY: the attribute is that of BPF_PROG_QUERY; the kernel writes at most `count` ids to an array that is that
    // long and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    Ok(ids.into_iter().filter(|id| *id != 0).collect())
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    // SAFETY: the attribute is that of BPF_OBJ_PIN; the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attribute is that of BPF_OBJ_GET; the path is a C string that outlives the call.
    owned(unsafe { bpf(OBJ_GET, &mut attr) }?)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<const WORDS: usize>(object: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut words = [0u32; WORDS];
    let len = u32::try_from(size_of_val(&words)).map_err(io::Error::other)?;
    let mut attr = Info { fd: raw(object), len, info: words.as_mut_ptr() as u64 };
    // SAFETY: the attribute is that of BPF_OBJ_GET_INFO_BY_FD; the kernel writes at most `len` bytes to `words`,
    // which are that long, start as zeros and outlive the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(words)
}

/// What the kernel says about a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let [kind, _id, program, _pad, first, second, third, _] = info::<8>(link)?;
    let place = match kind {
        LINK_XDP => Place::Interface(first),
        LINK_CGROUP => {
            let [a, b, c, d] = first.to_ne_bytes();
            let [e, f, g, h] = second.to_ne_bytes();
            Place::Cgroup(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), third)
        }
        _ => Place::Other,
    };
    Ok(LinkInfo { program, place })
}

/// The id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let [_type, id] = info::<2>(program)?;
    Ok(id)
}

/// The type and the key and value sizes of a map.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<(u32, u32, u32)> {
    let [kind, _id, key, value] = info::<4>(map)?;
    Ok((kind, key, value))
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// Makes an array of one value.
pub(crate) fn create_array(value_size: u32) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    let mut attr = MapCreate { kind: ARRAY, key_size: 4, value_size, entries: 1 };
    // SAFETY: the attribute is that of BPF_MAP_CREATE and has no pointers.
    owned(unsafe { bpf(MAP_CREATE, &mut attr) }?)
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_len: u32,
    data_out_len: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len: u32,
    context_out_len: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    _pad: u32,
}

/// Has the kernel run a program once on a frame, in a context such as its hook would give it; returns its verdict.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8]) -> io::Result<u32> {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let mut attr = TestRun {
        program: raw(program),
        data_len: len(frame)?,
        data: frame.as_ptr() as u64,
        repeat: 1,
        context_len: len(context)?,
        context: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the attribute is that of BPF_PROG_TEST_RUN. Frame and context are as long as it says and outlive the call;
    // the kernel only reads them, and has nowhere to write to.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.result)
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Gives a socket a value in a socket-storage map of `u32` values; it goes when the socket goes.
///
/// # Errors
/// When `map` is of another shape, or the kernel refuses.
pub(crate) fn store_for_socket(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let mut attr = MapUpdate {
        map: raw(map),
        _pad: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(&value) as u64,
        flags: 0,
    };
    // SAFETY: the attribute is that of BPF_MAP_UPDATE_ELEM. Key and value are four bytes each and outlive the call;
    // whoever opened the map has checked with `map_shape` that it takes such.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// The cookie of the network namespace that a socket belongs to.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which is that long, and the new length to `len`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
