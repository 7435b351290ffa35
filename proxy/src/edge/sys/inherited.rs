//! Listening sockets across processes: those passed at the start, and which of a shared port's sockets gets what is new.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Takes the sockets that the service manager passes to this very process. To be called once, before anything else is
/// opened.
pub fn take() -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    let mut taken = Vec::new();
    for raw in FIRST..FIRST.saturating_add(count.min(1024)) {
        // SAFETY: whoever set the two variables for this process gave it these descriptors, and nobody else here knows them;
        // that each is open is asked before it is owned.
        let open = unsafe { libc::fcntl(raw, libc::F_GETFD) } >= 0;
        if !open {
            break;
        }
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        taken.push(fd);
    }
    taken
}

/// Of the sockets that listen on the port of `fd`, those from number `first` on, `count` of them, get all connections that
/// begin from now on, each as often as the others. The kernel numbers them in the order in which they began to listen;
/// where there is none of that number, it chooses as it did before.
///
/// # Errors
/// As setsockopt(2).
pub fn steer(fd: BorrowedFd<'_>, first: u32, count: u32) -> io::Result<()> {
    let step = |code: u32, k: u32| {
        let code = u16::try_from(code).unwrap_or(u16::MAX);
        libc::sock_filter { code, jt: 0, jf: 0, k }
    };
    // The negative offsets of BPF's ancillary data, as the kernel takes them.
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, first),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let len = u16::try_from(steps.len()).unwrap_or(0);
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0);
    // SAFETY: the option takes a `sock_fprog` of this size, and copies the steps that it points to before it returns.
    let done = unsafe {
        let value = std::ptr::from_ref(&program).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, value, size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
