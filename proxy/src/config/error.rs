//! What is wrong with a configuration, where it stands, and what to do about it: one line each.

use std::fmt;
use std::path::PathBuf;

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere: a setting is missing.
    Nowhere,
    /// In the configuration file; line and column count from 1, the column in characters.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
        /// The key with its tables, for example `site.upstreams`; empty where the text is not TOML.
        key: String,
    },
    /// In a flag, for example `--listen`.
    Flag(&'static str),
    /// In an environment variable.
    Environment(&'static str),
}

/// One error of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Where the setting stands.
    pub place: Place,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// A problem with its remedy, before it is known where the text came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Fault {
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }

    /// A setting of the contract that a later version will read.
    pub(crate) fn not_built(what: &str, remedy: impl Into<String>) -> Self {
        Self::new(format!("{what} is not built yet in this version"), remedy)
    }

    pub(crate) fn at(self, place: &Place) -> ConfigError {
        ConfigError { place: place.clone(), problem: self.problem, remedy: self.remedy }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::File { path, line, column, key } => {
                write!(f, "{}:{line}:{column}: ", path.display())?;
                if key.is_empty() { Ok(()) } else { write!(f, "{key}: ") }
            }
            Self::Flag(flag) => write!(f, "{flag}: "),
            Self::Environment(name) => write!(f, "environment {name}: "),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("{}{}; {}", self.place, self.problem, self.remedy);
        // Values are quoted in messages; a line break or an escape sequence in one must not leave this line.
        line.chars().try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_debug()) } else { write!(f, "{c}") })
    }
}

impl std::error::Error for ConfigError {}
