//! The OCI distribution grammar: endpoints, names, accesses, errors.
//!
//! One request line goes in ([`endpoint::classify`]), and what it means comes out: the endpoint, the accesses it needs,
//! and the one string that policy, cache key, auth subrequest and upstream all see. A path is never percent-decoded or
//! normalised: what is not in the grammar as it stands is refused, so there is no second reading for a registry to have.

pub mod access;
pub mod endpoint;
pub mod error;
pub mod media;
pub mod name;
pub mod query;
pub mod reference;

pub use access::{Access, Action};
pub use endpoint::{Classified, Endpoint, Mount, Unknown, classify};
pub use error::Code;
pub use name::RepositoryName;
pub use reference::{Digest, Reference, Tag};
