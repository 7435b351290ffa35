//! The README's production set-up, typed in as it stands there, on this machine but in namespaces of its own.

use std::fs;

use crate::readme::blocks;
use crate::support::cmd::Cmd;
use crate::support::packages::{CURL, IP, OPENSSL, REGISTRY, SETPRIV, SKOPEO};
use crate::support::{image, misses, program, random, root, scratch, skips};

const NAMESPACES: [&str; 7] =
    ["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];

#[test]
fn ten_minutes_of_the_readme() {
    if misses(&[REGISTRY, SKOPEO, OPENSSL, CURL, IP, SETPRIV]) {
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
    for part in ["configuration is valid", "every way in is shut", "THE GUARD IS OFF"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
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
