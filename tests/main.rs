//! Integration tests of the real binary: one file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test that is how a failure looks")]

mod admission;
mod bad_input;
mod cli;
mod data_plane;
mod guard;
mod production;
mod readme;
mod round_trip;
mod support;
mod tidy;
mod walkthrough;
