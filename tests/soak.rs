//! A short soak; `cargo xtask soak` makes it as long as you like.

use std::time::Duration;

use xtask::soak::soak;

use crate::support::packages::{REGISTRY, SETPRIV, SKOPEO};
use crate::support::{is_root, misses, program, random, skips};

#[test]
fn a_short_soak_finds_nothing() {
    if misses(&[REGISTRY, SKOPEO, SETPRIV]) {
        return;
    }
    if !is_root() {
        return skips::skip("needs root, to see what a gate has open");
    }
    let seed = random();
    let findings = soak(program(), Duration::from_secs(15), seed).unwrap();
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
}
