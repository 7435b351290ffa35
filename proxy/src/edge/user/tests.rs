use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn target(path: &Path, name: &str) -> Target {
    Target { htpasswd: path.to_owned(), name: name.to_owned() }
}

fn set(path: &Path, name: &str, password: &str) -> String {
    add(&target(path, name), &Secret::new(password.as_bytes()), MIN_BCRYPT_COST).unwrap()
}

fn fits(path: &Path, name: &str, password: &str) -> bool {
    load(path).unwrap().verify(name, password.as_bytes())
}

#[test]
fn the_life_of_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    assert!(set(&path, "alice", "one").starts_with("added user alice in "));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(set(&path, "bob", "two").starts_with("added user bob"));
    assert!(set(&path, "alice", "three").starts_with("set a new password for user alice"));
    assert!(fits(&path, "alice", "three") && fits(&path, "bob", "two") && !fits(&path, "alice", "one"));
    assert_eq!(list(&path).unwrap(), "alice\tbcrypt\nbob\tbcrypt\n");
    assert!(remove(&target(&path, "alice")).unwrap().starts_with("removed user alice from "));
    assert_eq!(list(&path).unwrap(), "bob\tbcrypt\n");
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["users"], "no temporary file stays");
}

#[test]
fn mode_link_and_other_lines_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("real"), dir.path().join("link"));
    let old = "# staff\r\nold:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\r\n";
    fs::write(&path, old).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    symlink("real", &link).unwrap();
    set(&link, "new", "x");
    assert!(link.is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o604);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(old) && text.ends_with("\r\n"), "{text:?}");
    assert!(fits(&path, "old", "testpassword") && fits(&path, "new", "x"));
}

#[test]
fn a_broken_line_can_be_repaired_and_is_reported_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    fs::write(&path, "plain:hunter2\nother:hunter3\n").unwrap();
    let report = set(&path, "plain", "x");
    assert!(
        report.contains("warning") && report.contains("line 2: user \"other\"") && !report.contains("hunter"),
        "{report}"
    );
    let error = list(&path).unwrap_err().to_string();
    assert!(error.contains("users: line 2: ") && !error.contains("hunter"), "{error}");
    assert!(!remove(&target(&path, "other")).unwrap().contains("warning"));
    assert_eq!(list(&path).unwrap(), "plain\tbcrypt\n");
}

#[test]
fn bad_input_is_one_line_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    fs::write(&path, "a:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n").unwrap();
    fs::write(dir.path().join("latin1"), b"z\xf6:x\n").unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    let at = |name: &str| dir.path().join(name);
    for (error, part) in [
        (remove(&target(&path, "b")).unwrap_err(), "has no user \"b\"; `portcullis user list`"),
        (remove(&target(&at("none"), "b")).unwrap_err(), "does not exist; `portcullis user add"),
        (list(&at("none")).unwrap_err(), "does not exist; `portcullis user add"),
        (list(&at("latin1")).unwrap_err(), "not valid UTF-8"),
        (list(dir.path()).unwrap_err(), "is not a file"),
        (file::ensure_editable(&at("no/where")).unwrap_err(), "does not exist; create it first"),
        (file::ensure_editable(&at("dangling")).unwrap_err(), "symbolic link to nothing"),
        (file::ensure_editable(&at("users/below")).unwrap_err(), "cannot read"),
        (
            add(&target(&path, "b"), &Secret::new(&[b'x'; 73]), 4).unwrap_err(),
            "72 bytes that bcrypt can hash; choose another",
        ),
        (add(&target(&path, "b"), &Secret::new(b"x\0y"), 4).unwrap_err(), "NUL byte; choose another"),
        (ensure_name("a:b").unwrap_err(), "contains a colon; choose another"),
        (ensure_name("").unwrap_err(), "is empty"),
    ] {
        let text = format!("{error:#}");
        assert!(text.contains(part) && !text.contains('\n'), "{text}");
    }
    assert_eq!(list(&path).unwrap(), "a\tsha1\n");
}

#[test]
fn editors_at_the_same_time_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("users");
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = &path;
            scope.spawn(move || set(path, &format!("user{n}"), "x"));
        }
    });
    assert_eq!(load(&path).unwrap().len(), 8);
}

#[test]
fn the_command_line() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        user: UserArgs,
    }
    let parse = |words: &str| <Line as clap::Parser>::try_parse_from(words.split(' '));
    for good in [
        "x add --htpasswd F bob",
        "x add bob --htpasswd F --cost 4",
        "x add --cost 16 --htpasswd F bob",
        "x remove --htpasswd F bob",
        "x list --htpasswd F",
        "x verify --htpasswd F bob",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
    for bad in [
        "x",
        "x add bob",
        "x add --htpasswd F",
        "x add --htpasswd F bob --cost 3",
        "x add --htpasswd F bob --cost 17",
        "x list",
        "x list --htpasswd F bob",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
