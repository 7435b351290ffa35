//! What `cargo xtask` and the integration tests share: real peers, started and stopped, and images to move.

pub mod bench;
pub mod build_ebpf;
pub mod cli;
pub mod coverage;
pub mod demo;
pub mod dist;
pub mod fuzz;
pub mod lab;
pub mod miri;
pub mod soak;
pub mod suite;
pub mod vm_test;
pub mod workspace;
