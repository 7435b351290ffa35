//! The asynchronous edge: sockets, TLS, the kernel.

pub mod guard;
pub(crate) mod sys;
