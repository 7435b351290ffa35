//! What `cargo test` says, read as it comes.

use std::collections::HashSet;

/// One test program.
#[derive(Debug, Default)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
    pub(super) seconds: f64,
    tests: HashSet<String>,
}

/// All test programs of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) suites: Vec<Suite>,
    pub(super) failed: Vec<String>,
    pub(super) ignored: Vec<(String, String)>,
    /// Those that libtest called slow and that did not end yet.
    pub(super) running: Vec<String>,
    failures: String,
    in_failures: bool,
}

impl Report {
    /// Reads a line; `true` for those that a person wants to see go by.
    pub(super) fn read(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        if let Some(name) = suite_name(line) {
            self.suites.push(Suite { name, ..Suite::default() });
            return true;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.in_failures = false;
            self.finish(result);
            return true;
        }
        if line == "failures:" {
            self.in_failures = true;
        }
        if self.in_failures {
            self.failures.push_str(line);
            self.failures.push('\n');
        } else if let Some(rest) = line.strip_prefix("test ") {
            if let Some((name, outcome)) = rest.split_once(" ... ") {
                self.test(name, outcome);
            } else if let Some(name) = rest.strip_suffix(" has been running for over 60 seconds") {
                self.running.push(name.to_owned());
            }
        }
        false
    }

    fn test(&mut self, name: &str, outcome: &str) {
        let suite = self.suites.last_mut();
        if let Some(suite) = suite {
            suite.tests.insert(name.to_owned());
        }
        self.running.retain(|running| running != name);
        if outcome.starts_with("FAILED") {
            self.failed.push(name.to_owned());
        } else if let Some(reason) = outcome.strip_prefix("ignored") {
            let reason = reason.trim_start_matches([',', ' ']);
            let reason = if reason.is_empty() { "ignored" } else { reason };
            self.ignored.push((name.to_owned(), reason.to_owned()));
        }
    }

    fn finish(&mut self, result: &str) {
        let Some(suite) = self.suites.last_mut() else {
            return;
        };
        for part in result.split([';', '.']).map(str::trim) {
            let number = part.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match part.rsplit(' ').next() {
                Some("passed") => suite.passed = number,
                Some("failed") => suite.failed = number,
                Some("ignored") => suite.ignored = number,
                _ => {}
            }
        }
        let time = result.rsplit("finished in ").next().and_then(|time| time.strip_suffix('s'));
        suite.seconds = time.and_then(|time| time.parse().ok()).unwrap_or(0.0);
    }

    /// A test that skips itself has passed for libtest; here it counts as skipped.
    pub(super) fn skipped_itself(&mut self, test: &str) -> bool {
        let mut suites = self.suites.iter_mut();
        let Some(suite) = suites.find(|suite| suite.passed > 0 && suite.tests.contains(test)) else {
            return false;
        };
        suite.tests.remove(test);
        suite.passed -= 1;
        suite.ignored += 1;
        true
    }

    /// What the failed tests wrote.
    pub(super) fn failure_text(&self) -> Option<&str> {
        Some(self.failures.as_str()).filter(|text| !text.is_empty())
    }
}

fn suite_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{package}, examples in the documentation"));
    }
    let (source, program) = line.strip_prefix("Running ")?.split_once(" (")?;
    let source = source.strip_prefix("unittests ").unwrap_or(source);
    let program = program.trim_end_matches(')').rsplit('/').next()?;
    let (program, _hash) = program.rsplit_once('-')?;
    Some(format!("{program}, {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling portcullis v0.1.0
     Running unittests src/lib.rs (target/debug/deps/portcullis-0a1b)
test auth::apr1 ... ok
test auth::slow ... ignored, takes an hour
test auth::broken ... FAILED

failures:

---- auth::broken stdout ----
test not a test ... ok

failures:
    auth::broken

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.25s

     Running ../tests/main.rs (target/debug/deps/main-2c3d)
test guard::drops has been running for over 60 seconds
test guard::hangs has been running for over 60 seconds
test guard::drops ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
   Doc-tests portcullis
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_run_is_read() {
        let mut report = Report::default();
        let shown = OUTPUT.lines().filter(|line| report.read(line)).count();
        assert_eq!(shown, 6);
        let names: Vec<&str> = report.suites.iter().map(|suite| suite.name.as_str()).collect();
        let documentation = "portcullis, examples in the documentation";
        assert_eq!(names, ["portcullis, src/lib.rs", "main, ../tests/main.rs", documentation]);
        let first = &report.suites[0];
        assert_eq!((first.passed, first.failed, first.ignored, first.seconds), (1, 1, 1, 0.25));
        assert_eq!(report.failed, ["auth::broken"]);
        assert_eq!(report.ignored, [("auth::slow".to_owned(), "takes an hour".to_owned())]);
        assert_eq!(report.running, ["guard::hangs"]);
        assert!(report.failure_text().unwrap().contains("---- auth::broken stdout ----"));
    }

    #[test]
    fn a_test_that_skips_itself_moves_from_passed_to_skipped_once() {
        let mut report = Report::default();
        for line in OUTPUT.lines() {
            report.read(line);
        }
        assert!(report.skipped_itself("guard::drops"));
        assert!(!report.skipped_itself("guard::drops"));
        assert_eq!((report.suites[1].passed, report.suites[1].ignored), (0, 1));
    }
}
