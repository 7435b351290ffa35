//! Bodies: from one socket to the other, counted to the byte, never collected.
//!
//! Between sockets that are plain, or that the kernel encrypts, a body goes through a pipe with splice(2) and never enters
//! this process, if its length is known and worth it or if the sender's end is its end. Everything else is copied through one buffer, read and written in
//! turn, so that a slow receiver slows the sender down and memory stays flat. While there is nothing to read, a
//! transfer holds neither pipe nor buffer.

use std::cell::Cell;
use std::io;

use super::buffers::Buffers;
use super::gather::{Gathering, Pace};
use super::stream::Stream;
use super::sys::pipe::{Pipe, Pool};
use super::watch::Watched;
use crate::http::Framing;
use crate::http::chunked::{self, Decoder};

/// After this much without waiting, a relay lets the worker's other connections have a turn.
const TURN_BYTES: u64 = 4 << 20;

/// A read that brought less than this has emptied the socket.
const SHORT_READ: usize = 32 * 1024;

/// Why a body was not relayed to its end. Neither connection can be used again.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The sender's side ended early or failed.
    #[error("reading the body: {0}")]
    Source(io::Error),
    /// The receiver's side failed.
    #[error("writing the body: {0}")]
    Sink(io::Error),
    /// The sender's chunked coding is malformed.
    #[error("reading the body: {0}")]
    Chunks(#[from] chunked::ChunkError),
    /// The body turned out to be larger than it may be.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
}

fn short() -> Broken {
    Broken::Source(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before its declared length"))
}

/// How a worker moves bodies.
#[derive(Debug)]
pub struct Mover {
    /// The worker's pipes.
    pub pipes: Pool,
    /// The shortest rest of a body that is spliced.
    pub threshold: u64,
    /// The worker's buffers.
    pub buffers: Buffers,
}

/// Body bytes that moved, by way. It is counted as they do, so that a broken transfer is told as it was.
#[derive(Debug, Default)]
pub struct Moved {
    /// Body bytes that crossed user space.
    pub copied: Cell<u64>,
    /// Body bytes that did not.
    pub spliced: Cell<u64>,
}

impl Moved {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.copied.get() + self.spliced.get()
    }
}

/// A body to be relayed.
#[derive(Debug)]
pub struct Body<'c> {
    /// Where it comes from.
    pub from: &'c Stream,
    /// Where it goes.
    pub to: &'c Stream,
    /// How the sender frames it.
    pub framing: Framing,
    /// Whether the receiver gets it in chunks.
    pub rechunk: bool,
    /// How much of it may be there; where its length is told, that was looked at before.
    pub most: u64,
    /// What has moved so far.
    pub moved: &'c Moved,
}

impl Mover {
    /// Relays one body, of which `behind` was read with the head already. What turns out to belong to the next message is
    /// added to `read`. `ahead` is sent in front of the body, in one piece with its beginning.
    ///
    /// # Errors
    /// [`Broken`]; both connections must then be closed.
    pub async fn relay(
        &self,
        body: &Body<'_>,
        behind: &[u8],
        read: &mut Vec<u8>,
        ahead: Vec<u8>,
    ) -> Result<(), Broken> {
        body.from.socket().expect_rate();
        body.to.socket().expect_rate();
        match body.framing {
            Framing::None => {
                read.extend_from_slice(behind);
                body.send(&ahead).await
            }
            Framing::Length(length) => self.exactly(body, length, behind, read, ahead).await,
            Framing::Chunked => Box::pin(self.chunks(body, behind, read, ahead)).await,
            Framing::UntilClose => self.until_close(body, behind, read, ahead).await,
        }
    }

    async fn exactly(
        &self,
        body: &Body<'_>,
        length: u64,
        behind: &[u8],
        read: &mut Vec<u8>,
        mut ahead: Vec<u8>,
    ) -> Result<(), Broken> {
        let first = usize::try_from(length).unwrap_or(usize::MAX).min(behind.len());
        ahead.extend_from_slice(&behind[..first]);
        read.extend_from_slice(&behind[first..]);
        body.send(&ahead).await?;
        count(&body.moved.copied, first);
        drop(ahead);
        let rest = Rest::Exactly(length - first as u64);
        if rest.is_over() {
            return Ok(());
        }
        // In a box of its own: most bodies are small and came with their heads.
        Box::pin(self.flow(body, rest, read)).await
    }

    async fn until_close(
        &self,
        body: &Body<'_>,
        behind: &[u8],
        read: &mut Vec<u8>,
        mut ahead: Vec<u8>,
    ) -> Result<(), Broken> {
        if body.rechunk {
            chunked::encode(behind, &mut ahead);
        } else {
            ahead.extend_from_slice(behind);
        }
        body.send(&ahead).await?;
        count(&body.moved.copied, behind.len());
        drop(ahead);
        Box::pin(self.flow(body, Rest::UntilClose, read)).await?;
        if body.rechunk { body.send(chunked::LAST_CHUNK).await } else { Ok(()) }
    }

