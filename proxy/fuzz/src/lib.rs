//! What the fuzzer runs. The bodies are in [`targets`], which the project's tests include as well: every file of the
//! corpora is replayed by `cargo test`, without a fuzzer.

pub mod targets;
