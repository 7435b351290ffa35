//! The alert rules and the dashboard of the packages ask for nothing that no gate tells, and Prometheus can read them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};

use crate::support::cmd::Cmd;
use crate::support::hello::Stub;
use crate::support::http::get;
use crate::support::packages::{OPENSSL, PROMTOOL};
use crate::support::pki::Authority;
use crate::support::{Serve, free_address, htpasswd, misses, program, root, scratch};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const RULES: &str = "xtask/packaging/monitoring/alerts.yml";
const DASHBOARD: &str = "xtask/packaging/monitoring/dashboard.json";

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join(DASHBOARD)).unwrap()).unwrap()
}

/// Every name of a metric that the rules or the dashboard hold.
pub(crate) fn names() -> BTreeSet<String> {
    let texts = [RULES, DASHBOARD].map(|file| fs::read_to_string(root().join(file)).unwrap());
    let words = texts.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| word.starts_with("portcullis_")).map(str::to_owned).collect()
}

/// The names that a page of metrics has samples or at least a type for.
pub(crate) fn told(metrics: &str) -> BTreeSet<String> {
    let families: BTreeMap<&str, &str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let parts = |(name, kind): (&&str, &&str)| match *kind {
        "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
        _ => vec![(*name).to_owned()],
    };
    families.iter().flat_map(parts).collect()
}

#[test]
fn everything_that_is_asked_for_is_told_by_a_running_gate() {
    if misses(&[OPENSSL]) {
        return;
    }
    let dir = scratch("monitoring").unwrap();
    let (hello, admin) = (Stub::hello().unwrap(), free_address().unwrap());
    let identity = Authority::create(dir.path(), "ca").unwrap().issue("gate", &["localhost"]).unwrap();
    let serve = Serve::new(program()).unwrap().admin(admin).tls(&identity).flag("--backend", hello.url());
    let gate = serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap();
    let told = told(&get(admin, "/metrics", None).unwrap().text());
    drop(gate);
    // A test of the guard asks for those.
    let asked: BTreeSet<String> = names().into_iter().filter(|name| !name.starts_with("portcullis_guard_")).collect();
    assert!(asked.len() > 25, "only {asked:?}");
    let unknown: Vec<_> = asked.difference(&told).collect();
    assert!(unknown.is_empty(), "no gate tells {unknown:?}");
    let unused: Vec<_> = told.iter().filter(|name| !asked.contains(*name) && !name.contains("duration")).collect();
    assert!(unused.is_empty(), "the dashboard leaves out {unused:?}");
}

/// Title and expression of each query.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().clone();
    let of = |panel: Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    };
    panels.into_iter().flat_map(of).collect()
}

#[test]
fn prometheus_reads_the_rules_and_the_queries_of_the_dashboard() {
    if misses(&[PROMTOOL]) {
        return;
    }
    let checked = Cmd::new("promtool").args(["check", "rules"]).arg(root().join(RULES)).run().unwrap();
    assert!(checked.contains("rules found"), "{checked}");
    // As recording rules, which it can check: JSON is YAML as well.
    let record = |(n, (_, query)): (usize, (String, String))| {
        let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*");
        json!({"record": format!("dashboard:{n}"), "expr": query})
    };
    let rules: Vec<Value> = queries().into_iter().enumerate().map(record).collect();
    assert!(rules.len() > 30, "only {} queries", rules.len());
    let dir = scratch("monitoring").unwrap();
    let file = dir.path().join("rules.yml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    Cmd::new("promtool").args(["check", "rules"]).arg(&file).run().unwrap();
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id twice");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for cell in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            assert!(cell.0 < 24 && taken.insert(cell), "{title}: two panels at {cell:?}");
        }
        assert!(panel["type"] == "row" || panel["datasource"]["uid"] == "${datasource}", "{title}");
    }
    assert!(queries().iter().all(|(title, query)| query.contains("$instance") || panic!("{title}: all gates at once")));
}

