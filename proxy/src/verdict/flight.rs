//! Single flight: however many ask the same question at once, the authenticator hears it once.
//!
//! The first to ask becomes the leader and must land the flight with an answer; the others wait for it. A leader
//! that is dropped without an answer (its client went away) hands the lead to one of those who wait. There is no
//! runtime in here: waiting is a plain [`Future`] woken through its [`Waker`], from whatever thread lands.

use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use super::Answer;
use super::key::Key;
use super::sync::{Arc, Board, Mutex, MutexGuard};

#[derive(Default)]
struct State {
    answer: Option<Answer>,
    /// Whether somebody is asking right now.
    led: bool,
    /// Those who wait, whether or not they have been polled yet.
    interested: usize,
    next_ticket: u64,
    waiting: Vec<(u64, Waker)>,
}

impl State {
    fn is_abandoned(&self) -> bool {
        !self.led && self.answer.is_none() && self.interested == 0
    }
}

type Shared = Arc<Mutex<State>>;

/// The questions in the air. Shared by all workers.
#[derive(Default)]
pub struct Flights {
    open: Board<Shared>,
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").field("open", &self.open.len()).finish()
    }
}

/// What to do about a question.
#[derive(Debug)]
pub enum Role<'f> {
    /// Ask the authenticator and [`land`](Lead::land) the answer.
    Lead(Lead<'f>),
    /// Another asks: wait. Gives the answer, or the lead when the leader was lost.
    Wait(Wait<'f>),
}

/// The duty to bring an answer.
pub struct Lead<'f> {
    flights: &'f Flights,
    key: Key,
    shared: Shared,
    landed: bool,
}

/// The wait for somebody else's answer.
pub struct Wait<'f> {
    flights: &'f Flights,
    key: Key,
    shared: Shared,
    ticket: Option<u64>,
}

/// What a wait ends with.
#[derive(Debug)]
pub enum Arrival<'f> {
    /// The leader's answer.
    Answer(Answer),
    /// The leader was lost: it is now for this one to ask.
    Lead(Lead<'f>),
}

impl std::fmt::Debug for Lead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lead")
    }
}

impl std::fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wait")
    }
}

/// The state stays usable whatever a panicking thread did: every change to it is a single assignment.
fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flights {
    /// Joins the flight of `key`, or begins it.
    pub fn join(&self, key: Key) -> Role<'_> {
        let shared = Arc::new(Mutex::new(State { led: true, ..State::default() }));
        // Counted while the board holds the key: a leader that goes away now must not take the flight off the board, or
        // the next to ask would lead a second one beside this one's.
        match self.open.meet(key, &shared, |open| lock(open).interested += 1) {
            Some(shared) => Role::Wait(Wait { flights: self, key, shared, ticket: None }),
            None => Role::Lead(Lead { flights: self, key, shared, landed: false }),
        }
    }

    /// The number of questions in the air.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no question is in the air.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the flight off the board if it is still this one.
    fn close(&self, key: &Key, shared: &Shared) {
        self.open.remove_if(key, |open| Arc::ptr_eq(open, shared));
    }

    /// The same, unless somebody has joined it meanwhile.
    fn close_abandoned(&self, key: &Key, shared: &Shared) {
        self.open.remove_if(key, |open| Arc::ptr_eq(open, shared) && lock(open).is_abandoned());
    }
}

impl Lead<'_> {
    /// Gives the answer to all who wait. Remember it in the cache *before*: who comes after finds it there.
    pub fn land(mut self, answer: Answer) {
        self.landed = true;
        self.flights.close(&self.key, &self.shared);
        let waiting = {
            let mut state = lock(&self.shared);
            state.answer = Some(answer);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let (heirs, abandoned) = {
            let mut state = lock(&self.shared);
            state.led = false;
            (std::mem::take(&mut state.waiting), state.is_abandoned())
        };
        if abandoned {
            self.flights.close_abandoned(&self.key, &self.shared);
        }
        // All are woken, not one: the one that we pick might be gone too, and then nobody would ask.
        heirs.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl<'f> Future for Wait<'f> {
    type Output = Arrival<'f>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared);
        if let Some(answer) = &state.answer {
            return Poll::Ready(Arrival::Answer(answer.clone()));
        }
        if !state.led {
            state.led = true;
            if let Some(ticket) = self.ticket.take() {
                state.waiting.retain(|(waiting, _)| *waiting != ticket);
            }
            let lead = Lead { flights: self.flights, key: self.key, shared: Arc::clone(&shared), landed: false };
            return Poll::Ready(Arrival::Lead(lead));
        }
        let ticket = *self.ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        match state.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => state.waiting.push((ticket, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        if let Some(ticket) = self.ticket {
            state.waiting.retain(|(waiting, _)| *waiting != ticket);
        }
        state.interested -= 1;
        let abandoned = state.is_abandoned();
        drop(state);
        if abandoned {
            self.flights.close_abandoned(&self.key, &self.shared);
        }
    }
}
