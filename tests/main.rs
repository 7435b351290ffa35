//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod cli;
mod data_plane;
mod guard;
mod readme;
mod revoke;
mod round_trip;
mod support;
mod tidy;
mod verdicts;
mod walkthrough;
