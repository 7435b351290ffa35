//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod admission;
mod bad_input;
mod bodies;
mod cli;
mod data_plane;
mod epoll;
mod explain;
mod guard;
mod heads;
mod https_upstream;
mod load;
mod policy;
mod production;
mod queue;
mod readme;
mod revoke;
mod round_trip;
mod secrets;
mod soak;
mod support;
mod throttle;
mod tidy;
mod upgrade;
mod verdicts;
mod walkthrough;
