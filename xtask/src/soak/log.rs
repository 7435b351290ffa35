//! A second opinion: the gate's own access log, read as it grows. No 2xx without a permit.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::clients;
use super::tally::Tally;

/// Reads until the tally is closed and nothing is left.
pub(super) fn follow(path: PathBuf, tally: Arc<Tally>) -> JoinHandle<()> {
    thread::spawn(move || {
        let Ok(file) = File::open(&path) else { return tally.violated("the gate writes no access log".to_owned()) };
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        loop {
            let closed = tally.is_closed();
            match reader.read_line(&mut line) {
                Ok(1..) if line.ends_with('\n') => {
                    judge(&line, &tally);
                    line.clear();
                }
                // Half a line, or nothing yet.
                Ok(_) if closed && line.is_empty() => return,
                Ok(_) => thread::sleep(Duration::from_millis(50)),
                Err(error) => return tally.violated(format!("the access log cannot be read: {error}")),
            }
        }
    })
}

fn judge(line: &str, tally: &Tally) {
    tally.lines.fetch_add(1, Ordering::Relaxed);
    let Ok(record) = serde_json::from_str::<Value>(line) else {
        return tally.violated(format!("a line of the access log is no JSON: {line}"));
    };
    if !(200..400).contains(&record["status"].as_u64().unwrap_or(0)) {
        return;
    }
    let user = clients::CREDS.split(':').next();
    let asked = matches!(record["verdict"].as_str(), Some("cache" | "flight" | "asked"));
    if record["user"].as_str() != user || !asked {
        tally.violated(format!("a yes without a permit: {line}"));
    }
    tally.permitted.fetch_add(1, Ordering::Relaxed);
}
