//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod admission;
mod bad_input;
mod cli;
mod clients;
mod data_plane;
mod differential;
mod explain;
mod guard;
mod https_upstream;
mod policy;
mod production;
mod queue;
mod readme;
mod revoke;
mod round_trip;
mod secrets;
mod support;
mod throttle;
mod tidy;
mod verdicts;
mod walkthrough;
