//! Faults of the machine: what the kernel refuses, and peers that it has stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::world::{Seen, World, held};
use super::{Fault, LIMITS};
use crate::support::cmd::Cmd;
use crate::support::http::get;
use crate::support::packages::{FAKETIME, PYTHON, REGISTRY};
use crate::support::pki::Authority;
use crate::support::registry::Registry;
use crate::support::{AuthService, Gate, Serve, free_address, htpasswd, metric, misses, program, scratch, wait_for};
use crate::support::{is_root, refused, skips};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const DROPPED: &str = "portcullis_log_dropped_total";

#[test]
fn no_descriptor_is_left() {
    let world = World::start(LIMITS);
    let before = world.held();
    let limit = |files: &str| {
        let pid = world.gate.pid().to_string();
        Cmd::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).run().unwrap();
    };
    // Room for two clients, and for none of their requests' connections or pipes.
    limit(&(held(&world.gate).descriptors + 2).to_string());
    let addr = world.gate.addr();
    let waiting: Vec<_> =
        (0..6).map(|n| std::thread::spawn(move || super::world::look(addr, &format!("/{n}")))).collect();
    wait_for("all are taken", || held(&world.gate).descriptors > before.descriptors || waiting[0].is_finished());
    limit("1024");
    for client in waiting {
        let seen = client.join().unwrap();
        assert!(matches!(seen, Seen::Whole | Seen::Status(502..=504)), "{seen:?}");
    }
    world.is_well("no descriptor");
    world.gave_back(&before, "no descriptor");
}

/// Bodies are copied where there are no pipes, and spliced by small ones, which are not kept, where none may grow.
#[test]
fn no_memory_is_left_for_pipes() {
    if misses(&[PYTHON]) {
        return;
    }
    for refusal in ["pipes", "room"] {
        let dir = scratch("faults-refused").unwrap();
        let world = World::start_by(&refused(refusal, dir.path()), LIMITS, |serve| serve);
        let before = world.held();
        for _ in 0..5 {
            assert!(world.crowd().iter().chain(&world.uploads()).all(|seen| *seen == Seen::Whole), "{refusal}");
        }
        world.strangers_stay_out(Fault::Closes, &[401]);
        assert_eq!(held(&world.gate).pipes, before.pipes, "{refusal}");
        world.gave_back(&before, refusal);
    }
}

/// Nothing but what people read goes by the wall clock: neither deadlines nor how long a verdict holds.
#[test]
fn the_clock_jumps() {
    if misses(&[FAKETIME]) {
        return;
    }
    let dir = scratch("faults-clock").unwrap();
    let clock = dir.path().join("clock");
    fs::write(&clock, "+0d").unwrap();
    // A gate may read what lies beside its own files, and so what tells its clock.
    let beside = Authority::create(dir.path(), "Clock CA").unwrap().cert;
    let config = format!("upstream_ca = {beside:?}\n") + &LIMITS.replace("allow_ttl = \"0s\"", "allow_ttl = \"1h\"");
    let world = World::start_with(&config, |serve| {
        let serve = serve.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1").env("FAKETIME_NO_CACHE", "1");
        serve.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
    });
    let before = world.held();
    for jump in ["+3650d", "-3650d", "+1h", "-7300d", "+0d"] {
        fs::write(&clock, jump).unwrap();
        let asked = world.auth.requests();
        let seen = world.crowd();
        assert!(seen.iter().all(|seen| *seen == Seen::Whole), "{jump}: {seen:?}\n{}", world.last_words());
        assert_eq!(world.auth.requests(), asked, "{jump}: a verdict was forgotten");
        let reached = world.upstream.requests();
        world.strangers_stay_out(Fault::Closes, &[401]);
        assert_eq!(world.upstream.requests(), reached, "{jump}");
    }
    let years = |log: &str| -> BTreeSet<String> {
        let stamps = log.lines().filter_map(|line| Some(line.split_once("\"time\":\"")?.1.get(..4)?.to_owned()));
        stamps.collect()
    };
    wait_for("it has seen three decades", || years(&world.gate.log()).len() >= 4);
    world.is_well("the clock is right again");
    world.gave_back(&before, "the clock is right again");
}

