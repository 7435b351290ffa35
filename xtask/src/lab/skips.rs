//! Tests that cannot run here say so: on standard error, past libtest's capture, and in the file that
//! `cargo xtask test` reads afterwards.

use std::fs::OpenOptions;
use std::io::{Write, stderr};

/// Names the file to which skipped tests are appended.
pub const FILE_VARIABLE: &str = "PORTCULLIS_SKIPS";

const PREFIX: &str = "skipped: ";

/// Says that the running test cannot run here, and why; libtest names a test's thread after it.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Two tests may be skipped at the same time: one write each keeps the lines whole.
    let line = format!("{PREFIX}{name}: {reason}\n");
    let _ = stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// The names and reasons in such a file.
#[must_use]
pub fn parse(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX)?.split_once(": "));
    lines.map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_may_hold_colons() {
        let read = parse("noise\nskipped: guard::drops: not root: run it with sudo\n");
        assert_eq!(read, [("guard::drops".to_owned(), "not root: run it with sudo".to_owned())]);
    }
}
