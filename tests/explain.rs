//! `portcullis explain` through the real binary: the rule, the verdict, the exit code.

use std::path::Path;
use std::process::Command;

use crate::support::{program, scratch};

const CONFIG: &str = r#"
[[site]]
hosts = ["registry.example.com"]
upstreams = ["http://127.0.0.1:5000"]

[[site]]
hosts = ["web.example.com"]
upstreams = ["http://127.0.0.1:8000"]
kind = "http"

[auth]
htpasswd = "users"

[[rule]]
who = ["anonymous"]
repositories = ["public/*"]
actions = ["pull"]

[[rule]]
who = ["@ci"]
repositories = ["team-a/**"]
actions = ["pull", "push"]

[groups]
ci = ["builder-1"]
"#;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Exit code, standard output and standard error.
fn explain(dir: &Path, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(program()).arg("explain").args(words).env_clear().current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The lines as (word, text).
fn lines(page: &str) -> Vec<(&str, &str)> {
    page.lines().map(|line| line.split_at(10)).map(|(word, text)| (word.trim(), text)).collect()
}

#[test]
fn the_rule_that_grants_and_the_verdict() {
    let dir = scratch("explain").unwrap();
    std::fs::write(dir.path().join("gate.toml"), CONFIG).unwrap();
    let ask = |user: &str, rest: &[&str]| {
        let words = [&["--config", "gate.toml", "--user", user], rest].concat();
        let (code, page, errors) = explain(dir.path(), &words);
        assert_eq!(errors, "", "{words:?}");
        (code, page)
    };
    let (code, page) = ask("builder-1", &["GET", "/v2/team-a/app/manifests/1"]);
    assert_eq!(code, 0);
    assert_eq!(
        lines(&page),
        [
            ("request", "GET /v2/team-a/app/manifests/1"),
            ("user", "builder-1"),
            ("site", "registry.example.com, registry, http://127.0.0.1:5000"),
            ("endpoint", "manifest"),
            ("access", "repository:team-a/app:pull"),
            ("rule", "2: who = [\"@ci\"], repositories = [\"team-a/**\"], actions = [\"pull\", \"push\"]"),
            ("verdict", "allowed"),
            ("why", "rule 2 grants it"),
        ]
    );

    let manifest = "/v2/public/x/manifests/1";
    for (user, request, code, parts) in [
        ("anonymous", ["GET", manifest], 0, &["rule 1 grants it"][..]),
        ("anonymous", ["PUT", manifest], 3, &["none of 2 grants it", "refused with 401"]),
        ("anonymous", ["GET", "/v2/"], 3, &["access    a login", "refused with 401"]),
        ("zoe", ["GET", "/v2/"], 0, &["access    a login", "a login is enough"]),
        ("zoe", ["GET", manifest], 0, &["rule 1 grants it"]),
        ("zoe", ["DELETE", manifest], 3, &["none of 2 grants it", "refused with 403", "zoe"]),
        ("zoe", ["GET", "/v2/_catalog"], 3, &["endpoint  catalog", "registry:catalog:*", "refused with 403"]),
        ("zoe", ["GET", "/_ping"], 0, &["open to everybody"]),
        ("zoe", ["GET", "/v2/../x"], 3, &["refused with 404"]),
        ("zoe", ["POST", manifest], 3, &["refused with 405"]),
        ("zoe", ["GET", "/a#b"], 3, &["refused with 400"]),
    ] {
        let (got, page) = ask(user, &request);
        assert_eq!(got, code, "{user} {request:?}\n{page}");
        assert!(parts.iter().all(|part| page.contains(part)), "{user} {request:?}: {parts:?}\n{page}");
    }
    let (code, page) = ask("zoe", &["--host", "web.example.com:443", "GET", "/any?thing=1"]);
    assert_eq!((code, page.contains("web.example.com, http,")), (0, true), "{page}");
    let (code, page) = ask("zoe", &["--host", "elsewhere", "GET", "/v2/"]);
    assert_eq!((code, page.contains("refused with 421")), (3, true), "{page}");
}

#[test]
fn a_mount_without_the_right_to_it_is_left_out() {
    let dir = scratch("explain-mount").unwrap();
    std::fs::write(dir.path().join("gate.toml"), CONFIG).unwrap();
    let target = |from: &str| format!("/v2/team-a/app/blobs/uploads/?mount={DIGEST}&from={from}");
    let ask = |from: &str| {
        let words = ["--config", "gate.toml", "--user", "builder-1", "POST", &target(from)];
        let (code, page, _) = explain(dir.path(), &words);
        (code, page)
    };
    let (code, page) = ask("public/x");
    assert_eq!((code, page.contains("mount")), (0, true), "{page}");
    assert!(!page.contains("left out"), "{page}");
    let (code, page) = ask("team-b/app");
    assert_eq!(code, 0, "{page}");
    let lines = lines(&page);
    assert!(lines.iter().any(|(word, text)| *word == "mount" && text.starts_with("left out")), "{page}");
    assert!(lines.contains(&("target", "/v2/team-a/app/blobs/uploads/")), "{page}");
    assert!(lines.contains(&("access", "repository:team-b/app:pull")), "{page}");
    assert!(lines.contains(&("rule", "none of 2 grants it")) && lines.contains(&("why", "rule 2 grants it")), "{page}");
}

#[test]
fn errors_are_one_line() {
    let dir = scratch("explain-errors").unwrap();
    std::fs::write(dir.path().join("gate.toml"), CONFIG).unwrap();
    std::fs::write(dir.path().join("bad.toml"), CONFIG.replace("@ci", "@cd")).unwrap();
    for (words, code, part) in [
        (&["--user", "a", "GET", "/", "--config", "none.toml"][..], 1, "none.toml"),
        (&["--user", "a", "GET", "/", "--config", "bad.toml"], 1, "there is no group \"cd\""),
        (&["--user", "a:b", "GET", "/", "--config", "gate.toml"], 1, "the user name contains a colon"),
        (&["--user", "a", "GET", "/\nX: y", "--config", "gate.toml"], 1, "control characters"),
        (&["--user", "a", "GET", "--config", "gate.toml"], 2, "<TARGET>"),
    ] {
        let (got, page, errors) = explain(dir.path(), words);
        assert_eq!((got, page.as_str()), (code, ""), "{words:?}: {errors}");
        assert!(errors.starts_with("portcullis: error: ") && errors.contains(part), "{words:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    let (code, help, _) = explain(dir.path(), &["--help"]);
    assert_eq!(code, 0);
    assert!(help.contains("Exit code 0: allowed; 3: refused"), "{help}");
}
