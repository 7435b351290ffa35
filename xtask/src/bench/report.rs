//! What a bench leaves behind: a page of tables, plots, goals and the conditions that it was measured under.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use super::stats::Goal;
use super::{Args, machine, plot};
use crate::lab::ui::{say, table};
use crate::workspace;

/// A table with its caption.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) heading: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// The result of one bench.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) tables: Vec<Table>,
    pub(super) plots: Vec<plot::Plot>,
    pub(super) goals: Vec<Goal>,
    pub(super) remarks: Vec<String>,
}

const GOALS: [&str; 4] = ["goal", "limit", "here", ""];

impl Report {
    /// Shows it and writes it down.
    pub(super) fn publish(&self, args: &Args, noise: &machine::Noise) -> anyhow::Result<()> {
        let dir = directory(args)?;
        let mut text = format!("# {}\n\n", self.title);
        if args.quick {
            text.push_str("**A quick run: too short for figures to rely on.**\n\n");
        }
        for part in &self.tables {
            say(format!("\n{}", part.caption));
            say(table(&part.heading, &part.rows));
            let _ = writeln!(text, "{}\n\n{}", part.caption, markdown(&part.heading, &part.rows));
        }
        for (number, plot) in self.plots.iter().enumerate() {
            let number = if number == 0 { String::new() } else { format!("-{}", number + 1) };
            let file = format!("{}{number}.svg", self.name);
            fs::write(dir.join(&file), plot.svg()?).with_context(|| format!("cannot write {file}"))?;
            let _ = writeln!(text, "![{}]({file})\n", plot.title);
        }
        if !self.goals.is_empty() {
            let rows: Vec<_> = self.goals.iter().map(Goal::row).collect();
            say(table(&GOALS, &rows));
            let _ = writeln!(text, "## Goals\n\n{}", markdown(&GOALS, &rows));
        }
        text.push_str("## Conditions\n\n");
        for remark in self.remarks.iter().cloned().chain(machine::describe(args, noise)) {
            say(format!("- {remark}"));
            let _ = writeln!(text, "- {remark}");
        }
        let file = dir.join(format!("{}.md", self.name));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        say(format!("Written to {}.", file.display()));
        Ok(())
    }
}

/// The page of all goals.
pub(super) fn publish_goals(args: &Args, noise: &machine::Noise, goals: &[Goal]) -> anyhow::Result<()> {
    let rows: Vec<_> = goals.iter().map(Goal::row).collect();
    let page = Report {
        name: "goals",
        title: "All goals of one run",
        tables: vec![Table { caption: "Ratios of medians of one run.".to_owned(), heading: GOALS.to_vec(), rows }],
        ..Report::default()
    };
    page.publish(args, noise)
}

/// A quick run must not replace figures that somebody took the time for.
fn directory(args: &Args) -> anyhow::Result<PathBuf> {
    let dir = match &args.output {
        Some(dir) => dir.clone(),
        None if args.quick => workspace::target().join("bench-quick"),
        None => workspace::root().join("benches/results"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn markdown(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rule = vec!["---"; heading.len()].join(" | ");
    let rows: String = rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    format!("| {} |\n| {rule} |\n{rows}", heading.join(" | "))
}
