//! The README's production set-up, typed in as it stands there, on this machine but in namespaces of its own.

use std::fs;

use crate::readme::blocks;
use crate::support::cmd::Cmd;
use crate::support::packages::{CURL, IP, OPENSSL, PYTHON, REGISTRY, SKOPEO, SYSTEMD_ANALYZE};
use crate::support::{image, misses, program, random, root, scratch, skips};

const NAMESPACES: [&str; 7] =
    ["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];

#[test]
fn ten_minutes_of_the_readme() {
    if misses(&[REGISTRY, SKOPEO, OPENSSL, CURL, IP, PYTHON]) {
        return;
    }
    let dir = scratch("production").unwrap();
    if let Some(reason) = why_not(dir.path()) {
        return skips::skip(&reason);
    }
    image::write(&dir.path().join("image"), &[1, 100_000, 2_000_000], random()).unwrap();
    let script = dir.path().join("set-up.sh");
    let prelude = fs::read_to_string(root().join("tests/support/production.sh")).unwrap();
    fs::write(&script, format!("{prelude}{}echo 'the end was reached'\n", set_up())).unwrap();

    let cmd = Cmd::new("unshare").args(NAMESPACES).arg("bash").arg(&script).arg(dir.path()).arg(root()).arg(program());
    let output = cmd.output().unwrap();
    let text = output.everything();
    assert!(output.status.success() && text.contains("the end was reached"), "{}\n{text}", output.status);
    let (lines, itself) =
        ("PrivateUsers CapabilityBoundingSet", "confined: reads beneath /etc/portcullis, appends beneath /var/log/");
    for part in ["configuration is valid", lines, itself, "every way in is shut", "THE GUARD IS OFF"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(!text.contains("warning: this kernel"), "the unit refuses what the gate needs to confine itself\n{text}");
}

/// The guard's three capabilities, root and the host's network alone are more than 1.5: what else could be given away is.
#[test]
fn the_units_give_away_what_they_can() {
    if misses(&[SYSTEMD_ANALYZE]) {
        return;
    }
    for (unit, most) in [("portcullis.service", "15"), ("portcullis-guard.service", "19")] {
        let path = root().join("xtask/packaging").join(unit);
        let words = ["security", "--offline=true", "--no-pager", "--threshold", most];
        let output = Cmd::new("systemd-analyze").args(words).arg(path).output().unwrap();
        assert!(output.status.success(), "{unit} is above {most}/10\n{}", output.everything());
        assert!(!output.everything().contains("Unknown"), "{}", output.everything());
    }
}

fn set_up() -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let heading = |text: &str| readme.lines().position(|line| line.starts_with(text)).unwrap();
    let section = heading("## In production")..heading("## Coming from");
    let commands: Vec<String> = blocks("README.md")
        .into_iter()
        .filter(|block| block.language == "sh" && section.contains(&block.line))
        .map(|block| block.text)
        .collect();
    assert!(commands.len() >= 6, "the section has only {} blocks", commands.len());
    commands.concat()
}

fn why_not(scratch: &std::path::Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let room = scratch.join("probe");
    let script = format!(
        "mkdir {room} && mount -t tmpfs none {room} && mkdir {room}/u {room}/w && \
         mount -t overlay none -o lowerdir=/etc,upperdir={room}/u,workdir={room}/w /etc && \
         mount -t bpf none /sys/fs/bpf && ip link add outside type veth peer name wire && \
         {program} guard enforce --port 5000 --interface outside",
        room = room.display(),
        program = program().display(),
    );
    let output = Cmd::new("unshare").args(NAMESPACES).args(["sh", "-c", &script]).output().unwrap();
    (!output.status.success()).then(|| format!("no namespaces, overlays or eBPF here: {}", output.everything().trim()))
}