/// Each alert with what a gate tells that calls for it, one value a minute.
const CALLS: [(&str, &[(&str, &str)]); 17] = [
    ("Down", &[("up{job=\"portcullis\"}", "0x120")]),
    ("NoUpstream", &[("portcullis_upstream_up{site=\"s\",upstream=\"a\"}", "0x120")]),
    (
        "UpstreamOut",
        &[
            ("portcullis_upstream_up{site=\"s\",upstream=\"a\"}", "1x120"),
            ("portcullis_upstream_up{site=\"s\",upstream=\"b\"}", "0x120"),
        ],
    ),
    (
        "Errors",
        &[
            ("portcullis_exchanges_total{status=\"2xx\"}", "0+90x120"),
            ("portcullis_exchanges_total{status=\"5xx\"}", "0+10x120"),
        ],
    ),
    (
        "Slow",
        &[
            ("portcullis_request_duration_seconds_bucket{endpoint=\"manifest\",le=\"1\"}", "0+50x120"),
            ("portcullis_request_duration_seconds_bucket{endpoint=\"manifest\",le=\"5\"}", "0+60x120"),
            ("portcullis_request_duration_seconds_bucket{endpoint=\"manifest\",le=\"+Inf\"}", "0+60x120"),
        ],
    ),
    ("CertificateEnds", &[("portcullis_certificate_expiry_timestamp_seconds{certificate=\"c\"}", "86400x120")]),
    ("CertificateNotTaken", &[("portcullis_certificate_renewals_total{result=\"failed\"}", "0x80 1x40")]),
    ("GuardOff", &[("portcullis_guard_mode{mode=\"enforce\"}", "0x120")]),
    ("GuardUnproven", &[("portcullis_guard_last_verify_success", "0x120")]),
    ("GuardUnproven", &[("portcullis_guard_last_verify_timestamp_seconds", "60x120")]),
    ("Knocks", &[("portcullis_guard_packets_total{verdict=\"refused\"}", "0+1200x120")]),
    ("Guessing", &[("portcullis_verdicts_total{source=\"throttle\"}", "0+120x120")]),
    ("AuthenticatorGone", &[("portcullis_verdicts_total{source=\"stale\"}", "0+1x120")]),
    ("ConnectionsRefused", &[("portcullis_connections_refused_total{limit=\"connections\"}", "0+1x120")]),
    ("LogLost", &[("portcullis_log_dropped_total", "0+1x120")]),
    ("ReloadRefused", &[("portcullis_last_reload_success", "0x120")]),
    ("DrainsLong", &[("portcullis_draining", "1x120")]),
];

/// What a gate tells to whom nothing happens.
const CALM: [(&str, &str); 16] = [
    ("up{job=\"portcullis\"}", "1x120"),
    ("portcullis_upstream_up{site=\"s\",upstream=\"a\"}", "1x120"),
    ("portcullis_exchanges_total{status=\"2xx\"}", "0+90x120"),
    ("portcullis_exchanges_total{status=\"5xx\"}", "3x120"),
    ("portcullis_request_duration_seconds_bucket{endpoint=\"manifest\",le=\"1\"}", "0+60x120"),
    ("portcullis_request_duration_seconds_bucket{endpoint=\"manifest\",le=\"+Inf\"}", "0+60x120"),
    ("portcullis_certificate_expiry_timestamp_seconds{certificate=\"c\"}", "9000000x120"),
    ("portcullis_certificate_renewals_total{result=\"failed\"}", "1x120"),
    ("portcullis_guard_mode{mode=\"enforce\"}", "1x120"),
    ("portcullis_guard_last_verify_timestamp_seconds", "0+60x120"),
    ("portcullis_guard_packets_total{verdict=\"refused\"}", "0+5x120"),
    ("portcullis_verdicts_total{source=\"stale\"}", "7x120"),
    ("portcullis_connections_refused_total{limit=\"connections\"}", "2x120"),
    ("portcullis_log_dropped_total", "1x120"),
    ("portcullis_last_reload_success", "1x120"),
    ("portcullis_draining", "0x120"),
];

#[test]
fn every_alert_wakes_somebody_when_it_should_and_nobody_else() {
    if misses(&[PROMTOOL]) {
        return;
    }
    let series = |all: &[(&str, &str)]| -> Value {
        all.iter().map(|(series, values)| json!({"series": series, "values": values})).collect()
    };
    let calls = CALLS.iter().map(|(alert, told)| {
        let firing = format!("count(ALERTS{{alertname=\"Portcullis{alert}\",alertstate=\"firing\"}})");
        let expected = json!([{"labels": "{}", "value": 1}]);
        json!({"name": alert, "interval": "1m", "input_series": series(told), "promql_expr_test": [
            {"expr": firing, "eval_time": "100m", "exp_samples": expected},
        ]})
    });
    let calm = json!({"interval": "1m", "input_series": series(&CALM), "promql_expr_test": [
        {"expr": "ALERTS", "eval_time": "100m", "exp_samples": []},
    ]});
    let tests: Vec<Value> = calls.chain([calm]).collect();
    let dir = scratch("monitoring").unwrap();
    let file = dir.path().join("tests.yml");
    let text = json!({"rule_files": [root().join(RULES)], "evaluation_interval": "1m", "tests": tests}).to_string();
    fs::write(&file, text).unwrap();
    Cmd::new("promtool").args(["test", "rules"]).arg(&file).run().unwrap();
    let rules = fs::read_to_string(root().join(RULES)).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: Portcullis")) {
        assert!(CALLS.iter().any(|(known, _)| *known == alert), "nothing calls for {alert}");
    }
}
