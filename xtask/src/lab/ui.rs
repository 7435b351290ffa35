//! What a person sees: steps with their elapsed time (a spinner on a terminal, plain lines elsewhere) and tables.
#![allow(clippy::print_stdout, reason = "these are command-line tools: this is where they print")]

use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints a line.
pub fn say(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}

/// A long step, from its first line to its last.
#[derive(Debug)]
pub struct Step {
    label: String,
    begun: Instant,
    last_note: Instant,
    bar: Option<ProgressBar>,
    done: bool,
}

impl Step {
    /// Begins a step and says so.
    #[must_use]
    pub fn begin(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say(format!("… {label}"));
        }
        let now = Instant::now();
        Self { label, begun: now, last_note: now, bar, done: false }
    }

    /// Shows what the step is at: at once on a terminal, every 30 seconds elsewhere.
    pub fn note(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            let text: String = text.trim().chars().take(60).collect();
            bar.set_message(format!("{} · {text}", self.label));
        } else if self.last_note.elapsed() >= Duration::from_secs(30) {
            self.last_note = Instant::now();
            say(format!("  {} ({:.0} s)", text.trim(), self.begun.elapsed().as_secs_f64()));
        }
    }

    /// Prints a line above the spinner.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Ends the step well; `outcome` is one short remark or nothing.
    pub fn done(mut self, outcome: &str) {
        let remark = if outcome.is_empty() { String::new() } else { format!(": {outcome}") };
        self.finish(&format!("✓ {}{remark}", self.label));
    }

    fn finish(&mut self, text: &str) {
        self.done = true;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        say(format!("{text} ({:.1} s)", self.begun.elapsed().as_secs_f64()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.done {
            self.finish(&format!("✗ {}", self.label));
        }
    }
}

/// Lays rows out in columns under a heading.
#[must_use]
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading = heading.iter().map(ToString::to_string).collect();
    let rule = widths.iter().map(|width| "─".repeat(*width)).collect();
    for row in [&heading, &rule].into_iter().chain(rows) {
        let mut line = String::from(" ");
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, " {cell}{} ", " ".repeat(width - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long one".into(), "22".into()]];
        let lines: Vec<String> = table(&["what", "n"], &rows).lines().map(String::from).collect();
        assert_eq!(lines[0], "  what      n");
        assert_eq!(lines[2], "  a         1");
        assert_eq!(lines[3], "  long one  22");
    }
}
