//! The status page: one file without anything from elsewhere, and the numbers that it asks for.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::certificate_ends;
use crate::edge::requests::{SOURCES, STATUSES};
use crate::edge::sys::driver::Kind as DriverKind;
use crate::edge::worker::Shared;
use crate::edge::{balance, server};

/// The page.
pub(super) const HTML: &str = include_str!("page.html");

/// What a browser may do with it: run its one script, use its one style sheet, and ask this listener.
pub(super) fn security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let (script, style) = (fingerprint("script"), fingerprint("style"));
        format!(
            "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'"
        )
    });
    &POLICY
}

fn fingerprint(element: &str) -> String {
    let inner =
        HTML.split_once(&format!("<{element}>")).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inner.map_or("", |(inner, _)| inner))))
}

/// The numbers of the page, as JSON.
pub(super) fn status(shared: &Shared, driver: DriverKind) -> String {
    let counters = &shared.counters;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let table = |names: &[&str], counts: &[AtomicU64]| -> Map<String, Value> {
        names.iter().zip(counts).map(|(name, n)| ((*name).to_owned(), load(n).into())).collect()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let certificates = certificate_ends(shared);
    let certificates: Vec<Value> =
        certificates.into_iter().map(|(path, at)| json!({"file": path.display().to_string(), "ends": at})).collect();
    let guard = shared.guard.as_ref().map(|guard| json!({"mode": guard.mode(), "refused": guard.refused()}));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "driver": if driver == DriverKind::Epoll { "epoll" } else { "io_uring" },
        "workers": server::worker_count(&shared.config),
        "time": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        "draining": shared.draining.load(Ordering::Relaxed),
        "connections": load(&counters.connections),
        "exchanges": table(&STATUSES, &counters.exchanges),
        "verdicts": table(&SOURCES, &counters.verdicts),
        "bytes": {
            "splice": load(&counters.bytes_spliced),
            "ktls": load(&counters.bytes_ktls),
            "copy": load(&counters.bytes_copied),
        },
        "remembered": shared.gate.remembered(),
        "upstreams": balance::status(&shared.sites),
        "certificates": certificates,
        "guard": guard,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_but_itself() {
        assert_eq!(HTML.matches("<script>").count(), 1);
        assert_eq!(HTML.matches("<style>").count(), 1);
        for outside in ["src=", "href=", "@import", "url(", " style=\"", " onclick"] {
            assert!(!HTML.contains(outside), "{outside}");
        }
        let empty = STANDARD.encode(Sha256::digest(""));
        assert!(!security_policy().contains(&empty), "{}", security_policy());
    }
}
