//! Every file of the fuzzing corpora before its parser, without a fuzzer: what once was a find stays repaired.

use std::fs;

use crate::support::root;

#[allow(unreachable_pub, reason = "public in the crate of the fuzzer")]
#[path = "../proxy/fuzz/src/targets/mod.rs"]
mod targets;

/// Runs a corpus; a panic in it is preceded by the name of the file.
fn replay(name: &str) {
    let dir = root().join("proxy/fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{} files in {}", files.len(), dir.display());
    for file in files {
        eprintln!("{}", file.display());
        let data = fs::read(&file).unwrap();
        targets::run(name, &data);
        // A corpus is a list of starting points: what lies one byte off is looked at, too.
        for at in (0..data.len().min(64)).step_by(5) {
            let mut near = data.clone();
            near[at] ^= 1 << (at % 8);
            targets::run(name, &near);
            targets::run(name, &data[..at]);
        }
    }
}

#[test]
fn every_file_of_the_corpora_is_read_as_promised() {
    for (name, _) in targets::ALL {
        replay(name);
    }
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let fuzz = root().join("proxy/fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in targets::ALL {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in Cargo.toml");
        let program = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("targets::run(\"{name}\", data)")), "{name} runs another target");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::ALL.len());
    assert_eq!(fs::read_dir(fuzz.join("corpus")).unwrap().count(), targets::ALL.len());
}

/// The fuzzer's workspace has a lock file of its own, which nothing else looks at.
#[test]
fn the_fuzzers_lock_file_knows_what_the_gate_depends_on() {
    let read = |path: &str| -> toml::Table { fs::read_to_string(root().join(path)).unwrap().parse().unwrap() };
    let lock = read("proxy/fuzz/Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    let gate = packages.iter().find(|package| package["name"].as_str() == Some("portcullis")).unwrap();
    let locked: Vec<&str> = gate["dependencies"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
    let manifest = read("proxy/Cargo.toml");
    for name in manifest["dependencies"].as_table().unwrap().keys() {
        let known = locked.iter().any(|known| known.split(' ').next() == Some(name));
        assert!(known, "{name} is not locked: run `cargo update -w` in proxy/fuzz");
    }
}
