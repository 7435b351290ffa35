//! Bodies: from one socket to the other, counted to the byte, never collected.
//!
//! Between plain sockets a body of known length goes through a pipe with splice(2) and never enters this process.
//! Everything else is copied through one buffer, read and written in turn, so that a slow receiver slows the sender
//! down and memory stays flat.

use std::cell::Cell;
use std::io;

use super::stream::Stream;
use super::sys::pipe::{Pipe, Pool};
use super::watch::Watched;
use crate::http::Framing;
use crate::http::chunked::{self, Decoder};

/// After this much without waiting, a relay lets the worker's other connections have a turn.
const TURN_BYTES: u64 = 4 << 20;

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
    /// The size of a copy buffer.
    pub buffer: usize,
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
    /// What has moved so far.
    pub moved: &'c Moved,
}

impl Mover {
    /// Relays one body. `read` holds what was read behind the head already; what belongs to the next message is left in
    /// it. `ahead` is sent in front of the body, in one piece with its beginning.
    ///
    /// # Errors
    /// [`Broken`]; both connections must then be closed.
    pub async fn relay(&self, body: &Body<'_>, read: &mut Vec<u8>, ahead: Vec<u8>) -> Result<(), Broken> {
        body.from.socket().expect_rate();
        body.to.socket().expect_rate();
        match body.framing {
            Framing::None => {
                body.send(&ahead).await?;
                Ok(())
            }
            Framing::Length(length) => self.exactly(body, length, read, ahead).await,
            Framing::Chunked => self.chunks(body, read, ahead).await,
            Framing::UntilClose => self.until_close(body, read, ahead).await,
        }
    }

    async fn exactly(
        &self,
        body: &Body<'_>,
        length: u64,
        read: &mut Vec<u8>,
        mut ahead: Vec<u8>,
    ) -> Result<(), Broken> {
        let first = usize::try_from(length).unwrap_or(usize::MAX).min(read.len());
        ahead.extend(read.drain(..first));
        body.send(&ahead).await?;
        count(&body.moved.copied, first);
        drop(ahead);
        let mut left = length - first as u64;
        if left >= self.threshold
            && let (Some(from), Some(to)) = (body.from.spliceable(), body.to.spliceable())
            && let Some(pipe) = self.pipes.take()
        {
            return self.splice(body.moved, from, to, left, pipe).await;
        }
        let mut buffer = Vec::new();
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer);
            let n = body.receive(&mut buffer, most).await?;
            if n == 0 {
                return Err(short());
            }
            let ours = usize::try_from(left).unwrap_or(usize::MAX).min(n);
            body.send(&buffer[..ours]).await?;
            count(&body.moved.copied, ours);
            left -= ours as u64;
            // A TLS read may bring the beginning of the next request with the end of this one.
            read.extend_from_slice(&buffer[ours..]);
            buffer.clear();
        }
        Ok(())
    }

    async fn chunks(&self, body: &Body<'_>, read: &mut Vec<u8>, mut ahead: Vec<u8>) -> Result<(), Broken> {
        let mut decoder = Decoder::new();
        loop {
            let mut at = 0;
            let mut moved = 0;
            while at < read.len() && !decoder.is_done() {
                let step = decoder.decode(&read[at..])?;
                at += step.consumed;
                moved += step.data.len();
                if body.rechunk {
                    chunked::encode(step.data, &mut ahead);
                } else {
                    ahead.extend_from_slice(step.data);
                }
            }
            read.drain(..at);
            if decoder.is_done() && body.rechunk {
                ahead.extend_from_slice(chunked::LAST_CHUNK);
            }
            body.send(&ahead).await?;
            count(&body.moved.copied, moved);
            ahead.clear();
            if decoder.is_done() {
                return Ok(());
            }
            if body.receive(read, self.buffer).await? == 0 {
                return Err(short());
            }
        }
    }

    async fn until_close(&self, body: &Body<'_>, read: &mut Vec<u8>, mut ahead: Vec<u8>) -> Result<(), Broken> {
        let first = read.len();
        ahead.append(read);
        body.send(&ahead).await?;
        count(&body.moved.copied, first);
        let mut buffer = ahead;
        loop {
            buffer.clear();
            let n = body.receive(&mut buffer, self.buffer).await?;
            if n == 0 {
                return Ok(());
            }
            body.send(&buffer).await?;
            count(&body.moved.copied, n);
        }
    }

    /// Moves exactly `left` bytes through `pipe`. Direct splice(2) after readiness: io_uring's own splice always goes to a
    /// kernel thread, which costs more and stays behind for each stalled client.
    async fn splice(
        &self,
        moved: &Moved,
        from: &Watched,
        to: &Watched,
        mut left: u64,
        pipe: Pipe,
    ) -> Result<(), Broken> {
        let (mut held, mut turn) = (0, 0);
        while left > 0 || held > 0 {
            if held == 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                match from.try_splice_in(&pipe, most) {
                    Ok(0) => return Err(short()),
                    Ok(n) => {
                        held = n;
                        left -= n as u64;
                        from.moved(n as u64);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        from.readable().await.map_err(Broken::Source)?;
                        turn = 0;
                        continue;
                    }
                    Err(error) => return Err(Broken::Source(error)),
                }
            }
            match to.try_splice_out(&pipe, held, left > 0) {
                Ok(n) => {
                    held -= n;
                    turn += n as u64;
                    to.moved(n as u64);
                    count(&moved.spliced, n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    to.writable().await.map_err(Broken::Sink)?;
                    turn = 0;
                }
                Err(error) => return Err(Broken::Sink(error)),
            }
            if turn >= TURN_BYTES {
                // Waiting for what is ready already is how a task of this runtime yields; waking itself would starve others.
                to.writable().await.map_err(Broken::Sink)?;
                turn = 0;
            }
        }
        pipe.recycle();
        Ok(())
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
}
