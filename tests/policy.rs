//! Rules at the real gate: who may do what, what a denial says, and that a mount is no way into a closed repository.

use std::fs;

use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, basic, get};
use crate::support::{Gate, Serve, htpasswd, program, scratch};

/// alice and bob, both with the password of the 2014 walkthrough.
const USERS: &str = "alice:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\nbob:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const RULES: &str = r#"
[[rule]]
who = ["@writers"]
repositories = ["team-a/**"]
actions = ["pull", "push"]

[[rule]]
who = ["anonymous"]
repositories = ["public/*"]
actions = ["pull"]

[[rule]]
who = ["bob"]
actions = ["catalog"]

[groups]
writers = ["alice"]
"#;

const ALICE: Option<&str> = Some("alice:testpassword");
const BOB: Option<&str> = Some("bob:testpassword");

fn gate(registry: &Stub) -> Gate {
    let dir = scratch("policy").unwrap();
    let config = dir.path().join("gate.toml");
    fs::write(&config, RULES).unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--backend", registry.url());
    serve.flag("--htpasswd", htpasswd(dir.path(), USERS)).start().unwrap()
}

#[test]
fn rules_decide_by_user_repository_and_action() {
    let registry = Stub::start(|_| Reply::text(200, "ok")).unwrap();
    let gate = gate(&registry);
    for (who, target, status) in [
        (ALICE, "/v2/team-a/app/tags/list", 200),
        (ALICE, "/v2/team-a/x/y/tags/list", 200),
        (ALICE, "/v2/team-ab/app/tags/list", 403),
        (ALICE, "/v2/team-b/app/tags/list", 403),
        (ALICE, "/v2/_catalog", 403),
        (ALICE, "/v2/public/app/tags/list", 200),
        (BOB, "/v2/team-a/app/tags/list", 403),
        (BOB, "/v2/_catalog", 200),
        (None, "/v2/public/app/tags/list", 200),
        (None, "/v2/public/x/y/tags/list", 401),
        (None, "/v2/team-a/app/tags/list", 401),
        (None, "/v2/_catalog", 401),
        (None, "/v2/", 401),
        (Some("alice:wrong"), "/v2/public/app/tags/list", 401),
    ] {
        let before = registry.seen().len();
        let got = get(gate.addr(), target, who).unwrap();
        assert_eq!(got.status, status, "{who:?} {target}: {}", got.text());
        assert_eq!(registry.seen().len() - before, usize::from(status == 200), "{who:?} {target}");
        if status == 403 {
            assert!(got.text().contains("\"DENIED\"") && got.text().contains("administrator"), "{}", got.text());
        }
    }
    assert!(gate.says("\"rule\":1,") && gate.says("\"rule\":2,") && gate.says("\"rule\":3,"), "{}", gate.log());
}

#[test]
fn a_mount_needs_a_pull_on_the_other_repository() {
    let registry = Stub::start(|_| Reply::text(202, "")).unwrap();
    let gate = gate(&registry);
    let digest = format!("sha256:{}", "a".repeat(64));
    let encoded = digest.replace(':', "%3A");
    let start = |query: &str| {
        let request = format!(
            "POST /v2/team-a/app/blobs/uploads/{query} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\
             Content-Length: 0\r\n\r\n",
            basic("alice:testpassword")
        );
        let status = Connection::open(gate.addr()).unwrap().exchange(request).unwrap().status;
        (status, registry.seen().pop().map(|seen| seen.target))
    };
    let plain = Some("/v2/team-a/app/blobs/uploads/".to_owned());
    // From a repository that she may pull, in both forms that clients write.
    for query in [format!("?mount={digest}&from=team-a/lib"), format!("?from=team-a%2Flib&mount={encoded}")] {
        assert_eq!(start(&query), (202, Some(format!("/v2/team-a/app/blobs/uploads/{query}"))));
    }
    // From one that she may not, the registry is not told of it, and the client simply uploads.
    for query in [
        format!("?mount={digest}&from=secret/app"),
        format!("?from=secret%2Fapp&mount={encoded}"),
        format!("?mount={digest}"),
        "?from=secret/app".to_owned(),
    ] {
        assert_eq!(start(&query), (202, plain.clone()), "{query}");
    }
    // What could be read in two ways is refused.
    let before = registry.seen().len();
    for query in [
        format!("?mount={digest}&from=team-a/lib&from=secret/app"),
        format!("?mount={digest}&%66rom=secret/app"),
        format!("?mount={digest};from=secret/app"),
    ] {
        assert_eq!(start(&query).0, 400, "{query}");
    }
    assert_eq!(registry.seen().len(), before);
}
