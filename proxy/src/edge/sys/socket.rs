//! TCP sockets: the runtime says when they are ready, and we do the system call.
//!
//! Waiting goes through the runtime (io_uring's POLL_ADD, or epoll), moving bytes through non-blocking calls of our
//! own. So no byte ever rests in a future: every future here can be dropped at any time without losing data, which
//! reads and accepts submitted to the ring cannot.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::pin;
use std::task::Poll;

use futures_util::poll;
use monoio::net::TcpStream;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, acceptfrom_with, bind, connect,
    getpeername, getsockname, ipproto, listen, recv, send, shutdown, socket_with, sockopt,
};
use rustix::pipe::{SpliceFlags, splice};

use super::driver::is_on_epoll;
use super::pipe::Pipe;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Connections that the kernel completes for us before we accept them.
const BACKLOG: i32 = 4096;

/// Bytes of a head that are read at once.
const HEAD_ROOM: usize = 16 * 1024;

/// A non-blocking TCP socket that the worker's runtime can wait for.
#[derive(Debug)]
pub struct Socket {
    inner: TcpStream,
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A bound socket that does not listen yet; with `shared`, one of several on the same address among which the kernel will
/// spread connections.
///
/// # Errors
/// As bind(2).
pub fn bound(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let fd = socket_with(family(&address), SocketType::STREAM, FLAGS, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if shared {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    if address.is_ipv6() {
        // "[::]:443" and "0.0.0.0:443" are two listeners, whatever the sysctl says.
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    bind(&fd, &address)?;
    Ok(fd)
}

/// Begins to listen: from now on the kernel completes connections.
///
/// # Errors
/// As listen(2).
pub fn start_listening(fd: &OwnedFd) -> io::Result<()> {
    Ok(listen(fd, BACKLOG)?)
}

/// A fresh socket for an upstream connection, not connected yet.
///
/// # Errors
/// As socket(2).
pub fn unconnected(address: &SocketAddr) -> io::Result<OwnedFd> {
    Ok(socket_with(family(address), SocketType::STREAM, FLAGS, Some(ipproto::TCP))?)
}

/// Refuses a connection to itself. Where nobody listens on a loopback port of the ephemeral range, the kernel may give a
/// socket that very port, and TCP's simultaneous open then connects it with itself: it would answer with our own request.
///
/// # Errors
/// `ConnectionRefused`, which it would have been without that accident.
pub fn refuse_self(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    if getpeername(fd)? == Some(getsockname(fd)?) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// Sets an option that rustix does not know.
///
/// # Errors
/// As setsockopt(2).
pub(super) fn set_option(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let len = value.len() as libc::socklen_t;
    // SAFETY: `fd` is open for the length of the borrow, and the kernel reads `len` bytes from the slice and keeps no pointer.
    let done = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Socket {
    /// Hands a non-blocking socket (listening or connected) to this thread's runtime.
    ///
    /// # Errors
    /// When the runtime cannot register it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        TcpStream::from_std(StdStream::from(fd)).map(|inner| Self { inner })
    }

    /// Connects a socket made by [`unconnected`].
    ///
    /// # Errors
    /// As connect(2); EPERM where a guard protects the address and the socket is not vouched for.
    pub async fn connect(fd: OwnedFd, address: SocketAddr) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&fd, true)?;
        match connect(&fd, &address) {
            Ok(()) => {
                refuse_self(&fd)?;
                return Self::new(fd);
            }
            Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let socket = Self::new(fd)?;
        socket.writable().await?;
        sockopt::socket_error(&socket)??;
        refuse_self(&socket)?;
        Ok(socket)
    }

    /// Waits until there is something to read: data, an end, an error, or a connection to accept.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub async fn readable(&self) -> io::Result<()> {
        if is_on_epoll() {
            // The runtime remembers that something was there, which has been read since: with `false` it asks the kernel and
            // forgets it. The next event is new then, and believed with `true`: `false` would ask the kernel again.
            let asked = poll!(pin!(self.inner.readable(false)));
            return match asked {
                Poll::Ready(done) => done,
                Poll::Pending => self.inner.readable(true).await,
            };
        }
        self.inner.readable(false).await
    }

    /// Waits until there is room to write.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub async fn writable(&self) -> io::Result<()> {
        self.inner.writable(false).await
    }

    /// Accepts one connection, if one is there.
    ///
    /// # Errors
    /// `WouldBlock` when none is; else as accept4(2).
    pub fn try_accept(&self) -> io::Result<(OwnedFd, SocketAddr)> {
        let (fd, address) = acceptfrom_with(self, FLAGS)?;
        let address = address.and_then(|a| SocketAddr::try_from(a).ok());
        let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        // Answers are written whole; waiting for more to send only adds latency.
        sockopt::set_tcp_nodelay(&fd, true)?;
        Ok((fd, address))
    }

    /// Appends at most `most` bytes to `buffer`: 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else as recv(2).
    pub fn try_recv(&self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        buffer.reserve(most);
        // Not more than asked for, though the vector may have more room: what is read must be dealt with.
        let mut window = buffer.spare_capacity_mut();
        if window.len() > most {
            window = &mut window[..most];
        }
        let ((filled, _), _) = recv(self, window, RecvFlags::DONTWAIT)?;
        let n = filled.len();
        let before = buffer.len();
        // SAFETY: `recv` filled the first `n` bytes of the spare capacity.
        unsafe { buffer.set_len(before + n) };
        Ok(n)
    }

    /// As [`Socket::try_recv`] for a head: at most [`HEAD_ROOM`] bytes, read by way of the stack, so that the buffer gets as
    /// much memory as there are bytes and no more. That is a copy of some hundred bytes instead of an allocation that is
    /// too large for the allocator's quick ways.
    ///
    /// # Errors
    /// As [`Socket::try_recv`].
    pub fn try_recv_head(&self, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        let mut room = [const { MaybeUninit::uninit() }; HEAD_ROOM];
        let ((filled, _), _) = recv(self, &mut room[..most.min(HEAD_ROOM)], RecvFlags::DONTWAIT)?;
        buffer.extend_from_slice(filled);
        Ok(filled.len())
    }

    /// Appends at most `most` bytes to `buffer`, but none behind the first `end` in it: those stay in the socket.
    ///
    /// # Errors
    /// As [`Socket::try_recv`].
    pub fn try_recv_through(&self, buffer: &mut Vec<u8>, most: usize, end: &[u8]) -> io::Result<usize> {
        let before = buffer.len();
        buffer.resize(before + most, 0);
        let peeked = recv(self, &mut buffer[before..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        buffer.truncate(before + peeked.as_ref().map_or(0, |(_, n)| *n));
        peeked?;
        let from = before.saturating_sub(end.len() - 1);
        let found = memchr::memmem::find(&buffer[from..], end).map(|at| from + at + end.len() - before);
        let n = found.unwrap_or(buffer.len() - before);
        buffer.truncate(before);
        if n == 0 { Ok(0) } else { self.try_recv(buffer, n) }
    }

    /// Reads into `buffer` from its start: 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else as recv(2).
    pub fn try_recv_into(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self, buffer, RecvFlags::DONTWAIT)?.1)
    }

    /// Looks at what is there without taking it: 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else as recv(2).
    pub fn try_peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1)
    }

