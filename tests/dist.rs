//! What `cargo xtask dist` makes, used as its receivers use it: the package is installed and purged, the image is run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cmd::Cmd;
use serde_json::Value;

use crate::support::packages::{COMPOSE, CONTAINERD, CURL, DOCKER, DOCKERD, DPKG_DEB, IP, OPENSSL, REGISTRY, SKOPEO};
use crate::support::pki::Authority;
use crate::support::{add_user, misses, program, root, scratch, skips};

/// Where `cargo xtask test` has put the artefacts.
const DIST: &str = "PORTCULLIS_DIST";

pub(crate) fn artefact(suffix: &str) -> Option<PathBuf> {
    let dir = std::env::var_os(DIST).map(PathBuf::from)?;
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.to_string_lossy().ends_with(suffix)).max()
}

/// Runs one of the scripts in `tests/support` in namespaces of its own, and expects it to reach its end.
fn plays(script: &str, artefact: &Path, room: &Path) {
    let namespaces =
        ["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"];
    let cmd = Cmd::new("unshare").args(namespaces).arg(root().join("tests/support").join(script));
    let output = cmd.arg(room).arg(artefact).arg(root().join("xtask/packaging")).arg(program()).output().unwrap();
    let text = output.everything();
    assert!(output.status.success() && text.contains("the end was reached"), "{}\n{text}", output.status);
}

pub(crate) fn cannot(needs: &[crate::support::Need], found: Option<&PathBuf>) -> bool {
    if misses(needs) {
        return true;
    }
    let reason = match found {
        None => "needs the artefacts of `cargo xtask dist`, which `cargo xtask test` without a filter makes",
        Some(_) if !rustix::process::geteuid().is_root() => "needs root",
        Some(_) => return false,
    };
    skips::skip(reason);
    true
}

#[test]
fn the_package_installs_upgrades_and_leaves_nothing_behind() {
    let deb = artefact(".deb");
    if cannot(&[DPKG_DEB], deb.as_ref()) {
        return;
    }
    let dir = scratch("package").unwrap();
    plays("package.sh", &deb.unwrap(), dir.path());
}

#[test]
fn the_image_behaves_as_the_container_of_2014_did() {
    let image = artefact(".oci.tar");
    if cannot(&[CURL, IP, REGISTRY, SKOPEO], image.as_ref()) {
        return;
    }
    let image = image.unwrap();
    let dir = scratch("container").unwrap();
    for form in ["oci-archive", "docker-archive"] {
        let told = Cmd::new("skopeo").arg("inspect").arg(format!("{form}:{}", image.display())).run().unwrap();
        assert!(told.contains("PORTCULLIS_LISTEN=0.0.0.0:80"), "{form}: {told}");
    }
    add_user(program(), dir.path(), "alice", "open sesame").unwrap();
    plays("container.sh", &image, dir.path());
}

#[test]
fn a_real_dockerd_runs_the_image_and_the_example_of_docker_compose() {
    by_a_real_dockerd("compose.sh");
}

#[test]
fn a_real_dockerd_runs_what_the_example_for_kubernetes_does() {
    by_a_real_dockerd("kubernetes.sh");
}

fn by_a_real_dockerd(script: &str) {
    let image = artefact(".oci.tar");
    if cannot(&[COMPOSE, CONTAINERD, CURL, DOCKER, DOCKERD, IP, OPENSSL, REGISTRY], image.as_ref()) {
        return;
    }
    if !Path::new("/etc/docker").is_dir() {
        return skips::skip("there is no /etc/docker to hide in a mount namespace");
    }
    let dir = scratch("dockerd").unwrap();
    add_user(program(), dir.path(), "alice", "open sesame").unwrap();
    Authority::create(dir.path(), "ca").unwrap().issue("registry", &["localhost"]).unwrap();
    plays(script, &image.unwrap(), dir.path());
}

#[test]
fn checksums_fit_and_everything_inside_has_its_name_and_licence() {
    let sums = artefact("SHA256SUMS");
    if cannot(&[], sums.as_ref()) {
        return;
    }
    let sums = sums.unwrap();
    let dir = sums.parent().unwrap();
    let checked = Cmd::new("sha256sum").dir(dir).args(["--check", "--strict", "SHA256SUMS"]).run().unwrap();
    assert_eq!(checked.matches(": OK").count(), 3, "{checked}");
    let list: Value = serde_json::from_slice(&fs::read(artefact(".spdx.json").unwrap()).unwrap()).unwrap();
    let packages = list["packages"].as_array().unwrap();
    for part in ["portcullis", "rustls", "monoio", "aya"] {
        assert!(packages.iter().any(|package| package["name"] == part), "{part} is not in the list");
    }
    for package in packages {
        for key in ["SPDXID", "name", "versionInfo", "licenseDeclared"] {
            assert!(package[key].as_str().is_some_and(|value| !value.is_empty()), "{key} of {package}");
        }
    }
    // A deliverable has nothing that only the tests or the build need.
    assert!(!packages.iter().any(|package| package["name"] == "proptest" || package["name"] == "criterion"));
}
