//! `cargo xtask …`: everything that is done to the project rather than by it.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use xtask::cli::{Cli, run};
use xtask::lab::interrupt;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interrupt::install().and_then(|()| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
