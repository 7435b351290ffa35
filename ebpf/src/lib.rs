//! The ABI shared by the guard's eBPF programs and the loader: map names, keys and values as byte arrays.
#![cfg_attr(target_arch = "bpf", no_std)]
