//! Just enough netlink: requests, dumps, attributes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// On a message of a dump: something changed while it was made, and what it lists may be neither the old nor the new.
const INTERRUPTED: u16 = 0x10;
/// A dump that is interrupted this often is given up.
const DUMPS: usize = 20;
/// Larger than any message of a dump: the kernel fills at most 32 KiB at a time.
const BUFFER: usize = 64 * 1024;

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens a socket of one of the families in [`rustix::net::netlink`]; `None` is the one of links and routes.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a list, and calls `each` with the type and the payload of every entry, once the list is known to be whole.
    ///
    /// # Errors
    /// As recv(2), what the kernel answers, and when the list never stays the same while it is read.
    pub(super) fn dump(&mut self, kind: u16, payload: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut entries = Vec::new();
        for _ in 0..DUMPS {
            entries.clear();
            self.send(kind, REQUEST | DUMP, payload)?;
            if self.receive(&mut |kind, payload| entries.push((kind, payload.to_vec())))? {
                entries.iter().for_each(|(kind, payload)| each(*kind, payload));
                return Ok(());
            }
        }
        Err(io::Error::other("it changes all the time while it is read: try again"))
    }

    /// Asks for one thing to be done and waits for the answer.
    pub(super) fn request(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK, payload)?;
        self.receive(&mut |_, _| {}).map(drop)
    }

    /// Asks for a new thing.
    pub(super) fn make(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | CREATE | EXCLUSIVE, payload)?;
        self.receive(&mut |_, _| {}).map(drop)
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(payload);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Whether what was received is whole.
    fn receive(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        let mut whole = true;
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..len];
            while let Some((Head { kind, flags, sequence }, payload, next)) = message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                whole &= flags & INTERRUPTED == 0;
                match kind {
                    DONE => return Ok(whole),
                    ERROR => {
                        let errno = u32_at(payload, 0).map_or(libc::EPROTO, |code| code.cast_signed().wrapping_neg());
                        return if errno == 0 { Ok(whole) } else { Err(io::Error::from_raw_os_error(errno)) };
                    }
                    _ => each(kind, payload),
                }
            }
        }
    }
}

/// A socket that becomes readable when an interface, an address or a route of this network namespace changes.
pub(super) fn follow() -> io::Result<OwnedFd> {
    const LINK: u32 = 1;
    const IPV4_ADDRESS: u32 = 0x10;
    const IPV4_ROUTE: u32 = 0x40;
    const IPV6_ADDRESS: u32 = 0x100;
    const IPV6_ROUTE: u32 = 0x400;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let groups = LINK | IPV4_ADDRESS | IPV4_ROUTE | IPV6_ADDRESS | IPV6_ROUTE;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Throws away what [`follow`] has brought: what has changed is read anew in any case.
pub(super) fn drain(socket: &OwnedFd) {
    let mut buffer = [0; 8 * 1024];
    loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            // ENOBUFS says that messages were lost, which is a change too.
            Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(_) => return,
        }
    }
}

/// What a message says of itself.
struct Head {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of `bytes`: its head, its payload, and what follows.
fn message(bytes: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    let payload = bytes.get(HEADER..len)?;
    let next = bytes.get(aligned(len)..).unwrap_or_default();
    Some((Head { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)? }, payload, next))
}

/// The attributes in `bytes`, by type and payload.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE;
        let payload = rest.get(4..len)?;
        rest = rest.get(aligned(len)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A number in the host's order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// A number in the host's order.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn message_of(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    /// Asks a kernel of ours for a list, of which the first `interrupted` answers are not whole.
    fn listed(interrupted: u32) -> io::Result<Vec<Vec<u8>>> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let kernel = thread::spawn(move || {
            let mut asked = [0; 64];
            while rustix::net::recv(&theirs, &mut asked[..], RecvFlags::empty()).is_ok_and(|(len, _)| len > 0) {
                let sequence = u32_at(&asked, 8).unwrap();
                let entry = message_of(20, 0, sequence, &sequence.to_be_bytes());
                let flags = if sequence <= interrupted { INTERRUPTED } else { 0 };
                for message in [entry, message_of(DONE, flags, sequence, &[0; 4])] {
                    rustix::net::send(&theirs, &message, SendFlags::empty()).unwrap();
                }
            }
        });
        let mut netlink = Netlink { socket: ours, sequence: 0 };
        let mut seen = Vec::new();
        let result = netlink.dump(18, &[0; 16], |_, payload| seen.push(payload.to_vec()));
        drop(netlink);
        kernel.join().unwrap();
        result.map(|()| seen)
    }

    #[test]
    fn a_list_that_changed_while_it_was_read_is_read_again() {
        assert_eq!(listed(0).unwrap(), [[0, 0, 0, 1]]);
        assert_eq!(listed(3).unwrap(), [[0, 0, 0, 4]], "nothing of the lists before it");
        assert!(listed(u32::MAX).unwrap_err().to_string().contains("try again"));
    }

    #[test]
    fn attributes_end_where_the_bytes_do() {
        let mut bytes = vec![5, 0, 1, 0, b'x', 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4];
        let read = |bytes: &[u8]| attributes(bytes).map(|(kind, payload)| (kind, payload.to_vec())).collect::<Vec<_>>();
        assert_eq!(read(&bytes), [(1, vec![b'x']), (2, vec![1, 2, 3, 4])]);
        bytes.truncate(14);
        assert_eq!(read(&bytes), [(1, vec![b'x'])]);
        assert_eq!(read(&[0, 0, 0, 0]), []);
        assert_eq!(read(&[3]), []);
    }
}
