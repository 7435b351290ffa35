//! Whole configurations: what they resolve to, and what is said about the wrong ones.

use super::*;
use crate::config::{Kind, Limits};
use std::time::Duration;

type Words<'a> = &'a [(&'a str, &'a str)];

const ENOUGH: &str = "[[site]]\nupstreams = [\"http://127.0.0.1:5000\"]\n[auth]\nhtpasswd = \"users\"\n";

fn flags(words: &[(&str, &str)]) -> Overrides {
    let mut flags = Overrides::default();
    for (name, value) in words {
        let value = (*value).to_owned();
        match *name {
            "--listen" => flags.listen.push(value),
            "--tls-cert" => flags.tls_cert.push(value),
            "--tls-key" => flags.tls_key.push(value),
            "--backend" => flags.backend.push(value),
            "--kind" => flags.kind = Some(value),
            "--auth-backend" => flags.auth_backend = Some(value),
            "--htpasswd" => flags.htpasswd = Some(value),
            "--workers" => flags.workers = Some(value),
            "--admin" => flags.admin = Some(value),
            "--access-log" => flags.access_log = Some(value),
            "--allow-plaintext-credentials" => flags.allow_plaintext_credentials = Some(value),
            "--pin" => flags.pin = Some(value),
            "--ktls" => flags.ktls = Some(value),
            other => panic!("no such flag: {other}"),
        }
    }
    flags
}

fn run(file: Option<&str>, words: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let look_up = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    let file = file.map(|text| (Path::new("/etc/portcullis/gate.toml"), text));
    resolve(file, &flags(words), &look_up)
        .map_err(|errors| errors.iter().map(|e| e.to_string().replace("/etc/portcullis/", "")).collect())
}

fn ok(file: &str) -> Config {
    run(Some(file), &[], &[]).unwrap_or_else(|errors| panic!("{file}\n{}", errors.join("\n")))
}

fn urls(config: &Config) -> Vec<String> {
    config.sites.iter().flat_map(|site| &site.upstreams).map(ToString::to_string).collect()
}

