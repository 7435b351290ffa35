//! What the machine says on its console.

/// The checks that passed, and the names of those that did not.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    pub(super) passed: usize,
    pub(super) failed: Vec<String>,
    ended: bool,
}

impl Verdicts {
    pub(super) fn failure(name: String) -> Self {
        Self { failed: vec![name], ..Self::default() }
    }

    /// Takes a line of the console; the name of the check, if it is one that failed.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        // The kernel or the firmware may have left something at the beginning of the line.
        let (_, verdict) = line.split_once("CHECK ")?;
        if verdict == "end" {
            self.ended = true;
        } else if verdict.starts_with("pass ") {
            self.passed += 1;
        } else if let Some(name) = verdict.strip_prefix("fail ") {
            self.failed.push(name.to_owned());
            return Some(name.to_owned());
        }
        None
    }

    /// A machine that stopped half-way has failed, whatever passed before.
    pub(super) fn finish(mut self, kernel: &str) -> Self {
        if !self.ended || self.passed + self.failed.len() == 0 {
            self.failed.push("the suite reaches its end".to_owned());
        }
        self.failed.iter_mut().for_each(|name| name.insert_str(0, &format!("{kernel}: ")));
        self
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Verdicts {
        let mut verdicts = Verdicts::default();
        lines.iter().for_each(|line| drop(verdicts.read(line)));
        verdicts.finish("6.1")
    }

    #[test]
    fn only_a_suite_that_ended_has_passed() {
        assert_eq!(read(&["CHECK pass a", "\u{1b}[0mCHECK pass b", "CHECK end"]).failed, [""; 0]);
        assert_eq!(read(&["CHECK pass a"]).failed, ["6.1: the suite reaches its end"]);
        assert_eq!(read(&["CHECK end"]).failed, ["6.1: the suite reaches its end"]);
        assert_eq!(read(&["CHECK fail a b", "CHECK end"]).failed, ["6.1: a b"]);
    }
}
