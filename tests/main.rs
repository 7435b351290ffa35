//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod admission;
mod bad_input;
mod cli;
mod corpora;
mod data_plane;
mod explain;
mod guard;
mod https_upstream;
mod past_failures;
mod policy;
mod production;
mod queue;
mod readme;
mod revoke;
mod round_trip;
mod secrets;
mod smuggling;
mod supply_chain;
mod support;
mod throttle;
mod tidy;
mod verdicts;
mod walkthrough;
