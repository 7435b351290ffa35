//! `portcullis`: arguments → configuration → run → exit code.

use std::process::ExitCode;

use clap::Parser as _;
use portcullis::cli::{Cli, Command};
use portcullis::edge::guard;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Guard(args) => guard::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("portcullis: {error:#}");
        ExitCode::FAILURE
    })
}