#[test]
fn the_log_has_no_room() {
    let world = World::start_with(LIMITS, |serve| serve.flag("--access-log", "/dev/full"));
    let before = world.held();
    let lost = metric(world.admin, DROPPED);
    assert!(world.crowd().iter().all(|seen| *seen == Seen::Whole), "a full disk is no reason to refuse");
    wait_for("lost lines are counted", || metric(world.admin, DROPPED) >= lost + 12);
    world.strangers_stay_out(Fault::Closes, &[401]);
    world.gave_back(&before, "a full disk");
    assert_eq!(world.gate.log().matches("access log").count(), 1, "said once: {}", world.gate.log());
}

/// A file system of one page more than nothing, gone when dropped.
struct Disk<'a>(&'a Path);

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Cmd::new("umount").arg("--lazy").arg(self.0).run();
    }
}

#[test]
fn the_disk_of_the_log_fills_up_and_is_cleared() {
    if !is_root() {
        return skips::skip("mounting a file system takes root");
    }
    let dir = scratch("faults-disk").unwrap();
    Cmd::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "portcullis-test"]).arg(dir.path()).run().unwrap();
    let disk = Disk(dir.path());
    let log = dir.path().join("access.log");
    let world = World::start_with(LIMITS, |serve| serve.flag("--access-log", &log));
    let ballast = dir.path().join("ballast");
    // It fills the disk to the last byte and then fails, which is the point.
    let _ = fs::write(&ballast, vec![0; 64 << 10]);
    wait_for("the disk is full", || {
        world.crowd();
        metric(world.admin, DROPPED) > 0
    });
    fs::remove_file(&ballast).unwrap();
    let written = || fs::metadata(&log).unwrap().len();
    let full = written();
    wait_for("lines are written again", || {
        world.crowd();
        written() > full
    });
    assert!(world.gate.says("access log: writing again"), "{}", world.gate.log());
    let text = fs::read_to_string(&log).unwrap();
    for line in text.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "not a whole line: {line:?}");
    }
    drop((world, disk));
}

/// A real registry with a real auth service before it.
struct Real {
    gate: Gate,
    registry: Registry,
    auth: AuthService,
}

impl Real {
    fn start() -> Option<Self> {
        if misses(&[REGISTRY]) {
            return None;
        }
        let dir = scratch("faults-real").unwrap();
        let config = dir.path().join("gate.toml");
        fs::write(&config, LIMITS).unwrap();
        let registry = Registry::start().unwrap();
        let auth = AuthService::start(program(), &htpasswd(dir.path(), LINE)).unwrap();
        let serve = Serve::new(program()).unwrap().admin(free_address().unwrap()).flag("--config", &config);
        let serve = serve.flag("--backend", registry.url()).flag("--auth-backend", auth.url());
        Some(Self { gate: serve.start().unwrap(), registry, auth })
    }

    fn status(&self) -> u16 {
        get(self.gate.addr(), "/v2/", Some(super::world::USER)).unwrap().status
    }

    fn back(&self, after: &str) {
        wait_for(&format!("served after {after}"), || self.status() == 200);
    }
}

/// Stops a process, and lets it go on whatever happens in between.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_stopped_registry_and_a_killed_one() {
    let Some(mut real) = Real::start() else { return };
    assert_eq!(real.status(), 200);
    let stopped = Stopped::new(real.registry.service().pid());
    assert_eq!(real.status(), 504);
    assert_eq!(get(real.gate.addr(), "/v2/", None).unwrap().status, 401);
    drop(stopped);
    real.back("a stop");
    real.registry.kill();
    assert_eq!(real.status(), 502);
    assert_eq!(get(real.gate.addr(), "/v2/", None).unwrap().status, 401);
    real.registry.restart().unwrap();
    real.back("a kill");
}

#[test]
fn a_stopped_auth_service_and_a_killed_one() {
    let Some(mut real) = Real::start() else { return };
    assert_eq!(real.status(), 200);
    let stopped = Stopped::new(real.auth.pid());
    assert_eq!(real.status(), 503);
    drop(stopped);
    real.back("a stop");
    real.auth.kill();
    assert_eq!(real.status(), 503, "gone is not the same as no");
}
