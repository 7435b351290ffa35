//! Sockets that other processes know, too: those that a service manager passes, and those of a gate beside this one.
//!
//! A socket that is closed resets the connections in its queue, and those that are about to enter it. So before a gate
//! closes the sockets of a shared port, it has the kernel send everything new to the gate that was started beside it, and
//! goes on accepting until what had begun is there.

use std::fs::File;
use std::io::{self, Seek as _};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::bail;
use rustix::net::{getsockname, sockopt};

use super::sys::inherited;

/// The listening sockets that the service manager passes, by address.
///
/// # Errors
/// When one of them is no listening TCP socket.
pub fn inherited() -> anyhow::Result<Vec<(SocketAddr, OwnedFd)>> {
    let mut found = Vec::new();
    for (number, fd) in inherited::take().into_iter().enumerate() {
        let address = getsockname(&fd).ok().and_then(|address| SocketAddr::try_from(address).ok());
        let listens = sockopt::socket_acceptconn(&fd).unwrap_or(false);
        match address {
            Some(address) if listens => found.push((address, fd)),
            _ => bail!("socket {number} of the service manager is no listening TCP socket: use ListenStream=IP:PORT"),
        }
    }
    Ok(found)
}

/// The sockets of the gates that were started after this one on the same address.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Successors(u32);

/// Has the kernel send all that is new on the address of `ours`, one of `sockets` of this process, to the gates that were
/// started after it.
///
/// # Errors
/// When the kernel's tables cannot be read, or it refuses.
pub fn to_successors(ours: BorrowedFd<'_>, sockets: usize) -> io::Result<Successors> {
    let address: SocketAddr = getsockname(ours)?.try_into()?;
    let (sockets, all) = (number(sockets), number(listening(address)?));
    if all <= sockets {
        return Ok(Successors(0));
    }
    inherited::steer(ours, sockets, all - sockets)?;
    Ok(Successors(all - sockets))
}

impl Successors {
    /// Whether there is any.
    pub fn any(self) -> bool {
        self.0 > 0
    }

    /// Prepares for one of this process's `left` sockets to go. The kernel then moves its last socket, one of a successor,
    /// to the place of the one that went. So there is one place that is a successor's before and after, but when the last of
    /// ours goes: then it has to be one that is nobody's after, and the kernel chooses by itself again.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn before_one_of(self, left: usize, ours: BorrowedFd<'_>) -> io::Result<()> {
        match (self.0, number(left)) {
            (0, _) => Ok(()),
            (successors, 0 | 1) => inherited::steer(ours, successors, 1),
            (successors, left) => inherited::steer(ours, left + successors - 2, 1),
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The kernel's tables of sockets, IPv4 and IPv6.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The same, open.
static OPEN: OnceLock<[Option<Mutex<File>>; 2]> = OnceLock::new();

/// Opens the kernel's tables of sockets now: by the time that one of them is wanted, the gate may open none.
pub fn keep_tables() {
    OPEN.get_or_init(|| TABLES.map(|path| File::open(path).ok().map(Mutex::new)));
}

/// How many sockets listen on exactly this address.
fn listening(address: SocketAddr) -> io::Result<usize> {
    let (which, wanted) = match address {
        SocketAddr::V4(v4) => (0, format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(v6) => {
            let words = v6.ip().octets();
            let words = words.chunks_exact(4).map(|w| format!("{:08X}", u32::from_ne_bytes([w[0], w[1], w[2], w[3]])));
            (1, format!("{}:{:04X}", words.collect::<String>(), v6.port()))
        }
    };
    match OPEN.get().and_then(|open| open[which].as_ref()) {
        Some(open) => {
            let mut file = open.lock().unwrap_or_else(PoisonError::into_inner);
            file.rewind()?;
            count(io::BufReader::new(&*file), &wanted)
        }
        None => count(io::BufReader::new(File::open(TABLES[which])?), &wanted),
    }
}

/// Listening sockets come first in a table.
fn count(table: impl io::BufRead, wanted: &str) -> io::Result<usize> {
    const LISTEN: &str = "0A";
    let mut count = 0;
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        count += usize::from(local == Some(wanted));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_counted_by_their_whole_address() {
        for ip in ["127.0.0.1", "::1"] {
            let Ok(one) = std::net::TcpListener::bind(format!("{ip}:0")) else { continue };
            let address = one.local_addr().unwrap();
            assert_eq!(listening(address).unwrap(), 1, "{address}");
            drop(one);
            assert_eq!(listening(address).unwrap(), 0, "{address}");
        }
    }
}
