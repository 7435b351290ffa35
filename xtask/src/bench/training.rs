//! The gate at work for a profile of it (`cargo xtask dist --pgo`): nothing is measured here.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Outcome;
use super::load::{Bodies, Requests};
use super::machine::Noise;
use super::peers::{Candidate, Kind};
use super::world::{Placing, World};
use crate::dist;

const CONNECTIONS: usize = 64;
const WINDOW: Duration = Duration::from_secs(2);
const BLOB: u64 = 64 << 20;
const STREAMS: usize = 4;

/// Small requests over kept connections and over new ones, and blobs; plain and over TLS.
pub(super) fn run(_: &super::Args, program: &Path, _: &mut Noise) -> anyhow::Result<Outcome> {
    let profiles = std::env::var_os(dist::PROFILE_VARIABLE).map(PathBuf::from);
    let profiles = profiles.as_deref().and_then(Path::parent).with_context(|| {
        format!(
            "{} names no place for counts: run `cargo xtask dist --pgo`, of which this is a part",
            dist::PROFILE_VARIABLE
        )
    })?;
    let world = World::start(program, Placing::Free, BLOB)?;
    let blob = format!("/v2/bench/app/blobs/sha256:{}", "0".repeat(64));
    let bodies = Bodies { target: blob, bytes: BLOB, streams: STREAMS };
    // Once confined, a gate may write where its access log is, and nowhere else.
    let log = profiles.join("access.log").display().to_string();
    let gate = Candidate::new("portcullis", Kind::Gate(vec!["--access-log".into(), log], String::new()));
    for candidate in [gate.clone(), gate.tls()] {
        let peer = candidate.start_checked(&world)?;
        belong_to_all(profiles)?;
        for close in [false, true] {
            Requests { close, ..Requests::new(CONNECTIONS, WINDOW) }.drive(&world, &peer)?;
        }
        bodies.download(&world, &peer)?;
        peer.stop()?;
    }
    Ok(Outcome { goals: Vec::new() })
}

/// The counters' files are made by root and written when the gate is nobody.
fn belong_to_all(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let mode = fs::Permissions::from_mode(0o666);
        fs::set_permissions(&path, mode).with_context(|| format!("cannot open {} to all", path.display()))?;
    }
    Ok(())
}
