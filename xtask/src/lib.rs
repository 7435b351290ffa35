//! What `cargo xtask` and the integration tests share: real peers, started and stopped, and images to move.

pub mod lab;
pub mod workspace;
