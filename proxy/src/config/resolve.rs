//! Flags, environment and file become one [`Config`], or the list of everything that is wrong with them.

mod access;
mod guard;
mod limits;
mod listeners;
mod sites;

pub use access::is_realm;
pub use guard::{guard, parse_protected};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::document::Document;
use super::error::{ConfigError, Fault, Place};
use super::file::File;
use super::overrides::{self, Given, Name, Overrides};
use super::{AccessLog, Config, Ktls, suggest};

/// Resolves a configuration: a flag beats the environment, which beats the file.
///
/// `file` is the path as it was named and the text; relative paths in it start at its directory. `environment` looks
/// up a variable.
///
/// # Errors
/// Everything that is wrong, in the order in which it stands in the file, then flags and environment.
pub fn resolve(
    file: Option<(&Path, &str)>,
    flags: &Overrides,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<ConfigError>> {
    let document = file.map(|(path, text)| Document::new(path, text));
    let (file, errors) = match &document {
        None => (File::default(), Vec::new()),
        Some(document) => match document.read() {
            // Nothing sensible can be said about settings in a text that is not TOML.
            (None, errors) => return Err(errors),
            (Some(file), errors) => (file, errors),
        },
    };
    let mut resolver = Resolver { document, flags, environment, errors, missing: Vec::new(), warnings: Vec::new() };
    let config = resolver.config(&file);
    resolver.finish(config)
}

struct Resolver<'a> {
    document: Option<Document<'a>>,
    flags: &'a Overrides,
    environment: &'a dyn Fn(&str) -> Option<String>,
    errors: Vec<ConfigError>,
    /// What is absent; not reported next to other errors, since one of those may well be why.
    missing: Vec<ConfigError>,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    fn config(&mut self, file: &File) -> Config {
        let allow_plaintext_credentials = self.allow_plaintext(file);
        let listeners = self.listeners(file, allow_plaintext_credentials);
        let sites = self.sites(file, &listeners);
        let groups = self.groups(file);
        let rules = self.rules(file, &groups);
        let auth = self.auth(file, &rules);
        Config {
            workers: self.workers(file),
            upstream_ca: file.upstream_ca.as_ref().map(|path| self.path(&self.given(path, "upstream_ca"))),
            user: file.user.as_ref().map(|user| user.get_ref().clone()),
            admin: self.admin(file, &listeners),
            access_log: self.access_log(file),
            listeners,
            sites,
            auth,
            verdicts: self.verdicts(&file.verdicts),
            rules,
            groups,
            limits: self.limits(&file.limits),
            blobs: self.blobs(&file.blobs),
            guard: self.guard(&file.guard),
            allow_plaintext_credentials,
            ktls: self.ktls(file),
            warnings: Vec::new(),
        }
    }

    fn finish(mut self, config: Config) -> Result<Config, Vec<ConfigError>> {
        if self.errors.is_empty() {
            self.errors = self.missing;
        }
        if self.errors.is_empty() {
            return Ok(Config { warnings: self.warnings, ..config });
        }
        self.errors.sort_by(|a, b| a.place.cmp(&b.place));
        self.errors.dedup();
        Err(self.errors)
    }

    /// The place of a value in the file.
    fn place<T>(&self, value: &Spanned<T>, key: &str) -> Place {
        self.document.as_ref().map_or(Place::Nowhere, |document| document.place(&value.span(), key))
    }

    fn given(&self, value: &Spanned<String>, key: &str) -> Given {
        Given { text: value.get_ref().clone(), place: self.place(value, key) }
    }

    /// The one value of a setting: flag, else environment, else file.
    fn one(&self, name: &Name, flag: Option<&String>, file: Option<&Spanned<String>>, key: &str) -> Option<Given> {
        let mut values = name.look_up(flag.map(std::slice::from_ref).unwrap_or_default(), self.environment);
        values.pop().or_else(|| file.map(|value| self.given(value, key)))
    }

    /// A path: relative ones start at the file's directory when they stand in the file.
    fn path(&self, given: &Given) -> PathBuf {
        match (&given.place, &self.document) {
            (Place::File { .. }, Some(document)) => document.relative(&given.text),
            _ => PathBuf::from(&given.text),
        }
    }

    fn fail(&mut self, fault: Fault, place: &Place) {
        self.errors.push(fault.at(place));
    }

    /// A path that must not be empty.
    fn checked_path(&mut self, given: &Given) -> PathBuf {
        if given.text.is_empty() {
            self.fail(Fault::new("the path is empty", "name a file"), &given.place);
        }
        self.path(given)
    }

    fn address(&mut self, given: &Given) -> Option<SocketAddr> {
        let text = given.text.trim();
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let port = text.strip_prefix(':').or(text.strip_prefix("localhost:")).unwrap_or(text);
        let remedy = if port.parse::<u16>().is_ok() {
            format!("write \"127.0.0.1:{port}\" for this machine only or \"0.0.0.0:{port}\" for all of the network")
        } else {
            "write IP:PORT, for example \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned()
        };
        self.fail(Fault::new(format!("{text:?} is not an address with a port"), remedy), &given.place);
        None
    }

    /// One of a few words.
    fn choice<T: Copy>(&mut self, given: &Given, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(word, _)| *word == given.text);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let remedy = match suggest::nearest(&given.text, words.iter().copied()) {
                Some(word) => format!("did you mean \"{word}\"?"),
                None => format!("write one of: {}", words.join(", ")),
            };
            self.fail(Fault::new(format!("{:?} is not known here", given.text), remedy), &given.place);
        }
        found.map(|(_, value)| *value)
    }

    fn allow_plaintext(&mut self, file: &File) -> bool {
        let flag = self.flags.allow_plaintext_credentials.as_ref();
        let written = file.allow_plaintext_credentials.as_ref();
        match self.one(&overrides::ALLOW_PLAINTEXT, flag, None, "") {
            Some(given) => {
                let words = [("true", true), ("false", false), ("1", true), ("0", false)];
                self.choice(&given, &words).unwrap_or(false)
            }
            None => written.is_some_and(|value| *value.get_ref()),
        }
    }

    fn workers(&mut self, file: &File) -> usize {
        let most = 1024;
        let given = match (self.one(&overrides::WORKERS, self.flags.workers.as_ref(), None, ""), &file.workers) {
            (Some(given), _) => given,
            (None, Some(value)) => Given { text: value.get_ref().to_string(), place: self.place(value, "workers") },
            (None, None) => return 0,
        };
        let count = given.text.parse().ok().filter(|count| *count <= most);
        if count.is_none() {
            let problem = format!("{:?} is not a number of workers", given.text);
            self.fail(
                Fault::new(problem, format!("write a whole number up to {most}, 0 for one for each core")),
                &given.place,
            );
        }
        count.unwrap_or(0)
    }

    fn access_log(&mut self, file: &File) -> AccessLog {
        let flag = self.flags.access_log.as_ref();
        match self.one(&overrides::ACCESS_LOG, flag, file.access_log.as_ref(), "access_log") {
            None => AccessLog::Stdout,
            Some(given) if given.text == "-" => AccessLog::Stdout,
            Some(given) if given.text == "off" => AccessLog::Off,
            Some(given) => AccessLog::File(self.checked_path(&given)),
        }
    }

    fn ktls(&mut self, file: &File) -> Ktls {
        let given = self.one(&overrides::KTLS, self.flags.ktls.as_ref(), file.ktls.as_ref(), "ktls");
        let Some(given) = given else { return Ktls::Auto };
        let words = [("auto", Ktls::Auto), ("off", Ktls::Off), ("require", Ktls::Require)];
        self.choice(&given, &words).unwrap_or(Ktls::Auto)
    }
}

#[cfg(test)]
mod tests;
