//! Records that are on their way to the socket.

use std::cell::RefCell;
use std::error::Error;
use std::io;

use crate::edge::sys::socket::Socket;

/// What headers, nonces and tags add to a piece, with room to spare; more is found out.
const OVERHEAD: usize = 1024;

/// Empty buffers that a worker keeps for the next piece. Only a receiver that does not keep up holds one.
const KEPT: usize = 4;

thread_local! {
    static EMPTY: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Records in the order in which they were made, which is the order in which they must be sent.
#[derive(Default)]
pub(super) struct Outbox {
    /// Room that has been written to once: not cleared for every piece.
    room: Vec<u8>,
    /// What of it is out.
    sent: usize,
    /// What of it holds records.
    end: usize,
}

impl Outbox {
    /// Adds what `make` puts at the start of the room that it is given, about `length` bytes and what records add. Of an
    /// error `needs` says how much room would have been enough.
    ///
    /// # Errors
    /// Those of `make` that more room does not cure.
    pub(super) fn add<E: Error + Send + Sync + 'static>(
        &mut self,
        length: usize,
        mut make: impl FnMut(&mut [u8]) -> Result<usize, E>,
        needs: impl Fn(&E) -> Option<usize>,
    ) -> io::Result<()> {
        if self.room.is_empty() {
            self.room = EMPTY.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        let mut wanted = length + OVERHEAD;
        loop {
            if self.room.len() < self.end + wanted {
                self.room.resize(self.end + wanted, 0);
            }
            match make(&mut self.room[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(error) => match needs(&error) {
                    Some(enough) if enough > wanted => wanted = enough,
                    _ => return Err(io::Error::other(error)),
                },
            }
        }
    }

    /// Sends what the socket takes: 0 when all is out.
    ///
    /// # Errors
    /// As send(2).
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<usize> {
        if self.sent == self.end {
            self.recycle();
            return Ok(0);
        }
        match socket.try_send(&self.room[self.sent..self.end])? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            n => {
                self.sent += n;
                Ok(n)
            }
        }
    }

    fn recycle(&mut self) {
        (self.sent, self.end) = (0, 0);
        let room = std::mem::take(&mut self.room);
        if !room.is_empty() {
            EMPTY.with_borrow_mut(|kept| {
                if kept.len() < KEPT {
                    kept.push(room);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_needs_more_room_gets_it_and_stands_behind_the_others() {
        let mut out = Outbox::default();
        let needs = |error: &io::Error| error.to_string().parse().ok();
        let fill = |byte: u8, n: usize| {
            move |room: &mut [u8]| {
                let room = room.get_mut(..n).ok_or_else(|| io::Error::other(n.to_string()))?;
                room.fill(byte);
                Ok(n)
            }
        };
        out.add(10, fill(1, 10), needs).unwrap();
        out.add(10, fill(2, 5000), needs).unwrap();
        assert_eq!(out.end, 5010);
        assert!(out.room[..10].iter().all(|b| *b == 1) && out.room[10..5010].iter().all(|b| *b == 2));
        let refused = out.add(10, |_| Err(io::Error::other("no")), needs);
        assert_eq!(refused.unwrap_err().to_string(), "no");
        assert_eq!(out.end, 5010);
    }
}
