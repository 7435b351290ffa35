//! Whether an upstream is worth a request.
//!
//! Two witnesses are heard. *Exchanges*: after some failures in a row the upstream is out for a while; then one exchange,
//! the trial, may find out whether it is back, and each trial that fails doubles the while. *Checks*: the gate's own
//! questions, where they are switched on; what they call sick stays out until they call it well.

use crate::limit::Millis;

/// When an upstream is out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Failures in a row, of exchanges or of checks.
    pub failures: u32,
    /// Good checks in a row that make a sick one well.
    pub successes: u32,
    /// The first while that it is out.
    pub pause: Millis,
    /// The longest one.
    pub longest: Millis,
}

/// One upstream's health.
#[derive(Debug)]
pub struct Health {
    terms: Terms,
    /// Goes up whenever the upstream goes out or comes back: what began before says nothing about now.
    era: u64,
    /// Of exchanges, in a row.
    failures: u32,
    out: Option<Out>,
    checks: Checks,
}

#[derive(Debug)]
struct Out {
    until: Millis,
    pause: Millis,
    on_trial: bool,
}

#[derive(Debug, Default)]
struct Checks {
    failed: u32,
    passed: u32,
    sick: bool,
}

/// How an upstream stands with those who choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    Up,
    /// Its time is over: one exchange may try it. `overdue` when none has for as long again.
    Due {
        /// See above.
        overdue: bool,
    },
    /// Not while there is another.
    Out,
}

/// An exchange that began, to be told of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    era: u64,
    trial: bool,
}

impl Ticket {
    /// A ticket of this era that is no trial; for one that is up, nothing has to be written down.
    pub fn ordinary(era: u64) -> Self {
        Self { era, trial: false }
    }

    /// Whether it is the trial of one that is out.
    pub fn is_trial(&self) -> bool {
        self.trial
    }
}

/// What a witness changed; worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Exchanges failed: out for so long.
    Out(Millis),
    /// An exchange went well: back.
    Back,
    /// Checks failed: out until they say otherwise.
    Sick,
    /// Checks went well again.
    Well,
}

impl Health {
    /// Nothing is known against it yet.
    pub fn new(terms: Terms) -> Self {
        Self { terms, era: 0, failures: 0, out: None, checks: Checks::default() }
    }

    /// How it stands.
    pub fn standing(&self, now: Millis) -> Standing {
        match &self.out {
            _ if self.checks.sick => Standing::Out,
            None => Standing::Up,
            Some(out) if out.on_trial || now < out.until => Standing::Out,
            Some(out) => Standing::Due { overdue: now - out.until >= out.pause },
        }
    }

    /// Whether it is up and no failure is counted.
    pub fn is_calm(&self) -> bool {
        self.is_up() && self.failures == 0
    }

    /// Whether it is neither out nor sick.
    pub fn is_up(&self) -> bool {
        self.out.is_none() && !self.checks.sick
    }

    /// The present era.
    pub fn era(&self) -> u64 {
        self.era
    }

    /// Begins an exchange; it is the trial when one is due. None when it was chosen for a trial that somebody else has
    /// begun since.
    pub fn begin(&mut self, chosen_as: Standing, now: Millis) -> Option<Ticket> {
        let standing = self.standing(now);
        let trial = matches!(standing, Standing::Due { .. });
        if matches!(chosen_as, Standing::Due { .. }) && standing == Standing::Out {
            return None;
        }
        if let Some(out) = self.out.as_mut().filter(|_| trial) {
            out.on_trial = true;
        }
        Some(Ticket { era: self.era, trial })
    }

    /// An exchange had its answer.
    pub fn succeeded(&mut self, ticket: Ticket) -> Option<Change> {
        if ticket.era != self.era {
            return None;
        }
        self.failures = 0;
        self.out.take()?;
        self.era += 1;
        Some(Change::Back)
    }

    /// An exchange failed by the upstream's fault.
    pub fn failed(&mut self, ticket: Ticket, now: Millis) -> Option<Change> {
        if ticket.era != self.era {
            return None;
        }
        let pause = match &self.out {
            None => {
                self.failures += 1;
                if self.failures < self.terms.failures {
                    return None;
                }
                self.terms.pause
            }
            Some(out) if ticket.trial => out.pause.saturating_mul(2).min(self.terms.longest),
            // It was sent because all were out; its failure is no news.
            Some(_) => return None,
        };
        (self.failures, self.era) = (0, self.era + 1);
        self.out = Some(Out { until: now.saturating_add(pause), pause, on_trial: false });
        Some(Change::Out(pause))
    }

    /// An exchange ended without telling anything: its client went away.
    pub fn abandoned(&mut self, ticket: Ticket) {
        if let Some(out) = self.out.as_mut().filter(|_| ticket.trial && ticket.era == self.era) {
            out.on_trial = false;
        }
    }

    /// A check was answered, well or not.
    pub fn checked(&mut self, well: bool) -> Option<Change> {
        let checks = &mut self.checks;
        if well {
            checks.failed = 0;
            checks.passed = checks.passed.saturating_add(1);
            if checks.sick && checks.passed >= self.terms.successes {
                checks.sick = false;
                return Some(Change::Well);
            }
        } else {
            checks.passed = 0;
            checks.failed = checks.failed.saturating_add(1);
            if !checks.sick && checks.failed >= self.terms.failures {
                checks.sick = true;
                return Some(Change::Sick);
            }
        }
        None
    }
}
