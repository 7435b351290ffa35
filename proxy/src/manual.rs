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
use crate::config;

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

/// Writes one page for the program and one for each command (`portcullis.1`, `portcullis-serve.1`, …), and one for the
/// configuration file.
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
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "1") {
            let page = fs::read_to_string(&path)?.replace(".SH EXTRA\n", ".SH NOTES\n");
            let also = ".SH \"SEE ALSO\"\n.BR portcullis (1),\n.BR portcullis.toml (5)\n";
            fs::write(&path, page + also)?;
        }
    }
    fs::write(dir.join("portcullis.toml.5"), file_page())
}

/// The page of the configuration file, which is the reference that `check --reference` prints.
fn file_page() -> String {
    let mut page = String::from(
        ".TH portcullis.toml 5 \"\" portcullis\n.SH NAME\nportcullis.toml \\- the configuration file of the gate\n\
         .SH DESCRIPTION\nThe file that\n.BR \"portcullis serve \\-\\-config\"\nreads, in TOML. Every flag of\n\
         .BR portcullis-serve (1)\nis also a key; flags and variables of the environment beat the file.\n\
         An unknown key is an error. These are all keys, commented out, with their defaults or examples:\n.PP\n.nf\n",
    );
    for line in config::reference().lines() {
        // A dot or a quote at its beginning would be a request; the others are characters of their own to troff.
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\`");
        page.push_str("\\&");
        page.push_str(&line);
        page.push('\n');
    }
    page.push_str(".fi\n.SH \"SEE ALSO\"\n.BR portcullis-serve (1),\n.BR portcullis-check (1)\n");
    page
}
