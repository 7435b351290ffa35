//! testssl.sh, which looks at a server as those do who judge it from outside.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::World;
use crate::support::cmd::Cmd;
use crate::support::misses;
use crate::support::packages::TESTSSL;
use crate::support::pki::Key;

/// What it has to remark and is meant to be so.
const REMARKS: [(&str, &str); 6] = [
    ("engine_problem", "of the machine that it runs on"),
    ("cipher_order", "each of the nine suites is good, and the client knows which its processor is fast at"),
    ("cert_revocation", "of the test's own authority"),
    ("DNS_CAArecord", "of the test's own domain"),
    ("sessionresumption_ticket", "it hangs up before a ticket of TLS 1.3 is sure to have come; `tls.rs` tries them"),
    ("HSTS", "for browsers, which a registry does not serve"),
];

/// What must have been tried, so that nothing found means something.
const TRIED: [&str; 22] = [
    "SSLv2",
    "SSLv3",
    "TLS1_2",
    "TLS1_3",
    "cipherlist_NULL",
    "cipherlist_aNULL",
    "cipherlist_EXPORT",
    "cipherlist_LOW",
    "PFS",
    "heartbleed",
    "CCS",
    "ticketbleed",
    "ROBOT",
    "secure_renego",
    "secure_client_renego",
    "CRIME_TLS",
    "POODLE_SSL",
    "fallback_SCSV",
    "SWEET32",
    "FREAK",
    "LOGJAM",
    "LUCKY13",
];

#[test]
fn testssl_has_nothing_to_say() {
    if misses(&[TESTSSL]) {
        return;
    }
    let mut world = World::new("tls-testssl");
    world.identity = world.ca.issue_as("gate", &["localhost", "127.0.0.1"], Key::P256, 90).unwrap();
    let mut gate = world.gate("", "");
    let report = world.dir.path().join("report.json");
    let cmd = Cmd::new("testssl").args(["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none"]);
    let cmd = cmd.arg("--add-ca").arg(&world.ca.cert).arg("--jsonfile").arg(&report).arg(gate.addr().to_string());
    // Its exit code counts its findings.
    let said = cmd.limit(Duration::from_secs(600)).output().unwrap().everything();
    let findings: Vec<Value> = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    let of = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let bad: Vec<String> = findings
        .iter()
        .filter(|finding| !["OK", "INFO"].contains(&of(finding, "severity").as_str()))
        .filter(|finding| !REMARKS.iter().any(|(id, _)| of(finding, "id").starts_with(id)))
        .map(|finding| format!("{}: {}", of(finding, "id"), of(finding, "finding")))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}\n{said}");
    for id in TRIED {
        let fine = findings.iter().any(|finding| of(finding, "id") == id && of(finding, "severity") == "OK");
        assert!(fine, "{id} was not tried, or is not fine:\n{said}");
    }
    assert!(gate.is_running() && !gate.log().contains("panicked"), "{}", gate.log());
}
