//! Yardsticks: relays that look at nothing of what they move. What they take is the kernel's part, a little more for being
//! built unoptimised.
//!
//! For small requests: one recv and one send each way on sockets that are kept, in one thread. For large bodies: a thread
//! each way that waits in splice(2) itself, and moves what is there.

use std::convert::Infallible;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::Context;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, listen, recv, send};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice};

/// More than any request or answer of the bench.
const ROOM: usize = 16 << 10;
/// As the pipes of all proxies of the bench.
const PIPE: usize = 1 << 20;
/// Large bodies on their way at once, and more than a client keeps.
const CONNECTIONS: usize = 64;
const LISTENER: u64 = 0;
/// As the tuned nginx have it.
const BACKLOG: i32 = 4096;

/// Where it listens, and what for.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    listen: SocketAddr,
    to: SocketAddr,
    #[arg(long, value_enum, default_value_t = Moves::Small)]
    moves: Moves,
}

/// What a relay is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Moves {
    /// Small requests and answers.
    Small,
    /// Large bodies, through pipes.
    Spliced,
}

impl Moves {
    /// The word for it on a command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Moves::Small => "small",
            Moves::Spliced => "spliced",
        }
    }
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
    match args.moves {
        Moves::Small => relay_small(&listener, args.to),
        Moves::Spliced => relay_large(&listener, args.to),
    }
}

fn relay_small(listener: &TcpListener, to: SocketAddr) -> anyhow::Result<()> {
    let poll = epoll::create(CreateFlags::CLOEXEC).context("cannot create an epoll")?;
    epoll::add(&poll, listener, EventData::new_u64(LISTENER), EventFlags::IN).context("cannot wait for clients")?;
    let mut relay = Relay { poll, ends: Vec::new(), to };
    let mut events = Vec::with_capacity(256);
    let mut buffer = [0; ROOM];
    loop {
        events.clear();
        epoll::wait(&relay.poll, rustix::buffer::spare_capacity(&mut events), None).context("cannot wait")?;
        for event in &events {
            match event.data.u64().checked_sub(1) {
                None => relay.open(listener)?,
                Some(end) => relay.pass(usize::try_from(end)?, &mut buffer),
            }
        }
    }
}

/// Where it comes from, and where it goes.
type Ends = [Arc<TcpStream>; 2];

/// Two threads for each connection that there may be, which stay: the bench adds up the processor time of those there are.
fn relay_large(listener: &TcpListener, to: SocketAddr) -> anyhow::Result<()> {
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            let (ask, asked) = channel::<Ends>();
            let (tell, told) = channel();
            scope.spawn(move || {
                // An end that goes away in the middle is no matter here.
                asked.iter().all(|[from, to]| tell.send(splice_through(&from, &to).is_ok()).is_ok())
            });
            scope.spawn(move || {
                let Err(error) = relay_in_turn(listener, to, &ask, &told);
                // With a thread less it would be measured as less than it is.
                eprintln!("bare relay: {error:#}");
                exit(1);
            });
        }
    });
    Ok(())
}

/// One connection after the other: this thread moves what comes back, and whoever is asked moves the rest.
fn relay_in_turn(
    listener: &TcpListener,
    to: SocketAddr,
    ask: &Sender<Ends>,
    told: &Receiver<bool>,
) -> anyhow::Result<Infallible> {
    loop {
        let client = Arc::new(listener.accept().context("cannot accept")?.0);
        let upstream = Arc::new(TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?);
        client.set_nodelay(true).context("cannot send at once")?;
        upstream.set_nodelay(true).context("cannot send at once")?;
        ask.send([Arc::clone(&client), Arc::clone(&upstream)]).context("a thread is gone")?;
        let _ = splice_through(&upstream, &client);
        told.recv().context("a thread is gone")?;
    }
}

fn splice_through(from: &TcpStream, to: &TcpStream) -> anyhow::Result<()> {
    let (out, into) = pipe().context("cannot make a pipe")?;
    fcntl_setpipe_size(&into, PIPE).context("cannot make a pipe large")?;
    loop {
        let mut held = splice(from, None, &into, None, PIPE, SpliceFlags::MOVE)?;
        if held == 0 {
            return Ok(to.shutdown(Shutdown::Write)?);
        }
        while held > 0 {
            held -= splice(&out, None, to, None, held, SpliceFlags::MOVE)?;
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
