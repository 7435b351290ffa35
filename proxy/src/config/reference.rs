//! The reference of the configuration file: every key that the serde structures know, with what it means and its default.
//!
//! Which keys there are is asked from the structures, and defaults are printed from the types' own; a key without a line
//! here, or a line without a key, is a failing test.

use std::fmt::Write as _;

use super::units::{format_duration, format_size};
use super::{Blobs, Limits, Verdicts, schema};

/// Tables in the order of the file, with what is said at their heads.
const TABLES: [(&str, &str, &str); 9] = [
    ("", "", "Keys that stand before the first table."),
    ("listen", "[[listen]]", "Where to accept connections; repeat the table for each address."),
    ("site", "[[site]]", "What is served; repeat it for each service, with `hosts` in all but one."),
    ("auth", "[auth]", "Who checks a login: the htpasswd file first, then the backend. At least one of the two."),
    ("verdicts", "[verdicts]", "How long the answers of the authenticators are remembered."),
    (
        "rule",
        "[[rule]]",
        "Who may do what; without any rule every user may do everything, with one the rest is refused.",
    ),
    ("limits", "[limits]", "Bounds on what a peer may take."),
    ("blobs", "[blobs]", "How bodies are moved."),
    ("guard", "[guard]", "The guard that this gate works with, and what `portcullis guard` does without flags."),
];

/// Keys with a value and a line; an empty value is printed from the default.
const KEYS: [(&str, &str, &str); 68] = [
    ("workers", "0", "worker threads; 0: one for each core"),
    ("user", "\"portcullis\"", "what a gate that is started as root becomes; absent: portcullis, if there is one"),
    ("upstream_ca", "\"roots.pem\"", "checks https:// upstreams and auth backends; absent: the system's roots"),
    ("admin", "\"127.0.0.1:9180\"", "health, metrics, revoke, reload, drain; or \"off\""),
    ("access_log", "\"-\"", "a file, \"-\" for standard output, or \"off\""),
    ("allow_plaintext_credentials", "false", "take passwords over plain HTTP on addresses that others reach"),
    ("ktls", "\"auto\"", "TLS in the kernel: \"auto\", \"off\" or \"require\""),
    ("listen.address", "\"0.0.0.0:443\"", "IP:PORT"),
    ("listen.redirect", "\"https://registry.example.com\"", "send every request on to this origin, and serve nothing"),
    ("listen.tls", "[{ cert = \"registry.pem\", key = \"registry.key\" }]", "several: chosen by server name"),
    ("listen.client_ca", "\"clients.pem\"", "client certificates of these authorities log in as cert:NAME"),
    ("listen.proxy_protocol", "[\"10.0.0.0/8\"]", "peers that must begin with a PROXY header"),
    ("site.hosts", "[\"registry.example.com\"]", "absent: the default site"),
    ("site.upstreams", "[\"http://127.0.0.1:5000\"]", "several: balanced, retried, checked"),
    ("site.kind", "\"registry\"", "\"registry\": only the OCI protocol passes; or \"http\""),
    ("site.challenge", "\"basic\"", "how clients are asked to log in"),
    ("site.public_url", "\"https://registry.example.com\"", "how clients reach the site"),
    ("auth.htpasswd", "\"users.htpasswd\"", "see `portcullis user`"),
    ("auth.backend", "\"http://127.0.0.1:8000/auth\"", "asked like nginx auth_request; without a path: /auth"),
    ("auth.realm", "\"Registry\"", "what a challenge calls the place"),
    ("auth.copy_headers", "[]", "fields of the backend's answer that the upstream is told"),
    ("verdicts.allow_ttl", "", "how long a permit holds"),
    ("verdicts.deny_ttl", "", "how long a refusal holds"),
    ("verdicts.capacity", "", "how many answers are kept"),
    ("verdicts.stale_if_error", "", "how much longer a permit to pull holds while nobody can be asked"),
    ("rule.who", "[\"alice\", \"@ci\", \"anonymous\"]", "users, @groups, anonymous"),
    ("rule.repositories", "[\"team-a/**\"]", "patterns; ** stands for any number of components"),
    ("rule.actions", "[\"pull\", \"push\"]", "of pull, push, delete, catalog"),
    ("limits.connections", "", "open client connections"),
    ("limits.connections_per_peer", "", "of them, those of one address or IPv6 /64; 0: any number"),
    ("limits.head_bytes", "", "a request's head"),
    ("limits.fields", "", "header fields of a request"),
    ("limits.target_bytes", "", "a request's target"),
    ("limits.manifest_bytes", "", "a manifest that is pushed"),
    ("limits.head_timeout", "", "from the first byte of a head to its last"),
    ("limits.idle_timeout", "", "a connection without a request"),
    ("limits.tls_timeout", "", "a TLS handshake, the wait for its turn included"),
    ("limits.handshakes", "", "TLS handshakes at once"),
    ("limits.connect_timeout", "", "connecting to an upstream or auth backend"),
    ("limits.response_timeout", "", "from the end of a request to the upstream's first byte"),
    ("limits.min_rate", "", "bytes a second that a body must move"),
    ("limits.rate_window", "", "over which that is measured"),
    ("limits.auth_timeout", "", "one auth subrequest or password check"),
    ("limits.auth_concurrency", "", "auth subrequests at once"),
    ("limits.auth_queue", "", "auth subrequests that may wait; more are answered with 503"),
    ("limits.failed_logins", "", "wrong passwords for a user from one source before a delay; 0: never"),
    ("limits.failed_login_delay", "", "the first delay; it doubles up to 60 s"),
    ("limits.upstream_idle", "", "an unused upstream connection; shorter than the registry's own"),
    ("limits.retry_timeout", "", "one of several upstreams, to begin its answer to a GET or HEAD"),
    ("limits.resolve_interval", "", "names of upstreams are looked up again"),
    ("limits.health_interval", "", "each of several upstreams is checked; 0s: never"),
    ("limits.health_failures", "", "failures in a row after which an upstream is out"),
    ("limits.health_successes", "", "good checks in a row after which it is used again"),
    ("limits.drain_timeout", "", "how long exchanges may go on after a stop was asked for"),
    ("limits.tunnel_timeout", "", "a tunnel in which nothing moves"),
    ("limits.hash_threads", "", "threads that check passwords; a change needs a restart"),
    ("limits.hash_queue", "", "password checks that may wait; a change needs a restart"),
    ("blobs.splice_threshold", "", "bodies from this length on are spliced"),
    ("blobs.pipe_size", "", "a splice pipe"),
    ("blobs.buffer", "", "the buffer of a body that is copied"),
    ("guard.pin", "\"/sys/fs/bpf/portcullis\"", "the directory of its pins"),
    ("guard.require", "false", "do not start unless the guard enforces, whole"),
    ("guard.port", "[5000]", "ports protected on all addresses"),
    ("guard.protect", "[\"172.17.0.2:5000\"]", "single addresses"),
    ("guard.interface", "[\"eth0\"]", "absent: those that face outside; \"all\": every one but lo"),
    ("guard.allow", "[\"192.0.2.7\"]", "sources that are let in from outside"),
    ("guard.no_local", "false", "leave the connect ring out"),
    ("guard.mode", "\"auto\"", "\"auto\", \"native\" or \"generic\""),
];

