//! Admission: from a request to a verdict, by the cache, by a flight that is in the air, or by asking.
//!
//! The words ("what does this answer mean, may they do this") are the core's; here is only who gets asked, and when.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts::Attempts;
use super::auth_backend::{self, Subrequest};
use super::hashing::Hashers;
use super::passwords::Passwords;
use super::upstream::Pool;
use crate::auth::{Principal, credentials};
use crate::config::{Kind, Verdicts};
use crate::forward::Downstream;
use crate::http::RequestHead;
use crate::limit::Millis;
use crate::limit::turns::{Full, Turns};
use crate::policy::Policy;
use crate::registry::access::{Access, Action};
use crate::verdict::cache::{Cache, Terms};
use crate::verdict::epoch::Epochs;
use crate::verdict::flight::{Arrival, Flights, Role};
use crate::verdict::key::{BootKey, Key, Question, Scope};
use crate::verdict::{self, Answer, Verdict};

/// Where a verdict came from, for the log and the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No login is needed or none was given.
    Policy,
    /// Remembered.
    Cache,
    /// Somebody else was asking the same.
    Flight,
    /// The authenticator was asked.
    Asked,
    /// Nobody was asked: too many wrong passwords came from there.
    Throttle,
    /// Remembered, and used after its time because nobody could be asked.
    Stale,
    /// Nobody was asked: a certificate says who it is.
    Certificate,
}

impl Source {
    /// One word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Policy => "policy",
            Source::Cache => "cache",
            Source::Flight => "flight",
            Source::Asked => "asked",
            Source::Throttle => "throttle",
            Source::Stale => "stale",
            Source::Certificate => "certificate",
        }
    }
}

/// One request that wants a verdict.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'r> {
    /// The number of the site.
    pub site: usize,
    /// What the site's upstreams speak.
    pub kind: Kind,
    /// The request.
    pub head: &'r RequestHead<'r>,
    /// The one target that everybody sees.
    pub target: &'r str,
    /// All that must be allowed.
    pub accesses: &'r [Access],
    /// The client's connection.
    pub from: &'r Downstream<'r>,
    /// When the question came up.
    pub at: Instant,
}

/// The authenticators, what they said, and the policy. Shared by all workers.
#[derive(Debug)]
pub struct Gate {
    memory: Arc<Memory>,
    policy: Policy,
    terms: Terms,
    htpasswd: Option<Arc<Passwords>>,
    hashers: Arc<Hashers>,
    turns: Arc<Turns>,
    auth_timeout: Duration,
    attempts: Arc<Attempts>,
}

/// What was said, and what is being asked. A configuration with other authenticators or rules begins a new one: a question
/// that is still on its way to the old ones cannot leave its answer to the new ones.
#[derive(Debug)]
struct Memory {
    boot: BootKey,
    epochs: Epochs,
    start: Instant,
    cache: Cache,
    flights: Flights,
}

/// What a [`Gate`] is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// 32 random bytes.
    pub secret: [u8; 32],
    /// The gate of an earlier configuration.
    pub before: Option<Before<'a>>,
    /// Who may do what.
    pub policy: Policy,
    /// How long answers are remembered.
    pub verdicts: Verdicts,
    /// Asked first.
    pub htpasswd: Option<Arc<Passwords>>,
    /// The helpers that compute hashes; they begin with [`Gate::start`].
    pub hashers: Arc<Hashers>,
    /// Subrequests at once, and how many more may wait.
    pub turns: Arc<Turns>,
    /// For one subrequest, the wait for its turn included.
    pub auth_timeout: Duration,
    /// Failed logins.
    pub attempts: Arc<Attempts>,
}

/// The gate that another one follows.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// The gate.
    pub gate: &'a Gate,
    /// Whether what it remembers holds for the new one, too.
    pub holds: bool,
}

/// An answer with the lifetime that its sender asked for.
type Asked = (Answer, Option<Duration>);

type Sourced = (Answer, Source);

fn unavailable(why: &'static str) -> Asked {
    (Answer::Unavailable { why }, None)
}

impl Gate {
    /// A gate that remembers nothing yet, or what an earlier one did.
    pub fn new(parts: Parts<'_>) -> Self {
        let memory = match parts.before {
            Some(Before { gate, holds: true }) => Arc::clone(&gate.memory),
            before => Arc::new(Memory {
                boot: BootKey::new(&parts.secret),
                epochs: Epochs::default(),
                // Failed logins are counted on, by the same clock.
                start: before.map_or_else(Instant::now, |before| before.gate.memory.start),
                cache: Cache::new(parts.verdicts.capacity),
                flights: Flights::default(),
            }),
        };
        Self {
            memory,
            policy: parts.policy,
            terms: Terms {
                allow: parts.verdicts.allow_ttl,
                deny: parts.verdicts.deny_ttl,
                stale: parts.verdicts.stale_if_error,
            },
            htpasswd: parts.htpasswd,
            hashers: parts.hashers,
            turns: parts.turns,
            auth_timeout: parts.auth_timeout,
            attempts: parts.attempts,
        }
    }

