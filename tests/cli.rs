//! The command line and the configuration, through the real binary: what is said, on which stream, with which code.
#![allow(clippy::expect_used, reason = "a test that cannot set up its room should stop")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run left behind.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Every error is one line with the program's name; no run may panic.
    #[track_caller]
    fn fails_with(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        let found: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(found.len(), lines.len(), "{}", self.stderr);
        for (found, expected) in found.iter().zip(lines) {
            let rest = found.strip_prefix("portcullis: error: ");
            assert!(rest.is_some_and(|rest| rest.contains(expected)), "expected {expected:?} in\n{}", self.stderr);
        }
    }

    #[track_caller]
    fn succeeds_with(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        assert!(self.stdout.starts_with("configuration is valid: "), "{}", self.stdout);
        for part in parts {
            assert!(self.stdout.contains(part), "expected {part:?} in\n{}", self.stdout);
        }
    }
}

/// A directory with a configuration; commands run in it, with no environment but what they are given.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), text).expect("a file");
        self
    }

    fn run(&self, words: &str, environment: &[(&str, &str)]) -> Outcome {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(words.split_whitespace())
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let outcome = Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        outcome
    }

    fn openssl(&self, words: &str) {
        let output = Command::new("openssl")
            .args(words.split_whitespace())
            .current_dir(self.directory.path())
            .output()
            .expect("openssl is installed");
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -addext subjectAltName=DNS:{name} -keyout {name}.key -out {name}.pem"
        ));
    }
}

