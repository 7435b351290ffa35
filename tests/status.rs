//! The admin listener: readiness, metrics as a strict reader takes them, and the status page in a real browser.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::cmd::{Cmd, which};
use crate::support::hello::{Reply, Stub};
use crate::support::http::{Connection, Response, get};
use crate::support::packages::PYTHON;
use crate::support::{Gate, Serve, free_address, misses, program, root, scratch, skips};
use crate::upstreams::until;

struct World {
    hello: Stub,
    auth_says: Arc<AtomicU16>,
    _auth: Stub,
    admin: SocketAddr,
    gate: Gate,
}

fn world() -> World {
    let auth_says = Arc::new(AtomicU16::new(200));
    let now = Arc::clone(&auth_says);
    let auth = Stub::start(move |_| Reply::text(now.load(Ordering::SeqCst), "")).unwrap();
    let hello = Stub::hello().unwrap();
    let admin = free_address().unwrap();
    let serve = Serve::new(program()).unwrap().admin(admin).flag("--workers", "2");
    let gate = serve.flag("--backend", hello.url()).flag("--auth-backend", auth.url()).start().unwrap();
    World { hello, auth_says, _auth: auth, admin, gate }
}

impl World {
    fn admin(&self, target: &str) -> Response {
        get(self.admin, target, None).unwrap()
    }

    fn traffic(&self, requests: usize) {
        for _ in 0..requests {
            assert_eq!(get(self.gate.addr(), "/v2/a/tags/list", Some("alice:secret")).unwrap().status, 200);
        }
    }
}

#[test]
fn readiness_asks_the_peers_and_names_those_that_fail() {
    let world = world();
    let ready = world.admin("/readyz");
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    world.auth_says.store(500, Ordering::SeqCst);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let unready = loop {
        let answer = world.admin("/readyz");
        if answer.status == 503 || std::time::Instant::now() > deadline {
            break answer;
        }
    };
    assert_eq!(unready.status, 503);
    assert!(unready.text().starts_with("auth backend: ") && unready.text().contains("500"), "{}", unready.text());
    assert_eq!(world.admin("/healthz").status, 200, "it is alive all the same");
    drop(world.hello);
}

#[test]
fn a_page_that_has_rebound_its_name_reads_nothing() {
    let world = world();
    for target in ["/", "/status.json", "/metrics", "/readyz"] {
        let asked_as = |host: &str| {
            let request = format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
            Connection::open(world.admin).unwrap().exchange(request).unwrap().status
        };
        assert_eq!(asked_as("Host: evil.example:9180\r\n"), 403, "{target}");
        assert_eq!(asked_as(""), 403, "{target}");
        assert_eq!(asked_as(&format!("Host: localhost:{}\r\n", world.admin.port())), 200, "{target}");
    }
    let page = world.admin("/");
    let policy = page.field("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
}

/// Families by name with their type; every line has to be one of the format's, every sample of a family that was announced.
fn families(text: &str) -> BTreeMap<String, String> {
    assert!(text.ends_with('\n'));
    let (mut types, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !types.contains_key(name), "{line}");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "HELP comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert!(seen.insert(series.to_owned()), "twice: {line}");
            let name = series.split('{').next().unwrap();
            let suffixes = ["_bucket", "_sum", "_count"].into_iter();
            let family = match types.get(&current).map(String::as_str) {
                Some("histogram") => suffixes.filter_map(|end| name.strip_suffix(end)).next().unwrap_or(name),
                _ => name,
            };
            assert_eq!(family, current, "{line}");
            if let Some(labels) = series.strip_prefix(name).unwrap().strip_prefix('{') {
                let labels = labels.strip_suffix("\"}").unwrap_or_else(|| panic!("{line}"));
                for label in labels.split("\",") {
                    let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                    assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
                    assert!(!value.contains('"'), "{line}");
                }
            }
        }
    }
    types
}

