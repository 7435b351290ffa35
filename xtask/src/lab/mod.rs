//! The lab: real registries, clients and peers on this machine, each in a directory of its own, each gone when
//! the value that holds it is dropped.

pub mod cmd;
pub mod containerd;
pub mod curl;
pub mod den;
pub mod docker;
pub mod gate;
pub mod hello;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod oras;
pub mod packages;
pub mod pki;
pub mod podman;
pub mod process;
pub mod registry;
pub mod secrets;
pub mod skips;
pub mod skopeo;
pub mod ui;
