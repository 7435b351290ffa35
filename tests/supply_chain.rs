//! What can be said of the dependencies without a tool or a network: where they come from, which are kept out, and that
//! somebody wrote down why each is there.

use std::fs;

use crate::support::root;

fn read(path: &str) -> toml::Table {
    fs::read_to_string(root().join(path)).unwrap().parse().unwrap()
}

fn packages(lock: &str) -> Vec<toml::Table> {
    let found = read(lock)["package"].as_array().unwrap().clone();
    found.into_iter().map(|package| package.as_table().unwrap().clone()).collect()
}

const LOCKS: [&str; 2] = ["Cargo.lock", "proxy/fuzz/Cargo.lock"];

#[test]
fn every_crate_comes_from_crates_io_with_a_checksum() {
    let ours = ["portcullis", "portcullis-ebpf", "portcullis-fuzz", "xtask"];
    for lock in LOCKS {
        let packages = packages(lock);
        assert!(packages.len() > 50, "{lock}");
        for package in packages {
            let name = package["name"].as_str().unwrap();
            let source = package.get("source").and_then(toml::Value::as_str);
            if ours.contains(&name) {
                assert_eq!(source, None, "{lock}: {name}");
                continue;
            }
            assert_eq!(source, Some("registry+https://github.com/rust-lang/crates.io-index"), "{lock}: {name}");
            assert_eq!(package["checksum"].as_str().map(str::len), Some(64), "{lock}: {name}");
        }
    }
}

#[test]
fn what_is_banned_is_not_there() {
    let deny = read(".deny.toml");
    let banned = deny["bans"]["deny"].as_array().unwrap();
    assert!(banned.len() >= 3);
    // The lock file also lists what an optional feature would bring; the tree is what is built.
    let tree = ["tree", "--workspace", "--all-features", "--prefix", "none", "--edges", "normal,build,dev", "--locked"];
    let tree = xtask::workspace::cargo().args(tree).run().unwrap();
    let built: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains(&"rustls"), "{tree}");
    for ban in banned {
        assert!(!built.contains(&ban["crate"].as_str().unwrap()), "{ban}");
    }
}

/// A reason, the day on which it was found acceptable, and the day on which it is looked at again.
#[test]
fn every_accepted_advisory_has_a_reason_and_two_dates() {
    let text = fs::read_to_string(root().join(".deny.toml")).unwrap();
    let accepted = read(".deny.toml")["advisories"]["ignore"].as_array().unwrap().clone();
    let is_date = |word: &&str| word.len() == 10 && word.bytes().filter(|&b| b == b'-').count() == 2;
    for advisory in accepted {
        let advisory = advisory.as_str().unwrap().to_owned();
        let lines: Vec<&str> = text.lines().take_while(|line| !line.contains(&advisory)).collect();
        let notes: Vec<&str> = lines.into_iter().rev().take_while(|line| line.trim().starts_with('#')).collect();
        let dates = notes.iter().flat_map(|line| line.split([' ', ':', '.', ','])).filter(is_date).count();
        assert!(dates >= 2, "{advisory}: {notes:?}");
    }
}

#[test]
fn every_direct_dependency_is_explained() {
    let document = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let table = document.split("| crate | what for | maintained by |").nth(1).unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let explained: Vec<&str> = cells.flat_map(|cell| cell.split(", ")).collect();
    let mut direct: Vec<String> =
        read("Cargo.toml")["workspace"]["dependencies"].as_table().unwrap().keys().cloned().collect();
    for manifest in ["proxy", "ebpf", "xtask", "proxy/fuzz"] {
        let manifest = read(&format!("{manifest}/Cargo.toml"));
        let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
        let tables = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
        direct.extend(tables.flat_map(|table| table.keys().cloned()));
    }
    direct.retain(|name| !name.starts_with("portcullis") && name != "xtask");
    let missing: Vec<&String> = direct.iter().filter(|name| !explained.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "say in SECURITY.md what these are for and who keeps them: {missing:?}");
}
