//! Waiting for more of a body at once, while it comes fast.
//!
//! A gate is faster than whoever sends through it: left alone it wakes up for every little that has come, and that was a
//! third of what a blob cost. So the kernel is told to wake it for a good piece only (SO_RCVLOWAT, socket(7)). What
//! comes slowly is not held up for that: once a piece takes longer than [`PATIENCE`], whatever is there goes on, and the
//! body has to prove anew that it comes fast.

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use monoio::time::sleep;

use super::stream::Stream;

/// How long bytes may wait for others. With 5 ms patience ran out too often when eight downloads shared a registry.
const PATIENCE: Duration = Duration::from_millis(20);

/// So many bytes move as they come once patience ran out, so that what trickles is held up once and then hardly ever.
const NEW_PROOF: u64 = 4 << 20;

/// What is waited for, and in which bodies.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The bytes that are worth waking up for. The kernel lets the socket's receive buffer grow to hold twice as much.
    piece: u32,
    /// So many bytes of a body move as they come before the rest is gathered: a short one is left alone.
    proof: u64,
}

impl Pace {
    /// For what is spliced, and of known length. A piece is less than a pipe, so that what comes until it is fetched fits in,
    /// too. What comes at less than 40 MB/s is not gathered.
    pub const SPLICED: Self = Self { piece: 768 * 1024, proof: 1 << 20 };

    /// For chunks, where patience has to run out at the end: nobody knows that it is one. `docker push` writes a chunk of
    /// 32 KiB in three parts, and sends several layers at once, each at little more than 10 MB/s.
    pub const CHUNKED: Self = Self { piece: 128 * 1024, proof: 4 << 20 };
}

/// How one body's bytes are waited for.
#[derive(Debug)]
pub struct Gathering<'c> {
    from: &'c Stream,
    pace: Pace,
    /// Bytes still to move before anything is gathered.
    proof: u64,
    /// Whether the socket's low-water mark is raised. It must not stay so: a short answer would never be seen.
    raised: bool,
    /// Bytes that have not moved of the piece that was waited for last.
    due: Option<u64>,
}

impl<'c> Gathering<'c> {
    /// For a body that begins to come from `from`.
    pub fn new(from: &'c Stream, pace: Pace) -> Self {
        Self { from, pace, proof: pace.proof, raised: false, due: None }
    }

    /// Counts bytes that moved.
    pub fn took(&mut self, bytes: usize) {
        self.proof = self.proof.saturating_sub(bytes as u64);
        self.due = self.due.map(|due| due.saturating_sub(bytes as u64));
    }

    /// Whether a whole piece was waited for and has moved: what came since is left to become the next one.
    pub fn is_served(&self) -> bool {
        self.due == Some(0)
    }

    /// Whether pieces are waited for: a look without waiting would find less.
    pub fn is_on(&self) -> bool {
        self.raised
    }

    /// Waits for bytes of a body of which `left` may still come.
    ///
    /// # Errors
    /// When the socket refuses its mark, or the runtime cannot wait for it.
    pub async fn wait(&mut self, left: u64) -> io::Result<()> {
        self.due = None;
        // A socket that the kernel decrypts counts records, not bytes.
        let worth = self.proof == 0 && left >= 2 * u64::from(self.pace.piece) && !self.from.is_kernel_tls();
        if !worth {
            self.end()?;
            return self.from.wait().await;
        }
        if !self.raised {
            self.from.socket().set_low_water(self.pace.piece)?;
            self.raised = true;
        }
        let from = self.from;
        match select(pin!(from.wait()), pin!(sleep(PATIENCE))).await {
            Either::Left((ready, _)) => {
                self.due = Some(self.pace.piece.into());
                ready
            }
            Either::Right(((), ready)) => {
                self.proof = NEW_PROOF;
                // Whoever waits for the socket wakes up at that, if anything is there.
                self.end()?;
                ready.await
            }
        }
    }

    /// From now on the socket is readable as soon as there is a byte. To be called before anybody else waits for it.
    ///
    /// # Errors
    /// When the socket refuses its mark.
    pub fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.raised) { self.from.socket().set_low_water(1) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::thread;

    use rustix::io::ioctl_fionread;

    use super::*;
    use crate::edge::sys::driver::Driver;
    use crate::edge::sys::socket::Socket;
    use crate::edge::watch::Watch;
    use crate::limit::MinimumRate;

    const TOTAL: usize = 64 << 20;

    /// A sender, and the receiver's end of its connection on this thread's runtime.
    fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let sender = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        let receiver = listener.accept().expect("the connection").0;
        receiver.set_nonblocking(true).expect("it does not block");
        let socket = Socket::new(OwnedFd::from(receiver)).expect("it is registered");
        (sender, Stream::plain(Watch::new(MinimumRate { bytes_per_second: 0, window: 60_000 }).add(socket)))
    }

    /// Takes what is there, as much as a pipe does.
    fn take(from: &Stream) -> usize {
        from.socket().try_recv(&mut Vec::new(), 1 << 20).expect("something, or the end")
    }

    #[test]
    fn a_body_that_comes_fast_is_waited_for_by_the_piece() {
        Driver::build().expect("a runtime").block_on(async {
            let (mut sender, receiver) = pair();
            let sending = thread::spawn(move || {
                for _ in 0..TOTAL / 16384 {
                    sender.write_all(&[b'x'; 16384]).expect("it is sent");
                }
            });
            let (mut gathering, mut left, mut tried) = (Gathering::new(&receiver, Pace::SPLICED), TOTAL, false);
            let (mut pieces, mut early) = (0, 0);
            while left > 0 {
                gathering.wait(left as u64).await.expect("it can be waited for");
                let there = ioctl_fionread(receiver.socket()).expect("what is there");
                match there >= u64::from(Pace::SPLICED.piece) {
                    _ if !gathering.is_on() => {}
                    true => pieces += 1,
                    // The kernel does not wait for more where the sender may send no more at the moment.
                    false => early += 1,
                }
                tried |= gathering.is_on() || gathering.proof == NEW_PROOF;
                let n = take(&receiver);
                gathering.took(n);
                left -= n;
            }
            assert!(tried && pieces >= early, "{pieces} pieces, and {early} wake-ups for less");
            assert!(!gathering.is_on(), "the end is not waited for by the piece");
            sending.join().expect("all was sent");
        });
    }

    #[test]
    fn less_than_a_piece_does_not_wait_for_ever() {
        Driver::build().expect("a runtime").block_on(async {
            let (mut sender, receiver) = pair();
            let mut gathering = Gathering::new(&receiver, Pace::SPLICED);
            gathering.took(1 << 20);
            for _ in 0..3 {
                sender.write_all(b"few").expect("it is sent");
                gathering.wait(u64::MAX).await.expect("it can be waited for");
                assert_eq!(take(&receiver), 3);
                assert!(!gathering.is_on());
                gathering.took(3);
            }
            drop(sender);
            gathering.took(16 << 20);
            gathering.wait(u64::MAX).await.expect("an end can be waited for");
            assert_eq!(take(&receiver), 0);
        });
    }
}
