//! Rooms for futures: memory of one size that is used again. A request's future is larger than what the allocator has quick
//! ways for, and one that is there for every request would take them the longest each time.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// Bytes of one room.
const ROOM: usize = 4096;

/// Empty rooms that one thread keeps: as many as it usually has futures under way at once.
const KEPT: usize = 256;

#[repr(align(64))]
#[expect(dead_code, reason = "its size and alignment are all that counts")]
struct Room([u8; ROOM]);

type Empty = Box<MaybeUninit<Room>>;

/// One thread's empty rooms.
#[derive(Default)]
pub struct Rooms(RefCell<Vec<Empty>>);

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").field("empty", &self.0.borrow().len()).finish()
    }
}

/// A future in a room, which is empty again when this is dropped.
pub struct Housed<'r, F: Future> {
    rooms: &'r Rooms,
    at: NonNull<F>,
}

impl Rooms {
    /// Makes a future where it stays. As [`Box::pin`], which would make it elsewhere and copy all of its room, kilobytes that
    /// hold nothing yet. That it fits is found out when the program is built.
    pub fn house<F: Future>(&self, make: impl FnOnce() -> F) -> Housed<'_, F> {
        const { assert!(size_of::<F>() <= ROOM && align_of::<F>() <= align_of::<Room>()) };
        let room = self.0.borrow_mut().pop().unwrap_or_else(Box::new_uninit);
        let at = NonNull::from(Box::leak(room)).cast::<F>();
        // SAFETY: the room is nobody else's, and by the assertion it is large enough and aligned.
        unsafe { at.write(make()) };
        Housed { rooms: self, at }
    }
}

impl<F: Future> Future for Housed<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `house` has written the future there, and it stays there, valid and known to nobody else, until `drop`.
        let future = unsafe { Pin::new_unchecked(self.at.as_mut()) };
        future.poll(cx)
    }
}

impl<F: Future> Drop for Housed<'_, F> {
    fn drop(&mut self) {
        // SAFETY: the future is there since `house`, and nobody can look at it any more.
        unsafe { self.at.drop_in_place() };
        // SAFETY: the pointer is that of the room which `house` took out of its box, and the room is empty now.
        let room: Empty = unsafe { Box::from_raw(self.at.cast().as_ptr()) };
        let mut empty = self.rooms.0.borrow_mut();
        if empty.len() < KEPT {
            empty.push(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    struct Told<'t>(&'t Cell<u32>);

    impl Drop for Told<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    async fn pause() {
        let mut first = true;
        poll_fn(|_| if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    async fn busy(told: &Cell<u32>, text: &str) -> String {
        let (_held, mut all) = (Told(told), String::new());
        for letter in text.chars() {
            all.push(letter);
            let last = &mut all;
            pause().await;
            last.push('.');
        }
        all
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn futures_run_side_by_side_and_leave_their_rooms_to_others() {
        let (rooms, told) = (Rooms::default(), Cell::new(0));
        for round in 1..=3 {
            let texts: Vec<String> = (0..10).map(|n| format!("{round}{n}")).collect();
            let mut all: Vec<_> = texts.iter().map(|text| rooms.house(|| busy(&told, text))).collect();
            let mut done = vec![None; all.len()];
            while done.contains(&None) {
                for (future, done) in all.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
                    if let Poll::Ready(text) = poll(pin!(future)) {
                        *done = Some(text);
                    }
                }
            }
            let expected = texts.iter().map(|text| Some(text.chars().map(|c| format!("{c}.")).collect()));
            assert!(done.into_iter().eq(expected));
            drop(all);
            assert_eq!((told.get(), rooms.0.borrow().len()), (round * 10, 10));
        }
    }

    #[test]
    fn one_that_is_given_up_is_dropped_once_and_only_so_many_rooms_are_kept() {
        let (rooms, told) = (Rooms::default(), Cell::new(0));
        let stuck = async |held| {
            let _held = held;
            pending::<()>().await;
        };
        let mut all: Vec<_> = (0..KEPT + 7).map(|_| rooms.house(|| stuck(Told(&told)))).collect();
        for future in all.iter_mut().step_by(2) {
            assert!(poll(pin!(future)).is_pending());
        }
        drop(all);
        assert_eq!((told.get() as usize, rooms.0.borrow().len()), (KEPT + 7, KEPT));
    }
}
