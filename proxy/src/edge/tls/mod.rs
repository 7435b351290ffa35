//! TLS on both sides: rustls over a non-blocking socket, as the server for clients and as the client for `https://`
//! upstreams.
//!
//! * [`session`]: one connection's records, in this process
//! * [`kernel`]: the same in the kernel
//! * [`server`]: certificates by server name, client certificates, tickets; all of it re-read by [`renewal`]
//! * [`client`]: whom an upstream has to be
//! * [`tally`]: what became of the handshakes

pub mod client;
pub mod kernel;
mod outbox;
pub mod renewal;
pub mod server;
pub mod session;
pub mod tally;

pub use client::{Trust, client_config};
pub use kernel::{KernelSession, Support, Taken};
pub use server::Server;
pub use session::Session;