const VALID: &str = "\
workers = 1
[[site]]
upstreams = [\"http://127.0.0.1:5000\"]
[auth]
htpasswd = \"users\"
";

const USERS: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\n";

#[test]
fn a_wrong_command_line_is_one_line_and_code_2() {
    let room = Room::new();
    for (words, line) in [
        (
            "serve --lisen 127.0.0.1:1",
            "unexpected argument '--lisen' found; a similar argument exists: '--listen'; try --help",
        ),
        ("check --backend", "a value is required for '--backend <URL>' but none was supplied; try --help"),
        ("srve", "unrecognized subcommand 'srve'; a similar subcommand exists: 'serve'; try --help"),
        ("auth-service", "the following required arguments were not provided: --htpasswd <FILE>; try --help"),
        ("auth-service --htpasswd x --listen 8000", "invalid value '8000' for '--listen <ADDR>'"),
        ("auth-service --htpasswd x --realm a\"b", "use plain ASCII"),
    ] {
        room.run(words, &[]).fails_with(2, &[line]);
    }
}

#[test]
fn help_goes_to_standard_output() {
    let room = Room::new();
    for (words, part) in [
        ("--help", "portcullis guard enforce"),
        ("serve --help", "[variable: AUTH_BACKEND]"),
        ("check --help", "without opening a socket"),
        ("auth-service --help", "127.0.0.1:8000"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let outcome = room.run(words, &[]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{words}");
        assert!(outcome.stdout.contains(part), "{words}: {}", outcome.stdout);
    }
    let outcome = room.run("", &[]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("Usage:"), "{}", outcome.stderr);
}

#[test]
fn a_valid_configuration_is_summed_up() {
    let room = Room::new();
    room.write("gate.toml", VALID).write("users", USERS);
    room.run("check --config gate.toml", &[]).succeeds_with(&[
        "1 listener, 1 site",
        "listen 127.0.0.1:8080 plain HTTP",
        "registry http://127.0.0.1:5000",
        "auth htpasswd users",
        "1 worker",
    ]);
    let recipe = [("BACKEND", "http://registry:5000"), ("AUTH_BACKEND", "http://auth:8000"), ("KIND", "http")];
    room.run("check", &recipe).succeeds_with(&["http http://registry:5000", "auth backend http://auth:8000/auth"]);
}

#[test]
fn flag_beats_environment_beats_file() {
    let room = Room::new();
    room.write("gate.toml", VALID).write("users", USERS);
    let environment = [("BACKEND", "http://env:5000"), ("PORTCULLIS_LISTEN", "127.0.0.1:7000"), ("KIND", "")];
    let by_file = room.run("check --config gate.toml", &[]);
    by_file.succeeds_with(&["listen 127.0.0.1:8080", "http://127.0.0.1:5000"]);
    let by_environment = room.run("check --config gate.toml", &environment);
    by_environment.succeeds_with(&["listen 127.0.0.1:7000", "http://env:5000"]);
    let by_flag = room.run("check --config gate.toml --listen [::1]:6000 --backend http://flag", &environment);
    by_flag.succeeds_with(&["listen [::1]:6000", "http://flag\n"]);
    let by_variable = room.run("check", &[("PORTCULLIS_CONFIG", "gate.toml")]);
    by_variable.succeeds_with(&["http://127.0.0.1:5000"]);
}

#[test]
fn every_error_of_a_file_with_its_place() {
    let room = Room::new();
    let text = "\
worker = 1
admin = \"localhost\"
[[site]]
hosts = [\"https://a\"]
upstreams = [\"127.0.0.1:5000\", 7]
kind = \"registri\"
[auth]
htpaswd = \"users\"
[limits]
idle_timeout = 60
";
    room.write("gate.toml", text);
    for command in ["check", "serve"] {
        room.run(&format!("{command} --config gate.toml --workers many"), &[("AUTH_BACKEND", "auth:8000")]).fails_with(
            1,
            &[
                "gate.toml:1:1: worker: unknown key; did you mean \"workers\"?",
                "gate.toml:2:9: admin: \"localhost\" is not an address with a port; write IP:PORT",
                "gate.toml:4:10: site.hosts: \"https://a\" is not a host name; write the name alone",
                "gate.toml:5:32: site.upstreams: integer 7 does not fit here; write a string in quotes",
                "gate.toml:6:8: site.kind: \"registri\" is not known here; did you mean \"registry\"?",
                "gate.toml:8:1: auth.htpaswd: unknown key; did you mean \"htpasswd\"?",
                "gate.toml:10:16: limits.idle_timeout: integer 60 does not fit here; write a duration such as",
                "--workers: \"many\" is not a number of workers; write",
                "environment AUTH_BACKEND: \"auth:8000\" has no scheme; write \"http://auth:8000\"",
            ],
        );
    }
}

#[test]
fn the_reference_is_a_file_that_says_nothing() {
    let room = Room::new();
    let reference = room.run("check --reference", &[]);
    assert_eq!((reference.code, reference.stderr.as_str()), (Some(0), ""));
    for part in ["# [[listen]]\n", "# allow_ttl = \"1m\" ", "# [groups]\n"] {
        assert!(reference.stdout.contains(part), "expected {part:?} in\n{}", reference.stdout);
    }
    room.write("gate.toml", &reference.stdout).write("users", USERS);
    let words = "check --config gate.toml --htpasswd users --backend http://127.0.0.1:5000";
    room.run(words, &[]).succeeds_with(&["configuration is valid"]);
    room.run("check --reference --config gate.toml", &[])
        .fails_with(2, &["the argument '--reference' cannot be used with"]);
}

#[test]
fn a_backend_without_a_scheme_shows_the_right_form() {
    let room = Room::new();
    room.write("users", USERS);
    let words = "check --htpasswd users --backend 127.0.0.1:5000";
    let line = "--backend: \"127.0.0.1:5000\" has no scheme; write \"http://127.0.0.1:5000\"";
    room.run(words, &[]).fails_with(1, &[line]);
    let line = "environment BACKEND: \"registry:5000\" has no scheme; write \"http://registry:5000\"";
    room.run("check --htpasswd users", &[("BACKEND", "registry:5000")]).fails_with(1, &[line]);
}

#[test]
fn a_configuration_that_cannot_be_read() {
    let room = Room::new();
    room.write("latin1.toml", b"a = 1\nb = \"\xe9\"\n").write("broken.toml", "workers = 1\n[site\n");
    for (name, line) in [
        ("absent.toml", "absent.toml: No such file or directory; check the path"),
        (".", ".: Is a directory; name a file in it"),
        ("latin1.toml", "latin1.toml:2: not UTF-8 text; save the file as UTF-8"),
        ("/dev/zero", "/dev/zero: larger than 64 MiB; name another file"),
        ("broken.toml", "broken.toml:2:"),
    ] {
        room.run(&format!("check --config {name}"), &[]).fails_with(1, &[line]);
    }
}

#[test]
fn nothing_configured_says_what_to_give() {
    Room::new()
        .run("serve", &[])
        .fails_with(1, &["no upstream; name the registry: --backend", "nobody could log in; give --htpasswd"]);
}

#[test]
fn certificates_and_keys() {
    let room = Room::new();
    room.certificate("a");
    room.certificate("b");
    room.openssl("ec -in a.key -aes128 -passout pass:secret -out old.key");
    room.openssl("pkcs8 -topk8 -in a.key -passout pass:secret -out locked.key");
    let pem = std::fs::read_to_string(room.path("a.pem")).expect("made above");
    room.write("empty.pem", "").write("cut.pem", &pem[..pem.len() / 2]).write("users", USERS);
    room.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let common = "check --htpasswd users --backend http://127.0.0.1:5000";
    let pair = |cert: &str, key: &str| room.run(&format!("{common} --tls-cert {cert} --tls-key {key}"), &[]);

    pair("a.pem", "a.key").succeeds_with(&["listen 0.0.0.0:443 TLS a.pem"]);
    for (cert, key, line) in [
        ("absent.pem", "a.key", "absent.pem: No such file or directory; check the path"),
        ("a.pem", "absent.key", "absent.key: No such file or directory; check the path"),
        ("a.pem", "b.key", "b.key: does not match the certificate a.pem; name the key"),
        ("a.key", "a.key", "a.key: no certificate in it; name a PEM file"),
        ("a.pem", "a.pem", "a.pem: no private key in it; name a PEM file"),
        ("empty.pem", "a.key", "empty.pem: no certificate in it; name a PEM file"),
        ("cut.pem", "a.key", "cut.pem: cut off: the -----END line is missing; write the certificates"),
        ("garbage.pem", "a.key", "garbage.pem: the first certificate cannot be read"),
        ("a.pem", "locked.key", "locked.key: the key is encrypted; decrypt it with: openssl pkey -in locked.key"),
        ("a.pem", "old.key", "old.key: the key is encrypted; decrypt it with: openssl pkey -in old.key"),
        (".", "a.key", ".: Is a directory; name a file in it"),
    ] {
        pair(cert, key).fails_with(1, &[line]);
    }
    room.run(&format!("{common} --tls-cert a.pem"), &[]).fails_with(1, &["--tls-cert: 1 certificates and 0 keys"]);
}

#[test]
fn several_files_at_once() {
    let room = Room::new();
    let text = format!(
        "{VALID}[[listen]]\naddress = \"127.0.0.1:443\"\ntls = [{{ cert = \"c\", key = \"k\" }}, {{ cert = \"d\", key = \"k\" }}]\n"
    );
    room.write("gate.toml", text);
    let directory: &Path = room.directory.path();
    let config = format!("check --config {}", directory.join("gate.toml").display());
    // Relative paths start at the file, wherever the command runs.
    let lines = ["c", "d", "users"].map(|name| format!("{}: No such file", directory.join(name).display()));
    room.run(&config, &[]).fails_with(1, &lines.each_ref().map(String::as_str));
}

#[test]
fn a_plain_listener_that_others_reach_is_a_warning() {
    let room = Room::new();
    room.write("users", USERS);
    let outcome = room.run("check --htpasswd users --backend http://127.0.0.1:5000 --listen 0.0.0.0:8080", &[]);
    outcome.succeeds_with(&["listen 0.0.0.0:8080 plain HTTP"]);
    let warning = "portcullis: warning: --listen: the listener 0.0.0.0:8080 is plain HTTP";
    assert!(outcome.stderr.starts_with(warning) && outcome.stderr.lines().count() == 1, "{}", outcome.stderr);
}
