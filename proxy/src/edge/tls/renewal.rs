//! Certificates that change: the files are looked at every second and taken when all of a listener's can be used.
//!
//! Tools that renew write the certificate and its key one after the other, or swap a symbolic link. So a pair that does
//! not fit is tried again for a while before anybody is told, and until it fits the last good one serves.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::server::{Expiry, Server};
use crate::edge::reload::Control;
use crate::edge::telemetry::{Counters, say};
use crate::edge::worker::Shared;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long files that do not fit may still be in the writing.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long before its end a certificate is warned of, and how often.
const WARN_BEFORE: u64 = 21 * DAY;
const WARN_EVERY: Duration = Duration::from_secs(DAY);
const DAY: u64 = 86_400;

/// Starts to look after the certificates of all listeners.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(control: &Arc<Control>) -> std::io::Result<()> {
    // Here, not on the thread: a change from now on is a change.
    let mut watched = Vec::new();
    let shared = control.current();
    follow(&mut watched, &shared.tls);
    warn_of_ends(&shared.tls);
    let control = Arc::clone(control);
    let look = move || {
        let mut warned = Instant::now();
        loop {
            thread::sleep(LOOK);
            let shared = control.current();
            follow(&mut watched, &shared.tls);
            for watch in &mut watched {
                watch.look(&shared);
            }
            if warned.elapsed() >= WARN_EVERY {
                warned = Instant::now();
                warn_of_ends(&shared.tls);
            }
        }
    };
    thread::Builder::new().name("certificates".to_owned()).spawn(look)?;
    Ok(())
}

/// Watches the listeners that there are now.
fn follow(watched: &mut Vec<Watch>, servers: &[Arc<Server>]) {
    watched.retain(|watch| servers.iter().any(|server| Arc::ptr_eq(server, &watch.server)));
    for server in servers {
        if !watched.iter().any(|watch| Arc::ptr_eq(server, &watch.server)) {
            let watch = Watch::new(Arc::clone(server));
            warn_of_unreadable(&watch);
            watched.push(watch);
        }
    }
}

/// What changes when a file is written, replaced, or given to another user; also when a link on its path is.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

/// One listener's files.
struct Watch {
    server: Arc<Server>,
    /// As they were when they were last read with success.
    good: Vec<Stamp>,
    /// As they were at the last look, and since when, while they cannot be used.
    bad: Option<(Vec<Stamp>, Instant)>,
    /// Whether that has been said.
    told: bool,
}

impl Watch {
    fn new(server: Arc<Server>) -> Self {
        let good = server.files().map(stamp).collect();
        Self { server, good, bad: None, told: false }
    }

    fn look(&mut self, shared: &Shared) {
        let now = self.stamps();
        if now == self.good && self.bad.is_none() {
            return;
        }
        let since = match self.bad.take() {
            Some((stamps, since)) if stamps == now => since,
            _ => {
                self.told = false;
                Instant::now()
            }
        };
        if self.told {
            self.bad = Some((now, since));
            return;
        }
        let (new, errors) = self.server.reload();
        if new {
            Counters::add(&shared.counters.tls.renewed, 1);
            tell(&self.server.expiries());
        }
        if errors.is_empty() && now == self.stamps() {
            self.good = now;
            return;
        }
        // Without an error they changed again while they were read: another look will tell.
        if !errors.is_empty() && since.elapsed() >= PATIENCE {
            self.told = true;
            Counters::add(&shared.counters.tls.renewal_failed, 1);
            errors.iter().for_each(|error| say(&format!("{error}; the last good one stays")));
        }
        self.bad = Some((now, since));
    }

    fn stamps(&self) -> Vec<Stamp> {
        self.server.files().map(stamp).collect()
    }
}

fn tell(expiries: &[Expiry]) {
    for expiry in expiries {
        say(&format!("{}: re-read, valid until {}", expiry.path.display(), day(expiry.at)));
    }
    warn_of(expiries);
}

fn warn_of_ends(servers: &[Arc<Server>]) {
    let mut all: HashMap<PathBuf, Expiry> = HashMap::new();
    for expiry in servers.iter().flat_map(|server| server.expiries()) {
        all.insert(expiry.path.clone(), expiry);
    }
    let mut all: Vec<Expiry> = all.into_values().collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    warn_of(&all);
}

fn warn_of(expiries: &[Expiry]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    for expiry in expiries {
        if let Some(warning) = warning(expiry.at, now) {
            say(&format!("warning: {}: {warning}", expiry.path.display()));
        }
    }
}

/// What is to be said of a certificate that ends at `at`.
fn warning(at: u64, now: u64) -> Option<String> {
    if at < now {
        return Some(format!("the certificate expired on {}: clients refuse it; renew it", day(at)));
    }
    let left = (at - now) / DAY;
    (at - now < WARN_BEFORE).then(|| format!("the certificate expires on {}, in {left} days: renew it", day(at)))
}

fn day(at: u64) -> String {
    let at = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(|| "a day beyond all calendars".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

/// The gate has read its files as root, perhaps, and will have to read them again as somebody else.
fn warn_of_unreadable(watch: &Watch) {
    for file in watch.server.files() {
        if let Err(error) = std::fs::File::open(file) {
            let (file, reason) = (file.display(), crate::edge::files::system_reason(&error));
            say(&format!(
                "warning: {file}: {reason} for the user that the gate runs as, so a renewed one cannot be read: let that \
                 user's group read it and enter its directory, or restart the gate after each renewal"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_begin_three_weeks_before_the_end() {
        let now = 1_800_000_000;
        assert_eq!(warning(now + WARN_BEFORE, now), None);
        assert!(warning(now + WARN_BEFORE - 1, now).unwrap().contains("in 20 days"));
        assert!(warning(now, now).unwrap().contains("in 0 days"));
        assert!(warning(now - 1, now).unwrap().contains("expired on 2027-01-15"));
        assert!(warning(0, now).unwrap().contains("1970-01-01"));
    }
}
