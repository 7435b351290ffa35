//! The clients that people have, each over TLS with a private CA through the real gate to the real registry: log in, push,
//! pull back and compare, mount into a second repository, list, delete; and what their users read when it is refused, which
//! is kept in `golden/`.

mod golden;
mod oras;
mod resume;
mod world;

use std::fs;

use crate::support::cmd::Cmd;
use crate::support::containerd::Containerd;
use crate::support::curl::{Answer, Curl};
use crate::support::docker::Docker;
use crate::support::image;
use crate::support::packages::{BUILDAH, CONTAINERD, CTR, DOCKER, DOCKERD, PODMAN};
use crate::support::podman::Daemonless;
use crate::support::registry::Registry;

use world::{PASSWORD, World, inside};

#[test]
fn docker() {
    inside(&[DOCKERD, DOCKER, CONTAINERD, CTR], Registry::url, |world| {
        let docker = Docker::start(world.den).unwrap();
        let (first, second) = (world.name("team/app"), world.name("other/app"));
        let login = |user: &str, password: &str| {
            let cmd = docker.client().args(["login", "--username", user, "--password-stdin"]);
            cmd.arg(world.addr().to_string()).input(password)
        };
        let load = world.skopeo.command().args(["copy", "--quiet", "--dest-daemon-host", &docker.host()]);
        let layout = format!("oci:{}:latest", world.layout.path().display());
        world.ok(load.arg(layout).arg(format!("docker-daemon:{first}")));

        world.refused(login("alice", "wrong"), "docker-wrong-password");
        world.refused(docker.client().args(["push", &first]), "docker-push-without-login");
        world.ok(login("bob", PASSWORD));
        world.refused(docker.client().args(["push", &first]), "docker-push-read-only");
        world.ok(login("alice", PASSWORD));
        world.ok(docker.client().args(["push", &first]));
        world.ok(docker.client().args(["tag", &first, &second]));
        let pushed = world.ok(docker.client().args(["push", &second])).everything();
        assert_eq!(pushed.matches("Mounted from team/app").count(), 3, "{pushed}");
        world.mounted("team/app", "other/app");

        let id = || world.ok(docker.client().args(["image", "inspect", "--format", "{{.Id}}", &first])).text();
        let before = id();
        world.ok(docker.client().args(["image", "rm", &first, &second]));
        world.ok(docker.client().args(["pull", "--quiet", &first]));
        assert_eq!(id(), before);
        let archive = world.path("saved.tar");
        world.ok(docker.client().args(["save", "--output"]).arg(&archive).arg(&first));
        assert_eq!(world.saved(&archive), world.contents());
        world.ok(docker.client().arg("logout").arg(world.addr().to_string()));
        world.refused(docker.client().args(["pull", &second]), "docker-pull-without-login");
    });
}

#[test]
fn podman() {
    inside(&[PODMAN], Registry::url, |world| {
        let podman = Daemonless::podman(world.den).unwrap();
        storage_client(&world, || podman.command(world.den), "podman");
    });
}

#[test]
fn buildah() {
    inside(&[BUILDAH], Registry::url, |world| {
        let buildah = Daemonless::buildah(world.den).unwrap();
        storage_client(&world, || buildah.command(world.den), "buildah");
    });
}

/// podman and buildah speak alike; only what writes an archive of an image is called differently.
fn storage_client(world: &World<'_>, client: impl Fn() -> Cmd, name: &str) {
    let said = |what: &str| format!("{name}-{what}");
    let login = |user: &str, password: &str| {
        let cmd = client().args(["login", "--username", user, "--password-stdin"]);
        cmd.arg(world.addr().to_string()).input(password)
    };
    let layout = format!("oci:{}:latest", world.layout.path().display());
    let id = world.ok(client().args(["pull", "--quiet", &layout])).text().trim().to_owned();
    let push = |repository: &str| client().args(["push", "--quiet", &id, &world.remote(repository)]);

    world.refused(login("alice", "wrong"), &said("wrong-password"));
    world.refused(push("team/app"), &said("push-without-login"));
    world.ok(login("bob", PASSWORD));
    world.refused(push("team/app"), &said("push-read-only"));
    world.ok(login("alice", PASSWORD));
    world.ok(push("team/app"));
    world.ok(push("other/app"));
    world.mounted("team/app", "other/app");

    world.ok(client().args(["rmi", "--force", &id]));
    let again = world.ok(client().args(["pull", "--quiet", &world.remote("team/app")])).text();
    assert_eq!(again.trim(), id);
    let archive = world.path("saved.tar");
    if name == "podman" {
        world.ok(client().args(["save", "--quiet", "--format", "docker-archive", "--output"]).arg(&archive).arg(&id));
    } else {
        world.ok(client().args(["push", "--quiet", &id, &format!("docker-archive:{}", archive.display())]));
    }
    assert_eq!(world.saved(&archive), world.contents());
    world.ok(client().args(["rmi", "--force", &id]));
    world.ok(client().arg("logout").arg(world.addr().to_string()));
    let pull = client().args(["pull", "--quiet", &world.remote("team/app")]);
    world.refused(pull, &said("pull-without-login"));
}

