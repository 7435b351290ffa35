//! The manual pages and shell completions, made from the command line's own definition, so that they cannot disagree
//! with it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use crate::cli::Cli;

/// Options of `portcullis completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Options of `portcullis man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory to write them to; made when missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
}

/// Prints the completions of a shell.
///
/// # Errors
/// When standard output is closed.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "portcullis", &mut script);
    io::stdout().lock().write_all(&script).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one page for the program and one for each command: `portcullis.1`, `portcullis-serve.1`, …
///
/// # Errors
/// When a file cannot be written.
pub fn pages(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let show = args.out.display();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {show}"))?;
    write_pages(&args.out).with_context(|| format!("cannot write the pages to {show}"))?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), dir)
}
