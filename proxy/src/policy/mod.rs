//! The policy: who may do what.
//!
//! ```toml
//! [[rule]]
//! who = ["alice", "@ci", "anonymous"]   # users, groups, everybody; "*" is every user who logged in
//! repositories = ["team-a/**"]
//! actions = ["pull", "push"]
//!
//! [groups]
//! ci = ["builder-1", "builder-2"]
//! ```
//!
//! Rules only grant. Without any rule, everybody who logged in may do everything and nobody else may do anything; as
//! soon as there is one rule, what no rule grants is denied.

pub mod decide;
mod index;
pub mod pattern;
pub mod rule;

pub use decide::{Decision, Policy};
pub use pattern::Pattern;
pub use rule::RuleText;
