//! python-oras, a client without images: files up and down, whole and in pieces.

use std::fs;

use crate::support::cmd::Cmd;
use crate::support::registry::Registry;
use crate::support::{image, oras, random, root, skips};

use super::world::{PASSWORD, World, inside};

/// More than one of the pieces that it uploads in.
const SIZE: usize = 3_500_000;

#[test]
fn python_oras() {
    let Some(python) = oras::python() else {
        return skips::skip("python-oras is not installed: `cargo xtask test` does it where PyPI answers");
    };
    inside(&[], Registry::url, |world| {
        let mut content = vec![0; SIZE];
        image::Content(random()).fill(&mut content);
        fs::write(world.path("file.bin"), &content).unwrap();
        let oras = |login: &str, words: &[&str]| {
            // It keeps logins in the home directory, and pushes files of the directory that it runs in.
            let cmd = Cmd::new(&python).arg(root().join("tests/peers/oras_client.py")).env("HOME", world.path(""));
            let cmd = cmd.dir(world.path("")).arg(world.addr().to_string()).arg(&world.ca);
            cmd.secret_arg(login).args(words)
        };
        let (alice, bob) = (format!("alice:{PASSWORD}"), format!("bob:{PASSWORD}"));
        let (first, second) = (world.name("team/files"), world.name("other/files"));

        world.refused(oras("alice:wrong", &["push", &first, "file.bin"]), "oras-push-wrong-password");
        world.refused(oras("", &["pull", &first, "nowhere"]), "oras-pull-without-login");
        world.refused(oras(&bob, &["push", &first, "file.bin"]), "oras-push-read-only");
        world.ok(oras(&alice, &["push", &first, "file.bin"]));
        world.ok(oras(&alice, &["push", &first, "file.bin"]));
        world.ok(oras(&alice, &["chunked", &second, "file.bin"]));
        for (n, name) in [&first, &second].into_iter().enumerate() {
            let back = format!("back-{n}");
            fs::create_dir(world.path(&back)).unwrap();
            world.ok(oras(&bob, &["pull", name, &back]));
            assert!(fs::read(world.path(&back).join("file.bin")).unwrap() == content, "{name} came back changed");
        }
        world.refused(oras("bob:wrong", &["pull", &first, "nowhere"]), "oras-pull-wrong-password");
        assert_eq!(world.ok(oras(&bob, &["tags", &first])).text().trim(), "1");
        world.refused(oras(&bob, &["delete", &first, "1"]), "oras-delete-read-only");
        world.ok(oras(&alice, &["delete", &first, "1"]));
        gone(&world, &first);
    });
}

fn gone(world: &World<'_>, name: &str) {
    let status = world.skopeo("inspect").arg("--raw").arg(format!("docker://{name}")).output().unwrap().status;
    assert!(!status.success(), "{name} is still there");
}
