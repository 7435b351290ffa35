//! The configuration file as it is written: one serde structure for each table, every key optional.
//!
//! What a key means when it is absent is decided in `resolve`, where flags and environment are known too.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::units::{Period, Size, Words};

/// A value that may be absent and whose place in the file an error can name.
pub(super) type Maybe<T> = Option<Spanned<T>>;
/// A list of strings, each with its place.
pub(super) type Strings = Option<Spanned<Vec<Spanned<String>>>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workers: Maybe<usize>,
    pub(super) user: Maybe<String>,
    pub(super) upstream_ca: Maybe<String>,
    pub(super) admin: Maybe<String>,
    pub(super) access_log: Maybe<String>,
    pub(super) allow_plaintext_credentials: Maybe<bool>,
    pub(super) ktls: Maybe<String>,
    pub(super) listen: Vec<Spanned<Listen>>,
    pub(super) site: Vec<Spanned<Site>>,
    pub(super) auth: Auth,
    pub(super) verdicts: Verdicts,
    pub(super) rule: Vec<Spanned<Rule>>,
    pub(super) groups: BTreeMap<Spanned<String>, Spanned<Vec<Spanned<String>>>>,
    pub(super) limits: Limits,
    pub(super) blobs: Blobs,
    pub(super) guard: Guard,
}

/// `[[listen]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Listen {
    pub(super) address: Maybe<String>,
    pub(super) redirect: Maybe<String>,
    pub(super) tls: Vec<Spanned<Tls>>,
    pub(super) client_ca: Maybe<String>,
    pub(super) proxy_protocol: Strings,
}

/// One entry of `tls` in `[[listen]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) cert: Maybe<String>,
    pub(super) key: Maybe<String>,
}

/// `[[site]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Site {
    pub(super) hosts: Strings,
    pub(super) upstreams: Strings,
    pub(super) kind: Maybe<String>,
    pub(super) challenge: Maybe<String>,
    pub(super) public_url: Maybe<String>,
}

/// `[auth]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Auth {
    pub(super) htpasswd: Maybe<String>,
    pub(super) backend: Maybe<String>,
    pub(super) realm: Maybe<String>,
    pub(super) copy_headers: Strings,
}

/// `[verdicts]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Verdicts {
    pub(super) allow_ttl: Maybe<Period>,
    pub(super) deny_ttl: Maybe<Period>,
    pub(super) capacity: Maybe<usize>,
    pub(super) stale_if_error: Maybe<Period>,
}

/// `[[rule]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rule {
    pub(super) who: Strings,
    pub(super) repositories: Strings,
    pub(super) actions: Strings,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) connections: Maybe<usize>,
    pub(super) connections_per_peer: Maybe<usize>,
    pub(super) head_bytes: Maybe<Size>,
    pub(super) fields: Maybe<usize>,
    pub(super) target_bytes: Maybe<Size>,
    pub(super) manifest_bytes: Maybe<Size>,
    pub(super) head_timeout: Maybe<Period>,
    pub(super) idle_timeout: Maybe<Period>,
    pub(super) tls_timeout: Maybe<Period>,
    pub(super) handshakes: Maybe<usize>,
    pub(super) connect_timeout: Maybe<Period>,
    pub(super) response_timeout: Maybe<Period>,
    pub(super) min_rate: Maybe<Size>,
    pub(super) rate_window: Maybe<Period>,
    pub(super) auth_timeout: Maybe<Period>,
    pub(super) auth_concurrency: Maybe<usize>,
    pub(super) auth_queue: Maybe<usize>,
    pub(super) failed_logins: Maybe<usize>,
    pub(super) failed_login_delay: Maybe<Period>,
    pub(super) upstream_idle: Maybe<Period>,
    pub(super) retry_timeout: Maybe<Period>,
    pub(super) resolve_interval: Maybe<Period>,
    pub(super) health_interval: Maybe<Period>,
    pub(super) health_failures: Maybe<usize>,
    pub(super) health_successes: Maybe<usize>,
    pub(super) drain_timeout: Maybe<Period>,
    pub(super) tunnel_timeout: Maybe<Period>,
    pub(super) hash_threads: Maybe<usize>,
    pub(super) hash_queue: Maybe<usize>,
}

/// `[blobs]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Blobs {
    pub(super) splice_threshold: Maybe<Size>,
    pub(super) pipe_size: Maybe<Size>,
    pub(super) buffer: Maybe<Size>,
}

/// `[guard]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guard {
    pub(super) pin: Maybe<String>,
    pub(super) require: Maybe<bool>,
    pub(super) port: Maybe<Words>,
    pub(super) protect: Maybe<Words>,
    pub(super) interface: Maybe<Words>,
    pub(super) allow: Maybe<Words>,
    pub(super) no_local: Maybe<bool>,
    pub(super) mode: Maybe<String>,
}
