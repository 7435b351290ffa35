//! What the integration tests share: the program under test, the lab of `xtask`, and the work tree as text.

pub(crate) mod raw;
pub(crate) mod secure;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use xtask::lab::gate::{AuthService, Gate, Serve, add_user};
pub(crate) use xtask::lab::packages::{self, Need};
pub(crate) use xtask::lab::process::{Service, descriptors, free_address, is_root, random, scratch};
pub(crate) use xtask::lab::{
    cmd, containerd, curl, den, docker, hello, http, image, oras, pki, podman, registry, skips, skopeo,
};

/// The program under test. Where `cargo xtask test` names a directory for it, one to which io_uring is refused.
pub(crate) fn program() -> &'static Path {
    static ON_EPOLL: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || Some(wrapped("ring", Path::new(&std::env::var_os("PORTCULLIS_TEST_ON_EPOLL")?), built()));
    ON_EPOLL.get_or_init(make).as_deref().unwrap_or_else(|| built())
}

/// The `portcullis` that cargo built for these tests.
fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_portcullis"))
}

/// The same program, to which the kernel refuses something: a word of `peers/refuse.py`, which takes Python.
pub(crate) fn refused(what: &str, dir: &Path) -> PathBuf {
    wrapped(what, dir, program())
}

fn wrapped(what: &str, dir: &Path, program: &Path) -> PathBuf {
    let (script, wrapper) = (root().join("tests/peers/refuse.py"), dir.join("portcullis"));
    fs::write(&wrapper, format!("#!/bin/sh\nexec python3 {script:?} {what} {program:?} \"$@\"\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    wrapper
}

/// The top of the work tree.
pub(crate) fn root() -> PathBuf {
    xtask::workspace::root()
}

/// Whether the running test misses a program; it then says so and has to return.
pub(crate) fn misses(needs: &[Need]) -> bool {
    let missing: Vec<&str> = packages::missing(needs).iter().map(|need| need.package).collect();
    if !missing.is_empty() {
        skips::skip(&format!("not installed: {}", missing.join(" ")));
    }
    !missing.is_empty()
}

/// An htpasswd file with one line.
pub(crate) fn htpasswd(dir: &Path, line: &str) -> PathBuf {
    let file = dir.join("users.htpasswd");
    fs::write(&file, format!("{line}\n")).unwrap();
    file
}

/// The value of a sample of a gate's metrics.
pub(crate) fn metric(admin: SocketAddr, sample: &str) -> u64 {
    let text = http::get(admin, "/metrics", None).unwrap().text();
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
}

/// Waits until something holds, for as long as a busy machine may need.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "still not so after 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// All text files of the project, by their path from the top.
pub(crate) fn text_files() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort();
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let relative = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let ours = !["target", ".git", "artifacts", "corpus"].contains(&name.as_str());
        if path.is_dir() && ours {
            collect(root, &path, found);
        } else if ours && let Ok(text) = fs::read_to_string(&path) {
            found.push((relative, text));
        }
    }
}
