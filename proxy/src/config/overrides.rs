//! What flags and environment say: names, precedence and how lists are written in a variable.

use super::error::Place;

/// The flags of `serve` and `check` as they were typed; all values are checked in one place, by `resolve`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`
    pub listen: Vec<String>,
    /// `--tls-cert`, paired with [`Overrides::tls_key`] by position
    pub tls_cert: Vec<String>,
    /// `--tls-key`
    pub tls_key: Vec<String>,
    /// `--backend`
    pub backend: Vec<String>,
    /// `--kind`
    pub kind: Option<String>,
    /// `--auth-backend`
    pub auth_backend: Option<String>,
    /// `--htpasswd`
    pub htpasswd: Option<String>,
    /// `--workers`
    pub workers: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--access-log`
    pub access_log: Option<String>,
    /// `--allow-plaintext-credentials`; `true` when the flag stands alone
    pub allow_plaintext_credentials: Option<String>,
    /// `--pin`
    pub pin: Option<String>,
    /// `--ktls`
    pub ktls: Option<String>,
}

/// The names of one setting outside the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) flag: &'static str,
    pub(super) environment: &'static str,
    /// What separates several values in the variable; empty: it holds one value.
    separators: &'static [char],
}

const ONE: &[char] = &[];
const WORDS: &[char] = &[',', ' ', '\t', '\n'];
/// Paths may hold spaces.
const PATHS: &[char] = &[','];

const fn name(flag: &'static str, environment: &'static str, separators: &'static [char]) -> Name {
    Name { flag, environment, separators }
}

pub(super) const LISTEN: Name = name("--listen", "PORTCULLIS_LISTEN", WORDS);
pub(super) const TLS_CERT: Name = name("--tls-cert", "PORTCULLIS_TLS_CERT", PATHS);
pub(super) const TLS_KEY: Name = name("--tls-key", "PORTCULLIS_TLS_KEY", PATHS);
pub(super) const BACKEND: Name = name("--backend", "BACKEND", WORDS);
pub(super) const KIND: Name = name("--kind", "KIND", ONE);
pub(super) const AUTH_BACKEND: Name = name("--auth-backend", "AUTH_BACKEND", ONE);
pub(super) const HTPASSWD: Name = name("--htpasswd", "PORTCULLIS_HTPASSWD", ONE);
pub(super) const WORKERS: Name = name("--workers", "PORTCULLIS_WORKERS", ONE);
pub(super) const ADMIN: Name = name("--admin", "PORTCULLIS_ADMIN", ONE);
pub(super) const ACCESS_LOG: Name = name("--access-log", "PORTCULLIS_ACCESS_LOG", ONE);
pub(super) const ALLOW_PLAINTEXT: Name =
    name("--allow-plaintext-credentials", "PORTCULLIS_ALLOW_PLAINTEXT_CREDENTIALS", ONE);
pub(super) const PIN: Name = name("--pin", "PORTCULLIS_PIN", ONE);
pub(super) const KTLS: Name = name("--ktls", "PORTCULLIS_KTLS", ONE);

/// A value and where it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) place: Place,
}

impl Name {
    /// The values of the flag, else those of the variable; empty when neither says anything.
    pub(super) fn look_up(&self, flags: &[String], environment: &dyn Fn(&str) -> Option<String>) -> Vec<Given> {
        if !flags.is_empty() {
            let place = Place::Flag(self.flag);
            return flags.iter().map(|text| Given { text: text.clone(), place: place.clone() }).collect();
        }
        // An empty variable is how compose files and `docker run -e` say "not set".
        let text = environment(self.environment).unwrap_or_default();
        text.split(|c| self.separators.contains(&c))
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| Given { text: part.to_owned(), place: Place::Environment(self.environment) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_before_environment_and_lists() {
        let look_up = |name: &Name, flags: &[&str], value: &str| -> Vec<String> {
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            let environment = |asked: &str| (asked == name.environment).then(|| value.to_owned());
            name.look_up(&flags, &environment)
                .into_iter()
                .map(|given| format!("{}{}", given.place, given.text))
                .collect()
        };
        for (name, flags, value, expected) in [
            (&BACKEND, &["http://a"][..], "http://b", &["--backend: http://a"][..]),
            (
                &BACKEND,
                &[],
                "http://a, http://b  http://c,",
                &["environment BACKEND: http://a", "environment BACKEND: http://b", "environment BACKEND: http://c"],
            ),
            (&BACKEND, &[], " ", &[]),
            (&KIND, &[], "", &[]),
            (&KIND, &[], " http ", &["environment KIND: http"]),
            (
                &TLS_CERT,
                &[],
                "/etc/my certs/a.pem,b.pem",
                &["environment PORTCULLIS_TLS_CERT: /etc/my certs/a.pem", "environment PORTCULLIS_TLS_CERT: b.pem"],
            ),
        ] {
            assert_eq!(look_up(name, flags, value), expected);
        }
    }
}
