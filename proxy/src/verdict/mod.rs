//! The verdict on a request: who asks, and may they. This room alone can make a [`Permit`], and nothing is
//! forwarded without one.
//!
//! * [`key`]: what an answer of the authenticator depends on, hashed under a boot key
//! * [`cache`]: the answers that are remembered, for how long, and how many
//! * [`epoch`]: what ends the life of answers before their time
//! * [`flight`]: one question to the authenticator however many ask it at once
//!
//! What is cached is the *authenticator's* answer ("this credential is alice's"); the policy is applied to it on
//! every request, so that a changed rule never waits for a TTL.

pub mod cache;
pub mod epoch;
pub mod flight;
pub mod key;
mod sync;

use std::sync::Arc;

use crate::auth::principal::Principal;
use crate::policy::{Decision, Policy};
use crate::registry::access::Access;
use crate::registry::error::denied_message;

/// Fields that the authenticator wants the upstream to see: names as configured, values as they came.
pub type Fields = Box<[(String, Vec<u8>)]>;

/// Whose credential it is, and what else the authenticator said of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who asks.
    pub principal: Principal,
    /// What the upstream is to be told of them.
    pub fields: Fields,
}

impl From<Principal> for Arc<Identity> {
    fn from(principal: Principal) -> Self {
        Arc::new(Identity { principal, fields: Fields::default() })
    }
}

/// What the authenticator said of a credential. This is what the cache keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The credential is good and belongs to somebody.
    Known(Arc<Identity>),
    /// It is not, or there is none; the challenge is the authenticator's own, where it sent one.
    Unknown {
        /// The value of `WWW-Authenticate` to relay.
        challenge: Option<Arc<str>>,
    },
    /// The authenticator knows who asks and refuses this.
    Forbidden,
    /// Too many attempts. Never cached.
    Throttled {
        /// Seconds until another try makes sense.
        retry_after: u32,
    },
    /// No answer was to be had: fail closed. Never cached.
    Unavailable {
        /// What went wrong, for the log.
        why: &'static str,
    },
}

impl Answer {
    /// Whether the answer may be remembered: only clear words of the authenticator are.
    pub fn is_cacheable(&self) -> bool {
        matches!(self, Answer::Known(_) | Answer::Unknown { .. } | Answer::Forbidden)
    }
}

/// The right to forward one request. Its fields are private and nothing outside this module constructs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    identity: Arc<Identity>,
    rule: Option<usize>,
}

impl Permit {
    /// Who asks; [`Principal::Anonymous`] where a rule or the endpoint asks for no login.
    pub fn principal(&self) -> &Principal {
        &self.identity.principal
    }

    /// What the authenticator wants the upstream to be told.
    pub fn fields(&self) -> &[(String, Vec<u8>)] {
        &self.identity.fields
    }

    /// The number of the `[[rule]]` that granted it, from 1; none when no rule is configured.
    pub fn rule(&self) -> Option<usize> {
        self.rule
    }
}

/// Why a request is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 401: say who you are.
    Unauthenticated {
        /// The authenticator's own challenge, else ours is synthesised.
        challenge: Option<Arc<str>>,
    },
    /// 403: known, and not allowed.
    Forbidden {
        /// What would be needed, for the person who reads the client's output.
        message: String,
    },
    /// 429.
    Throttled {
        /// Seconds for `Retry-After`.
        retry_after: u32,
    },
    /// 503: the authenticator gave no clear answer.
    Unavailable {
        /// What went wrong, for the log.
        why: &'static str,
    },
}

/// A permit or a refusal; there is no third.
pub type Verdict = Result<Permit, Refusal>;

/// The permit for what passes without a login: reading `/_ping` and `/v1/_ping`, exactly, as in 2014.
pub fn open(method: &str, target: &str) -> Option<Permit> {
    let open = matches!(method, "GET" | "HEAD") && matches!(target, "/_ping" | "/v1/_ping");
    open.then(|| Permit { identity: Principal::Anonymous.into(), rule: None })
}

/// The verdict for a request that needs all of `accesses`, from what the authenticator said and the policy allows.
pub fn decide(answer: &Answer, policy: &Policy, accesses: &[Access]) -> Verdict {
    match answer {
        // A backend may know who asks by other means than a name; without rules its word is enough.
        Answer::Known(identity) if policy.is_open() => Ok(Permit { identity: Arc::clone(identity), rule: None }),
        Answer::Known(identity) => {
            permit(identity, policy, accesses).ok_or_else(|| forbidden(&identity.principal, policy, accesses))
        }
        Answer::Unknown { challenge } => Err(Refusal::Unauthenticated { challenge: challenge.clone() }),
        Answer::Forbidden => Err(Refusal::Forbidden {
            message: "the authentication service refuses this request for this user".to_owned(),
        }),
        Answer::Throttled { retry_after } => Err(Refusal::Throttled { retry_after: *retry_after }),
        Answer::Unavailable { why } => Err(Refusal::Unavailable { why }),
    }
}

/// The verdict for a request without credentials, as far as the policy alone can say: a permit where a rule lets
/// anybody in, nothing where somebody has to be asked.
pub fn anonymous(policy: &Policy, accesses: &[Access]) -> Option<Permit> {
    // An empty list of accesses (the API root) grants nothing by itself: clients log in there.
    if accesses.is_empty() {
        return None;
    }
    permit(&Principal::Anonymous.into(), policy, accesses)
}

fn permit(identity: &Arc<Identity>, policy: &Policy, accesses: &[Access]) -> Option<Permit> {
    let mut rule = None;
    for access in accesses {
        match policy.decide(&identity.principal, access) {
            Decision::Allow { rule: by } => rule = rule.or(by),
            Decision::Deny => return None,
        }
    }
    Some(Permit { identity: Arc::clone(identity), rule })
}

fn forbidden(principal: &Principal, policy: &Policy, accesses: &[Access]) -> Refusal {
    let denied = accesses.iter().find(|access| !policy.decide(principal, access).is_allowed());
    let message = denied.map_or_else(
        || "this user may not do this; ask the registry's administrator".to_owned(),
        |access| denied_message(access, principal.name()),
    );
    Refusal::Forbidden { message }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
