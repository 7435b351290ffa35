//! System calls. The only room with `unsafe`, and only where neither the runtime nor `rustix` has a safe form.
#![allow(unsafe_code)]

pub mod bpf;
pub mod calls;
pub mod driver;
pub mod inherited;
pub mod ktls;
pub mod memory;
pub mod namespace;
pub mod pipe;
pub mod privilege;
pub mod rooms;
pub mod socket;