    async fn chunks(
        &self,
        body: &Body<'_>,
        behind: &[u8],
        read: &mut Vec<u8>,
        mut ahead: Vec<u8>,
    ) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        let (consumed, moved) = body.recode(&mut decoder, behind, &mut ahead)?;
        read.extend_from_slice(&behind[consumed..]);
        body.send(&ahead).await?;
        count(&body.moved.copied, moved);
        drop(ahead);
        let mut turn = Turn::new(body, Pace::CHUNKED);
        while !decoder.is_done() {
            turn.pause(body, u64::MAX).await?;
            // Reading waits in its own way.
            turn.gathering.end().map_err(Broken::Source)?;
            let mut input = self.buffers.take();
            let most = input.most();
            if body.receive(&mut input, most).await? == 0 {
                return Err(short());
            }
            let mut output = self.buffers.take();
            let (consumed, moved) = body.recode(&mut decoder, &input, &mut output)?;
            body.send(&output).await?;
            count(&body.moved.copied, moved);
            turn.took(input.len());
            turn.empty |= turn.gathering.is_served();
            // What came behind the body is the beginning of the next message.
            read.extend_from_slice(&input[consumed..]);
        }
        Ok(())
    }

    /// Moves the rest of a body that needs no decoding.
    ///
    /// # Errors
    /// [`Broken`]; both connections must then be closed.
    pub async fn flow(&self, body: &Body<'_>, mut rest: Rest, read: &mut Vec<u8>) -> Result<(), Broken> {
        let spliced = rest.is_worth(self.threshold);
        let spliced = spliced && body.from.is_spliceable() && body.to.is_spliceable();
        let mut turn = Turn::new(body, Pace::SPLICED);
        while !rest.is_over() {
            turn.pause(body, if spliced { rest.at_least() } else { 0 }).await?;
            match spliced.then(|| self.pipes.take()).flatten() {
                Some(pipe) => self.splice(body, &mut rest, pipe, &mut turn).await?,
                None => self.copy(body, &mut rest, read, &mut turn).await?,
            }
        }
        turn.gathering.end().map_err(Broken::Source)
    }

    async fn copy<'c>(
        &self,
        body: &Body<'c>,
        rest: &mut Rest,
        read: &mut Vec<u8>,
        turn: &mut Turn<'c>,
    ) -> Result<(), Broken> {
        // Reading waits in its own way.
        turn.gathering.end().map_err(Broken::Source)?;
        let mut buffer = self.buffers.take();
        let most = rest.at_most(buffer.most());
        let n = body.receive(&mut buffer, most).await?;
        if n == 0 {
            return rest.ended(body);
        }
        let ours = rest.at_most(n);
        if body.rechunk {
            let mut output = self.buffers.take();
            chunked::encode(&buffer[..ours], &mut output);
            body.send(&output).await?;
        } else {
            body.send(&buffer[..ours]).await?;
        }
        count(&body.moved.copied, ours);
        rest.take(ours);
        turn.took(n);
        // A TLS read may bring the beginning of the next request with the end of this one.
        read.extend_from_slice(&buffer[ours..]);
        Ok(())
    }

    /// Moves through `pipe` what the sender has, until it has nothing more at the moment. Direct splice(2) after
    /// readiness: io_uring's own splice always goes to a kernel thread, which costs more and stays behind for each
    /// stalled client.
    async fn splice<'c>(
        &self,
        body: &Body<'c>,
        rest: &mut Rest,
        pipe: Pipe,
        turn: &mut Turn<'c>,
    ) -> Result<(), Broken> {
        let (from, to) = (body.from.socket(), body.to.socket());
        while !rest.is_over() {
            let piece = match body.from.try_splice_in(&pipe, rest.at_most(usize::MAX)) {
                Ok(0) => {
                    pipe.recycle();
                    return rest.ended(body);
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    turn.empty = true;
                    break;
                }
                Err(error) => return Err(Broken::Source(error)),
            };
            from.moved(piece as u64);
            rest.take(piece);
            turn.took(piece);
            if body.rechunk {
                body.send_with_more(&chunked::size_line(piece)).await?;
            }
            let more = body.rechunk || rest.goes_on();
            let mut held = piece;
            while held > 0 {
                match body.to.try_splice_out(&pipe, held, more) {
                    Ok(n) => {
                        held -= n;
                        to.moved(n as u64);
                        count(&body.moved.spliced, n);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => turn.wait(to).await?,
                    Err(error) => return Err(Broken::Sink(error)),
                }
            }
            if body.rechunk {
                body.send(chunked::CHUNK_END).await?;
            }
            if turn.gathering.is_on() && piece < pipe.size() {
                // What came since is left to become a piece.
                turn.empty = true;
                break;
            }
            if turn.is_up() {
                turn.wait(to).await?;
            }
        }
        pipe.recycle();
        Ok(())
    }
}

