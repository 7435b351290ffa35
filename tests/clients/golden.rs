//! What users read when they are refused: kept word for word, so that a change of it is seen before they see it.
//!
//! `PORTCULLIS_BLESS=1` writes the files anew.

use std::fs;
use std::net::SocketAddr;

use crate::support::root;

/// What marks a line about the failure; the others tell of progress.
const MARKS: [&str; 6] = ["level=fatal", "ctr: ", "rror", "denied", "unauthorized", "no basic auth credentials"];

/// The lines about a failure, without what differs from run to run.
pub(super) fn complaint(text: &str, gate: SocketAddr) -> String {
    let lines = text.split(['\n', '\r']).map(str::trim_end).filter(|line| MARKS.iter().any(|mark| line.contains(mark)));
    let mut kept: Vec<String> = lines.map(|line| plain(line, gate)).collect();
    kept.dedup();
    kept.join("\n") + "\n"
}

fn plain(line: &str, gate: SocketAddr) -> String {
    let line = line.replace(&gate.to_string(), "GATE").replace(&gate.ip().to_string(), "HOST");
    let line = line
        .split_once("time=\"")
        .and_then(|(before, rest)| {
            let (_, after) = rest.split_once('"')?;
            Some(format!("{before}time=TIME{after}"))
        })
        .unwrap_or(line);
    without_digests(&line)
}

/// Runs of at least 12 hexadecimal digits are digests or parts of them.
fn without_digests(line: &str) -> String {
    let (mut out, mut run) = (String::new(), String::new());
    for c in line.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_ascii_digit() || ('a'..='f').contains(&c) => run.push(c),
            other => {
                out += if run.len() < 12 { &run } else { "DIGEST" };
                run.clear();
                out.extend(other);
            }
        }
    }
    out
}

/// Compares with the file of this name.
pub(super) fn compare(name: &str, text: &str) {
    let path = root().join("tests/clients/golden").join(format!("{name}.txt"));
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "not what {} has; PORTCULLIS_BLESS=1 writes it anew", path.display());
}

#[test]
fn what_differs_from_run_to_run_is_left_out() {
    let gate = "192.0.2.7:4431".parse().unwrap();
    let text = "abc: Preparing\r\ntime=\"2026-01-02T03:04:05Z\" level=fatal msg=\"192.0.2.7:4431 sha256:0123456789abcdef no\"\n";
    assert_eq!(complaint(text, gate), "time=TIME level=fatal msg=\"GATE sha256:DIGEST no\"\n");
}
