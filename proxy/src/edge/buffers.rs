//! Buffers for bodies that are copied, pooled for each worker: taken when there is something to read, given back as soon
//! as it is written, so that only a receiver that does not keep up holds one.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

/// Full-sized buffers that may be in use at once. They are for speed, and nobody is fast when that many are.
const LARGE: usize = 64;

/// What everybody else gets: 10,000 stalled receivers of encrypted bodies then hold megabytes, not gigabytes.
const SMALL: usize = 16 * 1024;

/// Idle buffers that are kept for the next reader.
const KEPT: usize = 8;

/// A worker's buffers.
#[derive(Debug)]
pub struct Buffers {
    idle: RefCell<Vec<Vec<u8>>>,
    size: usize,
    large: Cell<usize>,
}

/// An empty buffer, given back when it is dropped.
#[derive(Debug)]
pub struct Buffer<'p> {
    bytes: Vec<u8>,
    pool: &'p Buffers,
    large: bool,
}

impl Buffers {
    /// A pool of buffers of `size` bytes each.
    pub fn new(size: usize) -> Self {
        Self { idle: RefCell::default(), size, large: Cell::new(0) }
    }

    /// An empty buffer.
    pub fn take(&self) -> Buffer<'_> {
        let large = self.large.get() < LARGE;
        if !large {
            return Buffer { bytes: Vec::new(), pool: self, large };
        }
        self.large.set(self.large.get() + 1);
        let kept = self.idle.borrow_mut().pop();
        Buffer { bytes: kept.unwrap_or_default(), pool: self, large }
    }
}

impl Buffer<'_> {
    /// How much is to be read into it at once.
    pub fn most(&self) -> usize {
        if self.large { self.pool.size } else { SMALL.min(self.pool.size) }
    }
}

impl Deref for Buffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if !self.large {
            return;
        }
        self.pool.large.set(self.pool.large.get() - 1);
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() < KEPT && self.bytes.capacity() > 0 {
            self.bytes.clear();
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_the_many_get_small_ones() {
        let pool = Buffers::new(1 << 18);
        let mut first = pool.take();
        first.extend_from_slice(b"somebody's");
        first.reserve(1 << 18);
        let place = first.as_ptr();
        drop(first);
        let again = pool.take();
        assert!(again.is_empty() && again.as_ptr() == place);
        let others: Vec<_> = (1..LARGE).map(|_| pool.take()).collect();
        assert!(others.iter().all(|buffer| buffer.most() == 1 << 18));
        assert_eq!(pool.take().most(), SMALL);
        drop(others);
        assert_eq!(pool.take().most(), 1 << 18);
    }
}