#[test]
fn ctr() {
    inside(&[CONTAINERD, CTR], Registry::url, |world| {
        let containerd = Containerd::start(world.den).unwrap();
        let (first, second) = (world.name("team/app"), world.name("other/app"));
        let images = |command: &str| containerd.ctr(world.den).args(["images", command]);
        let remote = |command: &str, creds: &str| {
            images(command).arg("--tlscacert").arg(&world.ca).arg("--user").secret_arg(creds)
        };
        let (alice, bob) = (format!("alice:{PASSWORD}"), format!("bob:{PASSWORD}"));
        let archive = world.path("image.tar");
        Cmd::new("tar").arg("-C").arg(world.layout.path()).arg("-cf").arg(&archive).arg(".").run().unwrap();
        let base = first.trim_end_matches(":1");
        world.ok(images("import").args(["--no-unpack", "--base-name", base]).arg(&archive));
        let local = format!("{base}:latest");

        world.refused(remote("push", "alice:wrong").args([&first, &local]), "ctr-push-wrong-password");
        world.refused(remote("push", &bob).args([&first, &local]), "ctr-push-read-only");
        world.ok(remote("push", &alice).args([&first, &local]));
        assert_eq!(world.layers("team/app"), world.image.layers);

        world.refused(remote("pull", "alice:wrong").arg(&first), "ctr-pull-wrong-password");
        world.ok(images("rm").args(["--sync", &local]));
        assert!(!containerd.blob_file(&world.image.manifest).exists());
        world.ok(remote("pull", &bob).arg(&first));
        for entry in fs::read_dir(world.layout.path().join("blobs/sha256")).unwrap() {
            let blob = entry.unwrap().path();
            let digest = blob.file_name().unwrap().to_string_lossy().into_owned();
            let pulled = fs::read(containerd.blob_file(&digest)).unwrap();
            assert!(pulled == fs::read(&blob).unwrap(), "{digest} came back changed");
        }
        // What it pulled from one repository it mounts into another.
        world.ok(remote("push", &alice).args([&second, &first]));
        world.mounted("team/app", "other/app");
    });
}

#[test]
fn skopeo_and_curl() {
    inside(&[], Registry::url, |world| {
        let layout = format!("oci:{}:latest", world.layout.path().display());
        let copy = |side: &str, creds: &str| {
            let cmd = world.skopeo.command().args(["copy", "--quiet", &format!("--{side}-cert-dir")]).arg(&world.trust);
            cmd.arg(format!("--{side}-creds")).secret_arg(creds)
        };
        let (alice, bob) = (format!("alice:{PASSWORD}"), format!("bob:{PASSWORD}"));
        let login = |password: &str| {
            let cmd =
                world.skopeo.command().arg("login").arg("--authfile").arg(world.path("auth.json")).arg("--cert-dir");
            let cmd = cmd.arg(&world.trust).args(["--username", "alice", "--password-stdin"]);
            cmd.arg(world.addr().to_string()).input(password)
        };
        world.refused(login("wrong"), "skopeo-wrong-password");
        world.ok(login(PASSWORD));

        let push = |repository: &str, creds: &str| copy("dest", creds).arg(&layout).arg(world.remote(repository));
        world.refused(push("team/app", "alice:wrong"), "skopeo-push-wrong-password");
        world.refused(push("team/app", &bob), "skopeo-push-read-only");
        world.ok(push("team/app", &alice));
        world.ok(push("other/app", &alice));
        world.mounted("team/app", "other/app");
        let back = world.path("back");
        let pull = copy("src", &bob).arg(world.remote("other/app")).arg(format!("oci:{}:latest", back.display()));
        world.ok(pull);
        let same = image::compare(world.layout.path(), &back).unwrap();
        assert_eq!((same.blobs, same.bytes), (5, world.image.bytes));

        let repository = format!("docker://{}/other/app", world.addr());
        let listed = world.ok(world.skopeo("list-tags").arg(&repository)).text();
        assert!(listed.contains("\"1\""), "{listed}");
        let delete = |creds: &str| {
            let cmd = world.skopeo.command().arg("delete").arg("--cert-dir").arg(&world.trust);
            cmd.arg("--creds").secret_arg(creds).arg(world.remote("other/app"))
        };
        world.refused(delete(&bob), "skopeo-delete-read-only");
        world.ok(delete(&alice));
        let gone = world.skopeo("inspect").arg("--raw").arg(world.remote("other/app"));
        world.refused(gone, "skopeo-gone");
        let url = format!("https://{}/v2/team/app/tags/list", world.addr());
        let Answer::Response { status, body, .. } = Curl::get(&url).ca(&world.ca).user(&alice).send().unwrap() else {
            panic!("no answer")
        };
        assert_eq!((status, body.trim()), (200, r#"{"name":"team/app","tags":["1"]}"#));
    });
}