#[test]
fn the_container_of_2014() {
    let environment = [("AUTH_BACKEND", "http://auth:8000"), ("BACKEND", "http://registry:5000"), ("KIND", "")];
    let config = run(None, &[], &environment).expect("valid");
    assert_eq!(urls(&config), ["http://registry:5000"]);
    let backend = config.auth.backend.expect("set");
    assert_eq!((backend.origin.to_string().as_str(), backend.path.as_str()), ("http://auth:8000", "/auth"));
    assert_eq!(config.sites[0].kind, Kind::Registry);
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn the_reference_file() {
    let config = ok(r#"
workers = 2
admin = "off"
access_log = "log/access.jsonl"
ktls = "off"
[[listen]]
address = "0.0.0.0:443"
tls = [{ cert = "registry.pem", key = "/keys/registry.key" }]
[[site]]
hosts = ["Registry.example.com"]
upstreams = ["http://127.0.0.1:5000", "http://[::1]:5001/"]
kind = "registry"
challenge = "basic"
public_url = "https://registry.example.com/"
[[site]]
upstreams = ["http://10.0.0.9"]
kind = "http"
[auth]
htpasswd = "users.htpasswd"
backend = "http://127.0.0.1:8000/check"
realm = "Our registry"
[verdicts]
allow_ttl = "0s"
deny_ttl = "500ms"
capacity = 7
stale_if_error = "5m"
[[rule]]
who = ["alice", "@ci", "anonymous"]
repositories = ["team-a/**"]
actions = ["pull", "push"]
[[rule]]
who = ["root"]
actions = ["catalog"]
[groups]
ci = ["builder-1", "builder-2"]
[limits]
head_bytes = "4KiB"
min_rate = 0
[blobs]
pipe_size = "64KiB"
[guard]
pin = "/sys/fs/bpf/gate"
"#);
    assert_eq!((config.workers, config.admin, config.ktls), (2, None, Ktls::Off));
    assert_eq!(config.access_log, AccessLog::File(PathBuf::from("/etc/portcullis/log/access.jsonl")));
    let tls = &config.listeners[0].tls[0];
    assert_eq!(
        (tls.cert.as_path(), tls.key.as_path()),
        (Path::new("/etc/portcullis/registry.pem"), Path::new("/keys/registry.key"),)
    );
    assert_eq!(config.sites[0].hosts, ["registry.example.com"]);
    assert_eq!(config.sites[0].public_url.as_deref(), Some("https://registry.example.com"));
    assert_eq!(urls(&config), ["http://127.0.0.1:5000", "http://[::1]:5001", "http://10.0.0.9"]);
    assert_eq!(config.sites[1].kind, Kind::Http);
    assert_eq!(config.auth.htpasswd.as_deref(), Some(Path::new("/etc/portcullis/users.htpasswd")));
    assert_eq!(config.auth.backend.as_ref().map(|backend| backend.path.as_str()), Some("/check"));
    assert_eq!(config.auth.realm, "Our registry");
    assert_eq!((config.verdicts.allow_ttl, config.verdicts.deny_ttl), (Duration::ZERO, Duration::from_millis(500)));
    assert_eq!(config.verdicts.stale_if_error, Duration::from_secs(300));
    assert_eq!((config.rules.len(), config.groups["ci"].len()), (2, 2));
    let expected = Limits { head_bytes: 4096, target_bytes: 4096, min_rate: 0, ..Limits::default() };
    assert_eq!(config.limits, expected);
    assert_eq!((config.blobs.pipe_size, config.blobs.buffer), (65536, 262_144));
    assert_eq!(config.guard.pin.as_deref(), Some(Path::new("/sys/fs/bpf/gate")));
}

#[test]
fn flag_beats_environment_beats_file() {
    let file = format!("workers = 1\n{ENOUGH}");
    let environment = [("PORTCULLIS_WORKERS", "2"), ("BACKEND", "http://e:1,http://e:2"), ("KIND", "http")];
    let from_file = run(Some(&file), &[], &[]).expect("valid");
    assert_eq!((from_file.workers, urls(&from_file)), (1, vec!["http://127.0.0.1:5000".to_owned()]));
    let from_environment = run(Some(&file), &[], &environment).expect("valid");
    assert_eq!(from_environment.workers, 2);
    assert_eq!(urls(&from_environment), ["http://e:1", "http://e:2"]);
    assert_eq!(from_environment.sites[0].kind, Kind::Http);
    let words = [("--workers", "3"), ("--backend", "http://f"), ("--kind", "registry"), ("--htpasswd", "here")];
    let from_flags = run(Some(&file), &words, &environment).expect("valid");
    assert_eq!((from_flags.workers, urls(&from_flags)), (3, vec!["http://f".to_owned()]));
    assert_eq!(from_flags.sites[0].kind, Kind::Registry);
    assert_eq!(from_flags.auth.htpasswd.as_deref(), Some(Path::new("here")));
}

#[test]
fn listeners_and_certificates() {
    let tls_file = format!(
        "{ENOUGH}[[listen]]\naddress = \"0.0.0.0:443\"\ntls = [{{ cert = \"c\", key = \"k\" }}]\n[[listen]]\naddress = \"127.0.0.1:80\"\n"
    );
    let pair = [("--tls-cert", "a"), ("--tls-key", "b")];
    let two = [("--tls-cert", "a"), ("--tls-cert", "c"), ("--tls-key", "b"), ("--tls-key", "d")];
    let cases: [(&str, Words<'_>, &[&str]); 7] = [
        (ENOUGH, &[], &["127.0.0.1:8080"]),
        (ENOUGH, &pair, &["0.0.0.0:443 a+b"]),
        (ENOUGH, &two, &["0.0.0.0:443 a+b c+d"]),
        (
            ENOUGH,
            &[("--listen", "[::1]:9"), ("--listen", "127.0.0.1:9"), pair[0], pair[1]],
            &["[::1]:9 a+b", "127.0.0.1:9 a+b"],
        ),
        (&tls_file, &[], &["0.0.0.0:443 /etc/portcullis/c+/etc/portcullis/k", "127.0.0.1:80"]),
        (&tls_file, &pair, &["0.0.0.0:443 a+b", "127.0.0.1:80"]),
        (&tls_file, &[("--listen", "0.0.0.0:8443")], &["0.0.0.0:8443 /etc/portcullis/c+/etc/portcullis/k"]),
    ];
    for (file, words, expected) in cases {
        let config = run(Some(file), words, &[]).expect("valid");
        let found: Vec<String> = config
            .listeners
            .iter()
            .map(|listener| {
                let tls = listener.tls.iter().map(|t| format!(" {}+{}", t.cert.display(), t.key.display()));
                format!("{}{}", listener.address, tls.collect::<String>())
            })
            .collect();
        assert_eq!(found, expected, "{words:?}");
    }
}

#[test]
fn a_plain_listener_that_others_reach_is_a_warning() {
    for (words, warnings) in [
        (&[("--listen", "0.0.0.0:80")][..], 1),
        (&[("--listen", "[::]:80")], 1),
        (&[("--listen", "127.0.0.1:80")], 0),
        (&[("--listen", "[::ffff:127.0.0.1]:80")], 0),
        (&[("--listen", "0.0.0.0:80"), ("--allow-plaintext-credentials", "true")], 0),
        (&[("--listen", "0.0.0.0:443"), ("--tls-cert", "a"), ("--tls-key", "b")], 0),
    ] {
        let config = run(Some(ENOUGH), words, &[]).expect("valid");
        assert_eq!(config.warnings.len(), warnings, "{words:?}");
    }
}

#[test]
fn flags_and_variables_are_checked_together() {
    let words = [
        ("--listen", ":8080"),
        ("--tls-cert", "a"),
        ("--kind", "registrry"),
        ("--workers", "many"),
        ("--ktls", "of"),
        ("--admin", "localhost:9180"),
        ("--htpasswd", ""),
    ];
    let errors = run(None, &words, &[("BACKEND", "registry:5000"), ("AUTH_BACKEND", "ftp://a")]).expect_err("wrong");
    let expected = [
        "--admin: \"localhost:9180\" is not an address with a port; write \"127.0.0.1:9180\" for this machine only or \"0.0.0.0:9180\" for all of the network",
        "--htpasswd: the path is empty; name a file",
        "--kind: \"registrry\" is not known here; did you mean \"registry\"?",
        "--ktls: \"of\" is not known here; did you mean \"off\"?",
        "--listen: \":8080\" is not an address with a port; write \"127.0.0.1:8080\" for this machine only or \"0.0.0.0:8080\" for all of the network",
        "--tls-cert: 1 certificates and 0 keys do not pair up; give each certificate its --tls-key, in the same order",
        "--workers: \"many\" is not a number of workers; write a whole number up to 1024, 0 for one for each core",
        "environment AUTH_BACKEND: the scheme \"ftp\" is unknown; use http:// or https://",
        "environment BACKEND: \"registry:5000\" has no scheme; write \"http://registry:5000\"",
    ];
    assert_eq!(errors, expected, "\n{}", errors.join("\n"));
}

#[test]
fn what_is_missing_is_said_unless_another_error_may_be_why() {
    let errors = run(None, &[], &[]).expect_err("empty");
    assert_eq!(errors.len(), 2);
    assert!(errors[0].starts_with("no upstream; name the registry: --backend http://"), "{errors:?}");
    assert!(errors[1].starts_with("nobody could log in; give --htpasswd"), "{errors:?}");

    let errors =
        run(Some("[[site]]\nupstream = [\"http://a\"]\n[auth]\nhtpaswd = \"x\""), &[], &[]).expect_err("typos");
    assert_eq!(
        errors,
        [
            "gate.toml:2:1: site.upstream: unknown key; did you mean \"upstreams\"?",
            "gate.toml:4:1: auth.htpaswd: unknown key; did you mean \"htpasswd\"?",
        ]
    );

    for (file, error) in [
        ("[[site]]\nkind = \"http\"\n[auth]\nhtpasswd = \"x\"", "gate.toml:1:1: site: no upstream; add"),
        ("[[site]]\nupstreams = []\n[auth]\nhtpasswd = \"x\"", "gate.toml:1:1: site: no upstream; add"),
        ("[[site]]\nupstreams = [\"http://a\"]", "nobody could log in; "),
        (
            "[[site]]\nupstreams = [\"http://a\"]\n[[rule]]\nwho = [\"bob\"]\nactions = [\"catalog\"]",
            "nobody could log in; ",
        ),
        (
            "[[listen]]\ntls = []\n[[site]]\nupstreams = [\"http://a\"]\n[auth]\nhtpasswd = \"x\"",
            "gate.toml:1:1: listen: no address; add",
        ),
    ] {
        let errors = run(Some(file), &[], &[]).expect_err(file);
        assert!(errors.len() == 1 && errors[0].starts_with(error), "{file}: {errors:?}");
    }
    ok(
        "[[site]]\nupstreams = [\"http://a\"]\n[[rule]]\nwho = [\"anonymous\"]\nrepositories = [\"**\"]\nactions = [\"pull\"]",
    );
}

#[test]
fn one_wrong_line_one_error() {
    for (line, error) in [
        (
            "listen = [{ address = \"0.0.0.0\" }]",
            "gate.toml:1:23: listen.address: \"0.0.0.0\" is not an address with a port; write IP:PORT",
        ),
        ("listen = [{ address = \"8080\" }]", "write \"127.0.0.1:8080\" for this machine only"),
        (
            "listen = [{ address = \"127.0.0.1:1\", tls = [{ cert = \"a\" }] }]",
            "gate.toml:1:45: listen.tls: a certificate without a key; add key",
        ),
        ("listen = [{ address = \"127.0.0.1:1\", tls = [{ key = \"a\" }] }]", "a key without a certificate; add cert"),
        (
            "listen = [{ address = \"127.0.0.1:1\", client_ca = \"x\" }]",
            "127.0.0.1:1 has client_ca but no TLS; add tls",
        ),
        (
            "listen = [{ address = \"127.0.0.1:1\", proxy_protocol = [\"10.0.0.1/8\"] }]",
            "listen.proxy_protocol: 10.0.0.1 is inside the block: write 10.0.0.0/8",
        ),
        ("listen = [{ address = \"127.0.0.1:1\" }, { address = \"127.0.0.1:1\" }]", "127.0.0.1:1 is listed twice"),
        ("admin = \"[::1]:9\"\nlisten = [{ address = \"[::1]:9\" }]", "share [::1]:9; give --admin another port"),
        (
            "listen = [{ address = \"0.0.0.0:5000\" }]",
            "site.upstreams: http://127.0.0.1:5000 is this gate's own listener",
        ),
        (
            "site = [{ upstreams = [\"a:5000\"] }]",
            "gate.toml:1:24: site.upstreams: \"a:5000\" has no scheme; write \"http://a:5000\"",
        ),
        ("site = [{ upstreams = [\"http://a/v2\"] }]", "has a path (/v2); write \"http://a\""),
        ("site = [{ upstreams = [\"ftp://a\"] }]", "the scheme \"ftp\" is unknown"),
        ("site = [{ upstreams = [\"http://a\", \"http://a:80\"] }]", "http://a is listed twice"),
        (
            "site = [{ upstreams = [\"http://a\"], challenge = \"token\" }]",
            "site.challenge: \"token\" is not built yet in this version; write \"basic\"",
        ),
        (
            "site = [{ upstreams = [\"http://a\"], challenge = \"digest\" }]",
            "\"digest\" is not known here; write one of: basic, token",
        ),
        ("site = [{ upstreams = [\"http://a\"], kind = \"htp\" }]", "did you mean \"http\"?"),
        (
            "site = [{ upstreams = [\"http://a\"], hosts = [\"a:443\"] }]",
            "\"a:443\" is not a host name; write the name alone",
        ),
        ("site = [{ upstreams = [\"http://a\"], hosts = [] }]", "site.hosts: the list is empty"),
        (
            "site = [{ upstreams = [\"http://a\"], public_url = \"registry.example.com\" }]",
            "write \"http://registry.example.com\"",
        ),
        (
            "site = [{ upstreams = [\"http://a\"] }, { upstreams = [\"http://b\"] }]",
            "gate.toml:1:39: site: a second site without hosts; give hosts",
        ),
        (
            "site = [{ upstreams = [\"http://a\"], hosts = [\"a\"] }, { upstreams = [\"http://b\"], hosts = [\"A\"] }]",
            "a belongs to two sites",
        ),
        (
            "auth = { backend = \"127.0.0.1:8000\" }",
            "gate.toml:1:20: auth.backend: \"127.0.0.1:8000\" has no scheme; write \"http://127.0.0.1:8000\"",
        ),
        ("auth = { htpasswd = \"x\", realm = \"a\\\"b\" }", "auth.realm: \"a\\\"b\" cannot stand in a challenge"),
        ("verdicts.stale_if_error = \"25h\"", "25h is out of range; choose from 0s to 24h"),
        ("verdicts.capacity = 0", "verdicts.capacity: 0 is out of range; choose from 1 to"),
        ("verdicts.deny_ttl = \"2h\"", "2h is out of range; choose from 0s to 1h"),
        ("limits.head_bytes = 12", "12 is out of range; choose from 1KiB to 1MiB"),
        ("limits.target_bytes = \"17KiB\"", "17KiB is out of range; choose from 256 to 16KiB"),
        ("limits.idle_timeout = \"0s\"", "0s is out of range; choose from 1ms to 24h"),
        ("limits.manifest_bytes = \"1B\"", "limits.manifest_bytes: "),
        ("guard.mode = \"driver\"", "guard.mode: \"driver\" is not known here; write one of: auto, native, generic"),
        (
            "rule = [{ who = [\"@ci\"], repositories = [\"a\"], actions = [\"pull\"] }]",
            "rule.who: there is no group \"ci\"; add it to [groups]",
        ),
        (
            "rule = [{ who = [\"a\"], repositories = [\"a\"], actions = [\"pul\"] }]",
            "rule.actions: \"pul\" is not known here; did you mean \"pull\"?",
        ),
        (
            "rule = [{ who = [], repositories = [\"a\"], actions = [\"pull\"] }]",
            "gate.toml:1:9: rule: no who; add who = ",
        ),
        ("rule = [{ who = [\"a\"], actions = [\"pull\"] }]", "rule: no repositories; add"),
        ("groups.ci = [\"@all\"]", "groups.ci: \"@all\" is not a user name; groups do not nest"),
        ("workers = 100000", "gate.toml:1:11: workers: \"100000\" is not a number of workers"),
        ("admin = \"9180\"", "gate.toml:1:9: admin: \"9180\" is not an address"),
        ("access_log = \"\"", "access_log: the path is empty"),
        ("ktls = \"requir\"", "ktls: \"requir\" is not known here"),
    ] {
        let mut file = format!("{line}\n");
        if !line.starts_with("site") {
            file.push_str("site = [{ upstreams = [\"http://127.0.0.1:5000\"] }]\n");
        }
        if !line.starts_with("auth") {
            file.push_str("auth = { htpasswd = \"x\" }\n");
        }
        let errors = run(Some(&file), &[], &[]).expect_err(line);
        assert_eq!(errors.len(), 1, "{line}: {errors:#?}");
        assert!(errors[0].contains(error), "{line}: {errors:#?}");
        assert!(errors[0].starts_with("gate.toml:") && errors[0].contains("; "), "{line}: {errors:#?}");
    }
}

#[test]
fn flags_among_several_sites_mean_the_default_one() {
    let named = "[[site]]\nhosts = [\"a\"]\nupstreams = [\"http://a\"]\n[[site]]\nhosts = [\"b\"]\nupstreams = [\"http://b\"]\n[auth]\nhtpasswd = \"x\"";
    let errors = run(Some(named), &[("--backend", "http://c")], &[]).expect_err("ambiguous");
    assert_eq!(
        errors,
        [
            "--backend: the file has 2 sites and none is the default one; set it in the file, or leave hosts out of the site that is meant"
        ]
    );
    let default = named.replace("hosts = [\"b\"]\n", "");
    let config = run(Some(&default), &[("--backend", "http://c")], &[]).expect("valid");
    assert_eq!(urls(&config), ["http://a", "http://c"]);
}

#[test]
fn an_error_stays_on_its_line() {
    let errors = run(None, &[("--backend", "a\n\u{1b}[31mb"), ("--htpasswd", "x")], &[]).expect_err("wrong");
    assert!(errors.iter().all(|error| !error.contains(['\n', '\u{1b}'])), "{errors:?}");
}

#[test]
fn the_summary_names_what_was_resolved() {
    let summary = ok(ENOUGH).summary();
    for part in ["1 listener, 1 site", "listen 127.0.0.1:8080 plain HTTP", "http://127.0.0.1:5000", "htpasswd"] {
        assert!(summary.contains(part), "{summary}");
    }
}
