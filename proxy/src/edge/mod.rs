//! The asynchronous edge: sockets, TLS, the kernel.

pub mod files;
pub mod guard;
pub mod user;