/// What is still to come of a body.
#[derive(Debug, Clone, Copy)]
pub enum Rest {
    /// This many bytes.
    Exactly(u64),
    /// All until the sender's end.
    UntilClose,
    /// Nothing: the sender's end was there.
    Ended,
}

impl Rest {
    fn is_over(self) -> bool {
        matches!(self, Rest::Exactly(0) | Rest::Ended)
    }

    fn is_worth(self, threshold: u64) -> bool {
        !matches!(self, Rest::Exactly(left) if left < threshold)
    }

    fn goes_on(self) -> bool {
        matches!(self, Rest::Exactly(1..))
    }

    /// So much comes for certain, unless it is cut.
    fn at_least(self) -> u64 {
        match self {
            Rest::Exactly(left) => left,
            Rest::UntilClose | Rest::Ended => 0,
        }
    }

    fn at_most(self, room: usize) -> usize {
        match self {
            Rest::Exactly(left) => usize::try_from(left).unwrap_or(usize::MAX).min(room),
            Rest::UntilClose | Rest::Ended => room,
        }
    }

    fn take(&mut self, bytes: usize) {
        if let Rest::Exactly(left) = self {
            *left -= bytes as u64;
        }
    }

    /// The sender ended: fine only where that is how its body ends, and where it is an end and no cut.
    fn ended(&mut self, body: &Body<'_>) -> Result<(), Broken> {
        match self {
            _ if body.from.socket().expired() => Err(Broken::Source(io::ErrorKind::TimedOut.into())),
            Rest::UntilClose if body.from.ended_cleanly() => {
                *self = Rest::Ended;
                Ok(())
            }
            _ => Err(short()),
        }
    }
}

/// A relay's share of its worker's time.
struct Turn<'c> {
    bytes: u64,
    /// The sender has nothing more at the moment.
    empty: bool,
    gathering: Gathering<'c>,
}

impl<'c> Turn<'c> {
    fn new(body: &Body<'c>, pace: Pace) -> Self {
        Self { bytes: 0, empty: false, gathering: Gathering::new(body.from, pace) }
    }

    fn took(&mut self, bytes: usize) {
        self.gathering.took(bytes);
        self.bytes += bytes as u64;
        self.empty = bytes < SHORT_READ;
    }

    fn is_up(&self) -> bool {
        self.bytes >= TURN_BYTES
    }

    /// Waiting for what is ready already is how a task of this runtime yields; waking itself would starve others.
    async fn wait(&mut self, to: &Watched) -> Result<(), Broken> {
        self.bytes = 0;
        to.writable().await.map_err(Broken::Sink)
    }

    /// Waits where the sender has nothing at the moment, or where it is the others' turn; `left` bytes may be gathered.
    async fn pause(&mut self, body: &Body<'_>, left: u64) -> Result<(), Broken> {
        if std::mem::take(&mut self.empty) {
            self.bytes = 0;
            return self.gathering.wait(left).await.map_err(Broken::Source);
        }
        if self.is_up() { self.wait(body.to.socket()).await } else { Ok(()) }
    }
}

fn count(counter: &Cell<u64>, bytes: usize) {
    counter.set(counter.get() + bytes as u64);
}

impl Body<'_> {
    async fn receive(&self, buffer: &mut Vec<u8>, most: usize) -> Result<usize, Broken> {
        match self.from.read(buffer, most).await {
            // Stopped for being too slow: that is no end of a body.
            Ok(0) if self.from.socket().expired() => Err(Broken::Source(io::ErrorKind::TimedOut.into())),
            done => done.map_err(Broken::Source),
        }
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Broken> {
        self.to.write_all(bytes).await.map_err(Broken::Sink)
    }

    /// Sends what others follow at once.
    async fn send_with_more(&self, bytes: &[u8]) -> Result<(), Broken> {
        self.to.write_all_with_more(bytes).await.map_err(Broken::Sink)
    }

    /// Decodes chunked `input`, and writes its data in the receiver's framing: what was consumed, and the data's length.
    fn recode(&self, decoder: &mut Decoder, input: &[u8], out: &mut Vec<u8>) -> Result<(usize, usize), Broken> {
        let (mut consumed, mut moved) = (0, 0);
        while consumed < input.len() && !decoder.is_done() {
            let step = decoder.decode(&input[consumed..])?;
            consumed += step.consumed;
            moved += step.data.len();
            if self.rechunk {
                chunked::encode(step.data, out);
            } else {
                out.extend_from_slice(step.data);
            }
        }
        if self.moved.total() + moved as u64 > self.most {
            return Err(Broken::TooLarge(self.most));
        }
        if decoder.is_done() && self.rechunk {
            out.extend_from_slice(chunked::LAST_CHUNK);
        }
        Ok((consumed, moved))
    }
}