#[test]
fn metrics_are_read_by_a_strict_reader_and_count_requests() {
    let world = world();
    world.traffic(5);
    // A request is counted when its answer is out, which may be after the client has it.
    let mut text = String::new();
    until("the requests are counted", || {
        text = world.admin("/metrics").text();
        text.contains("portcullis_request_duration_seconds_count{endpoint=\"tags\"} 5\n")
    });
    let families = families(&text);
    assert_eq!(families["portcullis_request_duration_seconds"], "histogram");
    let counted = |verdict: &str| {
        let series = format!("portcullis_requests_total{{endpoint=\"tags\",status=\"2xx\",verdict=\"{verdict}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!((counted("asked"), counted("cache")), (1, 4), "{text}");
    assert!(text.contains("portcullis_request_duration_seconds_bucket{endpoint=\"tags\",le=\"+Inf\"} 5\n"), "{text}");
    if which("promtool").is_some() {
        let checked = Cmd::new("promtool").args(["check", "metrics"]).input(text).output().unwrap();
        assert!(checked.status.success(), "{}", checked.everything());
    }
}

#[test]
fn a_browser_shows_live_numbers() {
    if which("chromium").is_none() {
        return skips::skip("chromium is not installed");
    }
    let world = world();
    world.traffic(7);
    let dir = scratch("chromium").unwrap();
    let shown = chromium(dir.path()).arg("--dump-dom").arg(format!("http://{}/", world.admin)).output().unwrap();
    let page = shown.everything();
    for part in
        ["id=\"requests\">7<", "</span>running</span>", "class=\"curve\"", "<span>cache</span>", ">1 remembered<"]
    {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(page.contains(world.hello.url().trim_end_matches('/')), "{page}");
}

fn chromium(dir: &Path) -> Cmd {
    Cmd::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", dir.display()))
        .arg("--virtual-time-budget=4000")
}

/// The colour of a picture's first pixel.
const FIRST_PIXEL: &str = "import struct, sys, zlib
data, at, parts = open(sys.argv[1], 'rb').read(), 8, b''
while at < len(data):
    size, kind = struct.unpack('>I4s', data[at:at + 8])
    parts += data[at + 8:at + 8 + size] if kind == b'IDAT' else b''
    at += 12 + size
print('#' + zlib.decompress(parts)[1:4].hex())";

#[test]
fn a_browser_shows_it_in_light_and_in_dark() {
    if which("chromium").is_none() {
        return skips::skip("chromium is not installed");
    }
    if misses(&[PYTHON]) {
        return;
    }
    let world = world();
    let dir = scratch("chromium").unwrap();
    for (wanted, flags) in
        [("light", &[][..]), ("dark", &["--force-dark-mode", "--blink-settings=preferredColorScheme=0"])]
    {
        let picture = dir.path().join(format!("{wanted}.png"));
        let shot = chromium(&dir.path().join(wanted)).args(flags).arg(format!("--screenshot={}", picture.display()));
        shot.arg(format!("http://{}/", world.admin)).output().unwrap();
        let first = Cmd::new("python3").args(["-c", FIRST_PIXEL]).arg(&picture).run().unwrap();
        assert_eq!(first.trim(), palette(wanted)["paper"], "{wanted}");
    }
}

/// The page's colours by name.
fn palette(wanted: &str) -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("proxy/src/edge/admin/page.html")).unwrap();
    let block = page.split(":root{").nth(if wanted == "light" { 1 } else { 2 }).unwrap();
    let block = block.split('}').next().unwrap().replace('\n', "");
    let pairs = block.split(';').filter_map(|pair| pair.strip_prefix("--")?.split_once(":#"));
    let long = |hex: &str| if hex.len() == 3 { hex.chars().flat_map(|c| [c, c]).collect() } else { hex.to_owned() };
    pairs.map(|(name, hex)| (name.to_owned(), format!("#{}", long(hex)))).collect()
}

/// The relative luminance of a colour (WCAG 2).
fn luminance(colour: &str) -> f64 {
    let part = |n: usize| {
        let c = f64::from(u8::from_str_radix(&colour[n..n + 2], 16).unwrap()) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn all_text_of_the_page_stands_out_in_light_and_in_dark() {
    for wanted in ["light", "dark"] {
        let palette = palette(wanted);
        for ground in ["paper", "card"] {
            for (ink, least) in [("ink", 7.0), ("soft", 4.5), ("good", 3.0), ("warn", 3.0), ("bad", 3.0), ("a", 3.0)] {
                let (a, b) = (luminance(&palette[ink]), luminance(&palette[ground]));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= least, "{ink} on {ground} in {wanted}: {contrast:.1} of {least}");
            }
        }
    }
}
