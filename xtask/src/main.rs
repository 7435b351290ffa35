//! `cargo xtask …`: everything that is done to the project rather than by it.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use xtask::cli::{Cli, run};
use xtask::lab::interrupt;

/// What a shell reports for a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interrupt::install().and_then(|()| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::requested() => {
            let _ = writeln!(std::io::stderr(), "interrupted: what was started is stopped");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
