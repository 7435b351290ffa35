//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod admission;
mod bad_input;
mod bodies;
mod cli;
mod clients;
mod corpora;
mod data_plane;
mod differential;
mod dist;
mod epoll;
mod explain;
mod guard;
mod heads;
mod https_upstream;
mod load;
mod past_failures;
mod policy;
mod production;
mod proxy_protocol;
mod queue;
mod readme;
mod revoke;
mod round_trip;
mod secrets;
mod smuggling;
mod soak;
mod supply_chain;
mod support;
mod throttle;
mod tidy;
mod tls;
mod upgrade;
mod upstreams;
mod verdicts;
mod walkthrough;