    /// Starts the helpers that check passwords, where there is a file to check against.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(&self) -> std::io::Result<()> {
        if self.htpasswd.is_some() { self.hashers.start() } else { Ok(()) }
    }

    /// Looks at the htpasswd file and takes it when it changed; all that was remembered is then forgotten at once. What there
    /// is to say of it.
    pub fn look_at_htpasswd(&self) -> Option<Result<String, String>> {
        let looked = self.htpasswd.as_ref()?.look()?;
        if looked.is_ok() {
            self.forget();
        }
        Some(looked)
    }

    /// The htpasswd file, to be used on.
    pub fn htpasswd(&self) -> Option<&Arc<Passwords>> {
        self.htpasswd.as_ref()
    }

    /// The helpers that compute hashes.
    pub fn hashers(&self) -> &Arc<Hashers> {
        &self.hashers
    }

    /// The turns at the auth backend.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// The failed logins.
    pub fn attempts(&self) -> &Arc<Attempts> {
        &self.attempts
    }

    /// Begins a new epoch: no answer given before is found again.
    pub fn forget(&self) {
        self.memory.epochs.end();
    }

    /// Begins a new epoch for one user, of whom no answer given before is found again.
    pub fn forget_user(&self, user: &str) {
        self.memory.epochs.end_of(user);
    }

    /// The number of answers remembered.
    pub fn remembered(&self) -> usize {
        self.memory.cache.len()
    }

    /// How many answers were thrown out for want of room.
    pub fn evicted(&self) -> u64 {
        self.memory.cache.evicted()
    }

    /// The number of questions that are being asked.
    pub fn questions(&self) -> usize {
        self.memory.flights.len()
    }

    /// The verdict on a request. `backend` is the worker's way to the auth backend, where there is one.
    pub async fn admit(&self, ask: &Ask<'_>, backend: Option<&Backend>) -> (Verdict, Source) {
        // A certificate says who comes only where no credentials do.
        if ask.head.authorization.is_none() {
            if let Some(principal) = ask.from.certificate.and_then(|certificate| certificate.principal.clone()) {
                let answer = Answer::Known(principal.into());
                return (verdict::decide(&answer, &self.policy, ask.accesses), Source::Certificate);
            }
            if let Some(permit) = verdict::anonymous(&self.policy, ask.accesses) {
                return (Ok(permit), Source::Policy);
            }
            if backend.is_none() {
                let answer = Answer::Unknown { challenge: None };
                return (verdict::decide(&answer, &self.policy, ask.accesses), Source::Policy);
            }
        }
        let (answer, source) = self.answer(ask, backend).await;
        (verdict::decide(&answer, &self.policy, ask.accesses), source)
    }

    async fn answer(&self, ask: &Ask<'_>, backend: Option<&Backend>) -> (Answer, Source) {
        let user = || Some(credentials::parse(ask.head.authorization?).ok()?.user);
        let question = Question {
            epoch: self.memory.epochs.of(user),
            site: ask.site,
            secure: ask.from.secure,
            authorization: ask.head.authorization,
            certificate: ask.from.certificate.map(|certificate| &certificate.fingerprint),
            scope: scope(ask, backend.is_some()),
        };
        let key = self.memory.boot.key(&question);
        let (answer, source) = self.fresh(key, &question, ask, backend).await;
        // A revocation while nobody answered counts as much as one before.
        if matches!(answer, Answer::Unavailable { .. })
            && self.memory.epochs.of(user) == question.epoch
            && let Some(stale) = self.stale(key, &question, ask)
        {
            return self.pass(ask, stale, Source::Stale, self.now());
        }
        (answer, source)
    }

    /// A remembered answer, unless it would tell a source that guesses that this guess was right.
    fn pass(&self, ask: &Ask<'_>, answer: Answer, source: Source, now: Millis) -> Sourced {
        match self.attempts.pass(ask.head.authorization, ask.from.peer, &answer, now) {
            Ok(()) => (answer, source),
            Err(retry_after) => (Answer::Throttled { retry_after }, Source::Throttle),
        }
    }

    async fn fresh(&self, key: Key, question: &Question<'_>, ask: &Ask<'_>, backend: Option<&Backend>) -> Sourced {
        let now = self.at(ask.at);
        if let Some(answer) = self.memory.cache.get(&key, now) {
            return self.pass(ask, answer, Source::Cache, now);
        }
        // Before the flight, not in it: equal questions from two sources share a flight, but not their failures.
        let attempt = match self.attempts.begin(ask.head.authorization, ask.from.peer, now) {
            Ok(attempt) => attempt,
            Err(retry_after) => return (Answer::Throttled { retry_after }, Source::Throttle),
        };
        // In a box of its own: most answers are remembered, and need none of its room.
        let (answer, source) = Box::pin(self.fly(key, question, ask, backend)).await;
        attempt.end(&answer, self.now());
        (answer, source)
    }

    async fn fly(&self, key: Key, question: &Question<'_>, ask: &Ask<'_>, backend: Option<&Backend>) -> Sourced {
        let lead = match self.memory.flights.join(key) {
            Role::Lead(lead) => lead,
            Role::Wait(wait) => match wait.await {
                Arrival::Answer(answer) => return (answer, Source::Flight),
                Arrival::Lead(lead) => lead,
            },
        };
        // Another flight may have landed between the look into the cache and ours.
        if let Some(answer) = self.memory.cache.get(&key, self.now()) {
            lead.land(answer.clone());
            return (answer, Source::Cache);
        }
        let (answer, lifetime) = self.ask(ask, backend).await;
        self.memory.cache.learn(key, &answer, lifetime, &self.terms, self.now());
        if !self.terms.stale.is_zero() {
            self.learn_credential(question, &answer);
        }
        lead.land(answer.clone());
        (answer, Source::Asked)
    }

    /// A credential that was refused for one repository is not good for another, whatever was said of that before.
    fn learn_credential(&self, question: &Question<'_>, answer: &Answer) {
        match answer {
            Answer::Unknown { .. } => self.memory.cache.learn_refused(self.refused(question), &self.terms, self.now()),
            Answer::Known(_) => self.memory.cache.forget(&self.refused(question)),
            _ => {}
        }
    }

    /// The place of the note that a credential was refused.
    fn refused(&self, question: &Question<'_>) -> Key {
        self.memory.boot.key(&Question { scope: Scope::Refused, ..*question })
    }

    /// What may stand in for the authenticators: a permission to pull from a registry, and nothing else.
    fn stale(&self, key: Key, question: &Question<'_>, ask: &Ask<'_>) -> Option<Answer> {
        let pulls = ask.kind == Kind::Registry
            && matches!(ask.head.method, "GET" | "HEAD")
            && !ask.accesses.is_empty()
            && ask.accesses.iter().all(|access| access.action == Action::Pull);
        if !pulls || self.terms.stale.is_zero() {
            return None;
        }
        let now = self.now();
        self.memory.cache.stale(&key, now).filter(|_| self.memory.cache.get(&self.refused(question), now).is_none())
    }

    fn now(&self) -> Millis {
        self.at(Instant::now())
    }

    fn at(&self, moment: Instant) -> Millis {
        Millis::try_from(moment.saturating_duration_since(self.memory.start).as_millis()).unwrap_or(Millis::MAX)
    }

    /// Asks the authenticators: the htpasswd file first, then the backend.
    async fn ask(&self, ask: &Ask<'_>, backend: Option<&Backend>) -> Asked {
        let basic = ask.head.authorization.map(credentials::parse);
        if let (Some(file), Some(Ok(basic))) = (&self.htpasswd, &basic) {
            let file = file.current();
            let (user, password) = (basic.user.clone(), basic.password.clone());
            match self.hashers.run(move || file.verify(&user, password.expose())).await {
                Ok(true) => return (Answer::Known(Principal::user(basic.user.as_str()).into()), None),
                Ok(false) => {}
                Err(_) => return unavailable("the queue for password checks is full"),
            }
        }
        let Some(backend) = backend else {
            return (Answer::Unknown { challenge: None }, None);
        };
        let began = Instant::now();
        let _turn = match monoio::time::timeout(self.auth_timeout, self.turns.take()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(Full)) => return unavailable("the queue for the auth backend is full"),
            Err(_) => return unavailable("the auth backend was too busy to be asked in time"),
        };
        let left = self.auth_timeout.saturating_sub(began.elapsed());
        let user = basic.and_then(Result::ok).map(|basic| basic.user);
        let request = Subrequest { path: &backend.path, head: ask.head, target: ask.target, from: ask.from, user };
        auth_backend::ask(&backend.pool, &request, left).await
    }
}

/// A worker's way to the auth backend.
#[derive(Debug)]
pub struct Backend {
    /// Connections to it.
    pub pool: Pool,
    /// The path of the subrequest.
    pub path: String,
}

/// A htpasswd file judges the credential alone; a backend sees which repository and which action, or the whole request for a
/// service that is no registry.
fn scope<'r>(ask: &Ask<'r>, backend: bool) -> Scope<'r> {
    match ask.kind {
        _ if !backend => Scope::Credential,
        Kind::Registry if !ask.accesses.is_empty() => Scope::Accesses(ask.accesses),
        Kind::Registry | Kind::Http => Scope::Request([ask.head.method, ask.target, ask.from.host]),
    }
}
