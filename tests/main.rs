//! Integration tests of the real binary: one file a subject.
mod cli;
