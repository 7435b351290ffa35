//! Pipes for splice(2), pooled for each worker.
//!
//! A pipe is held during a transfer only: an unprivileged user may have 64 MiB of pipe buffers in all, and past that
//! the kernel silently hands out pipes of two pages. So the size is read back, not assumed.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Pipes that one worker keeps for the next transfer.
const KEPT: usize = 16;

/// Pipes of full size that one worker has in use at once. A stalled receiver keeps what is in its pipe in the kernel's
/// memory, and root has no quota there: past this number they get pipes of the smallest size.
const LARGE: usize = 64;

/// Below this a pipe is not worth its system calls: the caller copies instead.
const SMALLEST: usize = 64 * 1024;

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

/// A worker's idle pipes.
#[derive(Clone)]
pub struct Pool {
    idle: Rc<RefCell<Vec<Ends>>>,
    in_use: Rc<Cell<usize>>,
    wanted: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle.borrow().len()).finish()
    }
}

/// A pipe in use. Give it back with [`Pipe::recycle`] once it is empty; dropped, it is closed with what is in it.
pub struct Pipe {
    /// There until it is recycled or dropped.
    ends: Ends,
    pool: Pool,
    _turn: InUse,
}

/// Counts a pipe in use.
struct InUse(Rc<Cell<usize>>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").field("size", &self.ends.size).finish()
    }
}

impl Pool {
    /// A pool of pipes of `wanted` bytes each, where the kernel grants that.
    pub fn new(wanted: usize) -> Self {
        Self { idle: Rc::default(), in_use: Rc::default(), wanted }
    }

    /// An empty pipe, or `None` where the system has none left that is worth using.
    pub fn take(&self) -> Option<Pipe> {
        let kept = self.idle.borrow_mut().pop();
        let wanted = if self.in_use.get() < LARGE { self.wanted } else { SMALLEST };
        let ends = match kept {
            Some(ends) => ends,
            None => open(wanted).ok()?,
        };
        if ends.size < SMALLEST {
            return None;
        }
        self.in_use.set(self.in_use.get() + 1);
        Some(Pipe { ends, pool: self.clone(), _turn: InUse(Rc::clone(&self.in_use)) })
    }
}

fn open(wanted: usize) -> io::Result<Ends> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let mut size = wanted;
    // EPERM: over the user's quota or over pipe-max-size. A smaller pipe is nearly as good.
    while size > SMALLEST && fcntl_setpipe_size(&write, size).is_err() {
        size /= 4;
    }
    let size = fcntl_getpipe_size(&write)?;
    Ok(Ends { read, write, size })
}

impl Pipe {
    /// The end that data comes out of.
    pub fn read_end(&self) -> &OwnedFd {
        &self.ends.read
    }

    /// The end that data goes into.
    pub fn write_end(&self) -> &OwnedFd {
        &self.ends.write
    }

    /// Bytes that it holds at the most.
    pub fn size(&self) -> usize {
        self.ends.size
    }

    /// Gives an *empty* pipe back to its worker.
    pub fn recycle(self) {
        let mut idle = self.pool.idle.borrow_mut();
        // A small one is what there was in a time of want.
        if idle.len() < KEPT && (self.ends.size > SMALLEST || self.pool.wanted <= SMALLEST) {
            idle.push(self.ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_says_its_true_size_and_is_used_again() {
        let pool = Pool::new(1 << 20);
        let pipe = pool.take().expect("a pipe");
        assert!(pipe.size() >= SMALLEST);
        let size = fcntl_getpipe_size(pipe.read_end()).expect("its size");
        assert_eq!(pipe.size(), size);
        pipe.recycle();
        assert_eq!(pool.idle.borrow().len(), 1);
        let again = pool.take().expect("the pipe again");
        assert_eq!(pool.idle.borrow().len(), 0);
        drop(again);
        assert_eq!(pool.idle.borrow().len(), 0, "a dropped pipe may hold data and is closed");
        assert_eq!(pool.in_use.get(), 0);
    }

    #[test]
    fn the_many_get_small_pipes() {
        let pool = Pool::new(1 << 17);
        let large: Vec<Pipe> = (0..LARGE).map(|_| pool.take().expect("a pipe")).collect();
        assert!(large.iter().all(|pipe| pipe.size() >= SMALLEST));
        let small = pool.take().expect("a pipe");
        assert_eq!(small.size(), SMALLEST);
        small.recycle();
        assert_eq!(pool.idle.borrow().len(), 0);
    }
}
