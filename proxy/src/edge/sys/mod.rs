//! The only unsafe code of the proxy: system calls that no safe crate offers. Each block says why it holds.
#![allow(unsafe_code)]

pub(crate) mod bpf;