    /// Sends what fits.
    ///
    /// # Errors
    /// `WouldBlock` when nothing does; else as send(2).
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    /// Sends what fits; others follow at once, so it may wait to fill a packet.
    ///
    /// # Errors
    /// As [`Socket::try_send`].
    pub fn try_send_with_more(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE)?)
    }

    /// Sends what fits of several pieces in one call.
    ///
    /// # Errors
    /// `WouldBlock` when nothing does; else as writev(2).
    pub fn try_send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(self, pieces)?)
    }

    /// Moves at most `most` bytes from the socket into the pipe without copying them: 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is empty or the pipe full; else as splice(2).
    pub fn try_splice_in(&self, pipe: &Pipe, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(self, None, pipe.write_end(), None, most.min(pipe.size()), flags)?)
    }

    /// Moves at most `most` bytes from the pipe to the socket; `more` says that others follow at once.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; else as splice(2).
    pub fn try_splice_out(&self, pipe: &Pipe, most: usize, more: bool) -> io::Result<usize> {
        let mut flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        if more {
            flags |= SpliceFlags::MORE;
        }
        Ok(splice(pipe.read_end(), None, self, None, most, flags)?)
    }

    /// Sets how many bytes must be there for the socket to be readable (SO_RCVLOWAT, socket(7)), or its end. Whoever waits
    /// for it already is woken up if they are.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_low_water(&self, bytes: u32) -> io::Result<()> {
        set_option(self, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes.to_ne_bytes())
    }

    /// Whether an idle connection can still be used: open, and without a byte that nobody asked for.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0];
        matches!(recv(self, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Whether the peer has sent what nobody has read: closing would then be a reset, which takes from the peer what it
    /// has not read itself. A TLS record of another kind than data shows as an error.
    pub fn has_unread(&self) -> bool {
        let mut byte = [0];
        let seen = recv(self, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(seen, Ok((_, 0)) | Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Makes closing a reset, which nobody takes for the end of a body.
    pub fn reset_on_close(&self) {
        let _ = sockopt::set_socket_linger(self, Some(std::time::Duration::ZERO));
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        let _ = shutdown(self, Shutdown::Write);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.inner`, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}

/// Stops a socket by its number, so that whoever waits for it wakes up and finds it at its end. By number, because the
/// watch must not own what it watches.
///
/// The number must be of a socket that is open: a socket leaves the watch before it is closed.
pub fn stop_raw(fd: RawFd, how: Shutdown) {
    // SAFETY: see above; even a stale number could only stop another socket of this process, not touch memory.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = shutdown(fd, how);
}
