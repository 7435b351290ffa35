//! A yardstick for small requests: one recv and one send each way on sockets that are kept, in one thread, and nothing of
//! what it moves is looked at. What it takes is the kernel's part, a little more for being built unoptimised.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, listen, recv, send};

/// More than any request or answer of the bench.
const ROOM: usize = 16 << 10;
const LISTENER: u64 = 0;
/// As the tuned nginx have it.
const BACKLOG: i32 = 4096;

/// Where it listens, and what for.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    listen: SocketAddr,
    to: SocketAddr,
}

/// Both ends of a connection through the relay. End `n` of all stands for the event `n + 1`; its other end is `n ^ 1`.
#[derive(Debug)]
struct Relay {
    poll: OwnedFd,
    ends: Vec<Option<OwnedFd>>,
    to: SocketAddr,
}

/// Relays until it is killed.
///
/// # Errors
/// When it cannot listen, or what it relays to is not there.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    // More than std asks for: with fewer, clients that come all at once wait for a second and try again.
    listen(&listener, BACKLOG).context("cannot let clients wait")?;
    let poll = epoll::create(CreateFlags::CLOEXEC).context("cannot create an epoll")?;
    epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN).context("cannot wait for clients")?;
    let mut relay = Relay { poll, ends: Vec::new(), to: args.to };
    let mut events = Vec::with_capacity(256);
    let mut buffer = [0; ROOM];
    loop {
        events.clear();
        epoll::wait(&relay.poll, rustix::buffer::spare_capacity(&mut events), None).context("cannot wait")?;
        for event in &events {
            match event.data.u64().checked_sub(1) {
                None => relay.open(&listener)?,
                Some(end) => relay.pass(usize::try_from(end)?, &mut buffer),
            }
        }
    }
}

impl Relay {
    fn open(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        let (client, _) = listener.accept().context("cannot accept")?;
        let upstream = TcpStream::connect(self.to).with_context(|| format!("cannot connect to {}", self.to))?;
        for end in [client, upstream] {
            end.set_nodelay(true).context("cannot send at once")?;
            let data = EventData::new_u64(self.ends.len() as u64 + 1);
            epoll::add(&self.poll, &end, data, EventFlags::IN).context("cannot wait for a connection")?;
            self.ends.push(Some(end.into()));
        }
        Ok(())
    }

    fn pass(&mut self, end: usize, buffer: &mut [u8; ROOM]) {
        let (Some(from), Some(to)) = (&self.ends[end], &self.ends[end ^ 1]) else { return };
        let moved = match recv(from.as_fd(), &mut buffer[..], RecvFlags::empty()) {
            // Small: it fits into an empty socket.
            Ok((_, n)) if n > 0 => send(to.as_fd(), &buffer[..n], SendFlags::NOSIGNAL).is_ok_and(|sent| sent == n),
            _ => false,
        };
        if !moved {
            self.ends[end] = None;
            self.ends[end ^ 1] = None;
        }
    }
}
