//! HTTP/1.1 as this gate understands it: a strict layer over `httparse`.
//!
//! `httparse` finds the pieces of a head quickly and safely, but it is lenient where leniency between two
//! parsers becomes request smuggling: it takes a bare LF, a leading CRLF, two `Content-Length`s, any number of
//! `Host`s. This room refuses all of that, so what it lets through has one meaning only (RFC 9112 with every
//! "MAY accept" taken as "does not").
//!
//! It is pure: bytes in, values out. It knows nothing of registries.
//!
//! * [`head`]: request and response heads
//! * [`framing`]: how long a body is, and who says so
//! * [`chunked`]: the chunked coding, decoded and written anew
//! * [`fields`]: field names and the sets of them that must not cross
//! * [`proxy`]: the PROXY protocol, which a balancer in front may speak before all that
//! * [`upgrade`]: changing a connection's protocol
//! * [`reject`]: why a head was refused, and the status that says so

pub mod chunked;
pub mod fields;
pub mod framing;
pub mod head;
pub mod proxy;
pub mod reject;
pub mod upgrade;

pub use framing::Framing;
pub use head::{RequestHead, ResponseHead, Version};
pub use reject::Reject;
