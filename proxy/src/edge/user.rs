//! `portcullis user`: managing an htpasswd file.

mod file;
mod prompt;
#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::auth::htpasswd::{self, DEFAULT_BCRYPT_COST, Htpasswd, LineError, MAX_BCRYPT_COST, MIN_BCRYPT_COST};
use crate::auth::{Secret, principal};

/// Options of `portcullis user …`.
#[derive(Debug, clap::Args)]
pub struct UserArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: UserCommand,
}

/// The commands of `portcullis user`.
#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Add a user, or set a new password (asked for twice, or the first line of standard input)
    Add {
        /// The file and the user.
        #[command(flatten)]
        target: Target,
        /// bcrypt cost: each step doubles the time of a check (10: about 50 ms)
        #[arg(long, value_name = "N", default_value_t = DEFAULT_BCRYPT_COST,
              value_parser = clap::value_parser!(u32).range(i64::from(MIN_BCRYPT_COST)..=i64::from(MAX_BCRYPT_COST)))]
        cost: u32,
    },
    /// Remove a user
    Remove(Target),
    /// List the users and the scheme of each password
    List {
        /// The htpasswd file
        #[arg(long, value_name = "FILE")]
        htpasswd: PathBuf,
    },
    /// Check a password (asked for, or the first line of standard input): exit code 0 if it fits, else 1
    Verify(Target),
}

/// A user in a file.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// The htpasswd file
    #[arg(long, value_name = "FILE")]
    pub htpasswd: PathBuf,
    /// The user
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Runs one `portcullis user` command. The exit code is 1 when `verify` finds that the password does not fit, and 130
/// when the prompt was interrupted.
///
/// # Errors
/// One line that names the thing and the remedy; nothing was changed then.
pub fn run(args: &UserArgs) -> anyhow::Result<ExitCode> {
    let done = match &args.command {
        UserCommand::Add { target, cost } => {
            ensure_name(&target.name)?;
            file::ensure_editable(&target.htpasswd)?;
            prompt::new_password(&target.name).and_then(|password| add(target, &password, *cost)).map(Some)
        }
        UserCommand::Remove(target) => remove(target).map(Some),
        UserCommand::List { htpasswd } => list(htpasswd).map(Some),
        UserCommand::Verify(target) => {
            let users = load(&target.htpasswd)?;
            prompt::password(&target.name).map(|password| verify(&users, target, &password))
        }
    };
    match done {
        Ok(Some(report)) => {
            io::stdout().lock().write_all(report.as_bytes()).context("cannot write to standard output")?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(None) => Ok(ExitCode::FAILURE),
        Err(error) if error.is::<prompt::Interrupted>() => Ok(ExitCode::from(130)),
        Err(error) => Err(error),
    }
}

fn add(target: &Target, password: &Secret, cost: u32) -> anyhow::Result<String> {
    let Target { htpasswd: path, name } = target;
    let hash = htpasswd::hash_bcrypt(password.expose(), cost, random_salt()?)
        .map_err(|error| anyhow::anyhow!("{error}; choose another one"))?;
    let edit = file::Edit::begin(path)?;
    let old = edit.read()?.unwrap_or_default();
    let is_new = htpasswd::without_user(&old, name) == old;
    let text = htpasswd::with_user(&old, name, &hash);
    edit.replace(&text)?;
    let did = if is_new { "added user" } else { "set a new password for user" };
    Ok(format!("{did} {name} in {}\n{}", path.display(), warning(path, &text)))
}

fn remove(target: &Target) -> anyhow::Result<String> {
    let Target { htpasswd: path, name } = target;
    let edit = file::Edit::begin(path)?;
    let old = edit.read()?.ok_or_else(|| file::missing(path))?;
    let text = htpasswd::without_user(&old, name);
    if text == old {
        bail!("{} has no user {name:?}; `portcullis user list` shows all", path.display());
    }
    edit.replace(&text)?;
    Ok(format!("removed user {name} from {}\n{}", path.display(), warning(path, &text)))
}

fn list(path: &Path) -> anyhow::Result<String> {
    Ok(load(path)?.users().map(|(name, scheme)| format!("{name}\t{scheme}\n")).collect())
}

fn verify(users: &Htpasswd, target: &Target, password: &Secret) -> Option<String> {
    users
        .verify(&target.name, password.expose())
        .then(|| format!("the password of user {} fits\n", target.name))
        .or_else(|| {
            let why = if users.contains(&target.name) { "the password does not fit" } else { "there is no such user" };
            // Nothing can be done about a closed standard error; the exit code says it too.
            let _ = writeln!(io::stderr(), "{}: {why}", target.name);
            None
        })
}

fn ensure_name(name: &str) -> anyhow::Result<()> {
    principal::check_name(name).map_err(|why| anyhow::anyhow!("the user name {name:?} {why}; choose another one"))
}

fn load(path: &Path) -> anyhow::Result<Htpasswd> {
    let text = file::read(path)?.ok_or_else(|| file::missing(path))?;
    Htpasswd::parse(&text).map_err(|errors| anyhow::anyhow!(lines(path, &errors)))
}

/// The edit itself succeeded, but the gate would not take the file.
fn warning(path: &Path, text: &str) -> String {
    match Htpasswd::parse(text) {
        Ok(_) => String::new(),
        Err(errors) => format!(
            "warning: other lines are broken, and the gate refuses the file until they are repaired:\n{}\n",
            lines(path, &errors)
        ),
    }
}

fn lines(path: &Path, errors: &[LineError]) -> String {
    errors.iter().map(|error| format!("{}: {error}", path.display())).collect::<Vec<_>>().join("\n")
}

fn random_salt() -> anyhow::Result<[u8; 16]> {
    let mut salt = [0; 16];
    file::fill_random(&mut salt)?;
    Ok(salt)
}
