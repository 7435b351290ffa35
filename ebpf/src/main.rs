//! The guard's eBPF programs; on the host only a stub, so that the workspace builds everywhere.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
