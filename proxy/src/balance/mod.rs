//! Which of a site's upstreams is next: round robin among those with the least under way, and none that is out while
//! another is not.
//!
//! Nothing here sends anything or looks at a clock; the simulation in the tests runs it under hundreds of seeds.

pub mod health;
pub mod idle;

use health::Standing;

/// The exchanges under way at each of a site's upstreams, as one worker counts them.
#[derive(Debug)]
pub struct Balance {
    outstanding: Vec<u32>,
    /// The first of those that are equal.
    turn: usize,
}

/// A request that wants an upstream.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'w> {
    /// The upstreams that it was sent to before.
    pub tried: &'w [usize],
    /// Whether it can be sent again, should it fail: such a request may find out whether an upstream is back.
    pub repeatable: bool,
}

impl Balance {
    /// Nothing is under way yet.
    pub fn new(upstreams: usize) -> Self {
        Self { outstanding: vec![0; upstreams], turn: 0 }
    }

    /// The upstream to send it to, and how it stands; none when all were tried. Where all are out, one of them: it may have
    /// come back.
    pub fn choose(&mut self, wish: &Wish<'_>, standing: impl Fn(usize) -> Standing) -> Option<(usize, Standing)> {
        let count = self.outstanding.len();
        let untried = (0..count).map(|offset| (self.turn + offset) % count).filter(|index| !wish.tried.contains(index));
        let standing = untried.map(|index| (index, standing(index)));
        // The first of the equal ones wins, and they come in turn.
        let key = |(index, standing): &(usize, Standing)| (rank(*standing, wish.repeatable), self.outstanding[*index]);
        let chosen = standing.min_by_key(key)?;
        self.turn = chosen.0 + 1;
        Some(chosen)
    }

    /// Whether there is an untried upstream that would be a better choice than an error already in hand.
    pub fn has_better(&self, wish: &Wish<'_>, standing: impl Fn(usize) -> Standing) -> bool {
        let mut untried = (0..self.outstanding.len()).filter(|index| !wish.tried.contains(index));
        untried.any(|index| rank(standing(index), wish.repeatable) != Rank::Out)
    }

    /// Counts an exchange that begins.
    pub fn begin(&mut self, index: usize) {
        self.outstanding[index] += 1;
    }

    /// Counts an exchange that ended, in whatever way.
    pub fn end(&mut self, index: usize) {
        debug_assert!(self.outstanding[index] > 0, "more ends than beginnings");
        self.outstanding[index] = self.outstanding[index].saturating_sub(1);
    }

    /// The exchanges under way at one upstream.
    pub fn outstanding(&self, index: usize) -> u32 {
        self.outstanding[index]
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// First of all, or nobody would ever find out.
    Trial,
    Up,
    Out,
}

/// A request that cannot be repeated is spared the trial, unless no other has come for so long that none may.
fn rank(standing: Standing, repeatable: bool) -> Rank {
    match standing {
        Standing::Due { overdue } if repeatable || overdue => Rank::Trial,
        Standing::Up => Rank::Up,
        Standing::Due { .. } | Standing::Out => Rank::Out,
    }
}

#[cfg(test)]
mod tests;
