//! Portcullis: a hardened gate for private Docker/OCI registries.
//!
//! The crate is a pure core (no async, no I/O, no clock, no random numbers, no unsafe) and one asynchronous
//! [`edge`]. The edge moves bytes and decides nothing; the core decides and never touches a socket.
//!
//! Direction of dependencies: `main → edge → {forward, verdict, policy, auth, registry, http, balance, limit, config}`.
#![cfg_attr(not(feature = "edge"), forbid(unsafe_code))]

pub mod auth;
pub mod balance;
pub mod config;
pub mod forward;
pub mod http;
pub mod limit;
pub mod past_failures;
pub mod policy;
pub mod registry;
pub mod reply;
pub mod verdict;

#[cfg(feature = "edge")]
pub mod cli;
#[cfg(feature = "edge")]
pub mod edge;
#[cfg(feature = "edge")]
pub mod manual;