/// The whole file, every key commented out.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(
        "# Every key of the configuration file of portcullis, commented out. Values are defaults where there is one, else\n\
         # examples. Durations: 500ms, 60s, 5m, 1h. Sizes: 512, 16KiB, 1MiB. Relative paths start at this file.\n",
    );
    for (table, header, said) in TABLES {
        // Writing into a String does not fail.
        let _ = writeln!(out, "\n# {said}");
        if !header.is_empty() {
            let _ = writeln!(out, "# {header}");
        }
        for key in schema::keys(table).unwrap_or_default() {
            let path = if table.is_empty() { (*key).to_owned() } else { format!("{table}.{key}") };
            let Some((_, value, said)) = KEYS.iter().find(|(known, _, _)| *known == path) else { continue };
            let line = match value {
                &"" => format!("{key} = {}", default(&path)),
                value => format!("{key} = {value}"),
            };
            let _ = writeln!(out, "# {line:<34} # {said}");
        }
    }
    out.push_str("\n# Groups of users, for `who` of the rules. Names are free.\n# [groups]\n");
    out.push_str("# ci = [\"builder-1\", \"builder-2\"]\n");
    out
}

/// The default of a key, as the file writes it; empty where there is none.
fn default(path: &str) -> String {
    let (limits, verdicts, blobs) = (Limits::default(), Verdicts::default(), Blobs::default());
    let time = |time| format!("\"{}\"", format_duration(time));
    let size = |bytes: usize| format!("\"{}\"", format_size(bytes as u64));
    match path {
        "verdicts.allow_ttl" => time(verdicts.allow_ttl),
        "verdicts.deny_ttl" => time(verdicts.deny_ttl),
        "verdicts.capacity" => verdicts.capacity.to_string(),
        "verdicts.stale_if_error" => time(verdicts.stale_if_error),
        "limits.connections" => limits.connections.to_string(),
        "limits.connections_per_peer" => limits.connections_per_peer.to_string(),
        "limits.head_bytes" => size(limits.head_bytes),
        "limits.fields" => limits.fields.to_string(),
        "limits.target_bytes" => size(limits.target_bytes),
        "limits.manifest_bytes" => size(limits.manifest_bytes),
        "limits.head_timeout" => time(limits.head_timeout),
        "limits.idle_timeout" => time(limits.idle_timeout),
        "limits.tls_timeout" => time(limits.tls_timeout),
        "limits.handshakes" => limits.handshakes.to_string(),
        "limits.connect_timeout" => time(limits.connect_timeout),
        "limits.response_timeout" => time(limits.response_timeout),
        "limits.min_rate" => format!("\"{}\"", format_size(limits.min_rate)),
        "limits.rate_window" => time(limits.rate_window),
        "limits.auth_timeout" => time(limits.auth_timeout),
        "limits.auth_concurrency" => limits.auth_concurrency.to_string(),
        "limits.auth_queue" => limits.auth_queue.to_string(),
        "limits.failed_logins" => limits.failed_logins.to_string(),
        "limits.failed_login_delay" => time(limits.failed_login_delay),
        "limits.upstream_idle" => time(limits.upstream_idle),
        "limits.retry_timeout" => time(limits.retry_timeout),
        "limits.resolve_interval" => time(limits.resolve_interval),
        "limits.health_interval" => time(limits.health_interval),
        "limits.health_failures" => limits.health_failures.to_string(),
        "limits.health_successes" => limits.health_successes.to_string(),
        "limits.drain_timeout" => time(limits.drain_timeout),
        "limits.tunnel_timeout" => time(limits.tunnel_timeout),
        "limits.hash_threads" => limits.hash_threads.to_string(),
        "limits.hash_queue" => limits.hash_queue.to_string(),
        "blobs.splice_threshold" => format!("\"{}\"", format_size(blobs.splice_threshold)),
        "blobs.pipe_size" => size(blobs.pipe_size),
        "blobs.buffer" => size(blobs.buffer),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::{Overrides, resolve};
    use super::*;

    fn nobody(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn every_key_has_its_line_and_every_line_its_key() {
        let mut known = BTreeSet::new();
        for (table, _, _) in TABLES {
            for key in schema::keys(table).expect(table) {
                let path = if table.is_empty() { (*key).to_owned() } else { format!("{table}.{key}") };
                let is_table = table.is_empty() && (schema::keys(key).is_some() || *key == "groups");
                if !is_table {
                    known.insert(path);
                }
            }
        }
        let lines: BTreeSet<String> = KEYS.iter().map(|(key, _, _)| (*key).to_owned()).collect();
        assert_eq!(lines, known);
        for (path, value, said) in KEYS {
            assert!(!value.is_empty() || !default(path).is_empty(), "{path} has neither a value nor a default");
            assert!(!said.is_empty(), "{path}");
        }
    }

    #[test]
    fn the_reference_is_a_valid_file_with_the_defaults() {
        let text = reference();
        // With every key switched on; the lines of prose have no `=` or bracket at their beginning.
        let on: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with('[') || line.split(' ').nth(1) == Some("="))
            .filter(|line| !line.starts_with("redirect"))
            .collect();
        assert!(on.len() >= KEYS.len(), "{text}");
        let config = resolve(Some((Path::new("r.toml"), &on.join("\n"))), &Overrides::default(), &nobody);
        let config = config.unwrap_or_else(|errors| panic!("{errors:?}\n{}", on.join("\n")));
        assert_eq!((config.limits, config.blobs), (Limits::default(), Blobs::default()));
        assert_eq!((config.verdicts, config.workers), (Verdicts::default(), 0));
        // As it is, it says nothing.
        let nothing = resolve(Some((Path::new("r.toml"), &text)), &Overrides::default(), &nobody);
        assert!(nothing.expect_err("no upstream").iter().all(|error| !error.to_string().contains("r.toml")));
    }
}
