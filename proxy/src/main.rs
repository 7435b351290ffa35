//! `portcullis`: arguments → configuration → run → exit code.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use portcullis::cli::{CheckArgs, Cli, Command, ServeArgs};
use portcullis::config::{self, Config};
use portcullis::edge::{self, explain::ExplainArgs, sys::memory::LargeOnHugePages};
use portcullis::manual;

/// What clap uses for a command line that it does not understand.
const USAGE: u8 = 2;

#[global_allocator]
static ALLOCATOR: LargeOnHugePages = LargeOnHugePages;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = match &cli.command {
        Command::Serve(args) => serve(args),
        Command::Check(args) => check(args),
        Command::Explain(args) => explain(args),
        Command::AuthService(args) => report(edge::auth_service::run(&args.htpasswd, args.listen, &args.realm)),
        Command::User(args) => report(edge::user::run(args)),
        Command::Revoke(args) => report(edge::revoke::run(args)),
        Command::Reload(args) => edge::revoke::run_reload(args),
        Command::Guard(args) => report(edge::guard::run(args)),
        Command::Completions(args) => report(manual::completions(args)),
        Command::Man(args) => report(manual::pages(args)),
    };
    outcome.unwrap_or_else(|errors| {
        say("error", &errors);
        ExitCode::FAILURE
    })
}

fn serve(args: &ServeArgs) -> Result<ExitCode, Vec<String>> {
    let again = args.clone();
    let load = Box::new(move || load_config(&again));
    report(edge::server::run(load_config(args)?, config_file(args).as_deref(), load, args.take_over))
}

fn check(args: &CheckArgs) -> Result<ExitCode, Vec<String>> {
    if args.reference {
        return print(&config::reference());
    }
    let config = load_config(&args.serve)?;
    let errors = edge::reload::inspect(&config);
    if !errors.is_empty() {
        return Err(errors);
    }
    print(&format!("configuration is valid: {}", config.summary()))
}

fn print(text: &str) -> Result<ExitCode, Vec<String>> {
    let printed = std::io::stdout().lock().write_all(text.as_bytes());
    printed.map_err(|error| vec![format!("standard output: {error}")])?;
    Ok(ExitCode::SUCCESS)
}

fn explain(args: &ExplainArgs) -> Result<ExitCode, Vec<String>> {
    let config = load_config(&ServeArgs { config: args.config.clone(), ..ServeArgs::default() })?;
    let policy = edge::generation::policy(&config)?;
    report(edge::explain::run(args, &config, &policy))
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn config_file(args: &ServeArgs) -> Option<PathBuf> {
    args.config.clone().or_else(|| variable("PORTCULLIS_CONFIG").map(PathBuf::from))
}

fn load_config(args: &ServeArgs) -> Result<Config, Vec<String>> {
    let path = config_file(args);
    let text = match &path {
        None => None,
        Some(path) => Some(edge::files::read_text(path).map_err(|error| vec![error])?),
    };
    let environment = |name: &str| variable(name).map(|value: std::ffi::OsString| lossy(&value));
    let config = config::resolve(path.as_deref().zip(text.as_deref()), &args.overrides(), &environment)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    say("warning", &config.warnings);
    Ok(config)
}

/// What is not UTF-8 is no address, URL or word either, and then the error shows where.
fn lossy(value: &OsStr) -> String {
    value.to_string_lossy().into_owned()
}

/// An error with its causes, as one line.
fn report(outcome: anyhow::Result<ExitCode>) -> Result<ExitCode, Vec<String>> {
    outcome.map_err(|error| vec![format!("{error:#}")])
}

/// Each message on one line of standard error; there is nobody to tell when that is closed.
fn say(level: &str, messages: &[impl Display]) {
    let mut out = std::io::stderr().lock();
    for message in messages {
        let message = message.to_string();
        // File names and causes come from outside; none of them may start a line of its own.
        let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "portcullis: {level}: {line}");
    }
}

/// Help and version as clap prints them; an error of the command line on one line, like every other.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    let text = error.render().to_string();
    let parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .map(|line| line.trim_start_matches("error: ").trim_start_matches("tip: "))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    say("error", &[format!("{}; try --help", parts.join("; ").replace(":; ", ": "))]);
    ExitCode::from(USAGE)
}
