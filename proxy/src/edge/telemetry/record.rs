//! One exchange, and the line of JSON that tells of it. The line is made by the worker on the way of a request, so it is
//! written straight into its bytes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::RelayPath;

/// One exchange as the access log tells it. No field ever holds a credential.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// When its head was there, by the calendar; none where nobody wants to know.
    pub began: Option<SystemTime>,
    /// The client.
    pub peer: Option<SocketAddr>,
    /// The TLS version, on an encrypted connection.
    pub tls: Option<&'static str>,
    /// The method; empty when the head was not understood.
    pub method: String,
    /// The target, without what a query may hold in secret.
    pub target: String,
    /// The kind of endpoint that was asked for, once known.
    pub endpoint: Option<&'static str>,
    /// The user, once known.
    pub user: Option<String>,
    /// All that it had to be allowed, as scopes.
    pub access: Option<String>,
    /// The rule that granted it, from 1.
    pub rule: Option<usize>,
    /// Where the verdict came from.
    pub verdict: Option<&'static str>,
    /// The status sent; 0: none.
    pub status: u16,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// How the response body moved.
    pub relay: RelayPath,
    /// The upstream that answered.
    pub upstream: Option<Arc<str>>,
    /// From the request's head to the last byte.
    pub took: Duration,
    /// Of it, until there was a verdict.
    pub judged: Option<Duration>,
    /// Of it, from the verdict to the head of the upstream's answer.
    pub awaited: Option<Duration>,
    /// What went wrong on the way.
    pub error: Option<String>,
}

/// A record in the order of its line.
#[derive(Serialize)]
struct Line<'r> {
    time: Option<String>,
    peer: Option<SocketAddr>,
    tls: Option<&'static str>,
    method: &'r str,
    target: &'r str,
    endpoint: Option<&'static str>,
    user: Option<&'r str>,
    access: Option<&'r str>,
    rule: Option<usize>,
    verdict: Option<&'static str>,
    status: u16,
    received: u64,
    sent: u64,
    relay: &'static str,
    upstream: Option<&'r str>,
    seconds: f64,
    verdict_seconds: Option<f64>,
    upstream_seconds: Option<f64>,
    error: Option<&'r str>,
}

impl Record {
    /// Appends it as one line of JSON, without its end.
    pub fn write(&self, out: &mut Vec<u8>) {
        let seconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e6;
        let line = Line {
            time: self.began.and_then(stamp),
            peer: self.peer,
            tls: self.tls,
            method: &self.method,
            target: &self.target,
            endpoint: self.endpoint,
            user: self.user.as_deref(),
            access: self.access.as_deref(),
            rule: self.rule,
            verdict: self.verdict,
            status: self.status,
            received: self.received,
            sent: self.sent,
            relay: self.relay.as_str(),
            upstream: self.upstream.as_deref(),
            seconds: seconds(self.took),
            verdict_seconds: self.judged.map(seconds),
            upstream_seconds: self.awaited.map(seconds),
            error: self.error.as_deref(),
        };
        // Writing into a Vec does not fail.
        let _ = serde_json::to_writer(out, &line);
    }

    /// The same as text.
    pub fn line(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// RFC 3339 with milliseconds, in UTC. The calendar is asked once a second.
fn stamp(at: SystemTime) -> Option<String> {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = RefCell::default();
    }
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() || text.is_empty() {
            let time = jiff::Timestamp::from_second(i64::try_from(since.as_secs()).ok()?).ok()?;
            (*second, *text) = (since.as_secs(), time.to_string().trim_end_matches('Z').to_owned());
        }
        Some(format!("{text}.{:03}Z", since.subsec_millis()))
    })
}

/// A target for the log: the value of every query parameter that could be a signature or token is left out.
pub fn loggable_target(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.to_owned() };
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key @ ("_state" | "token" | "access_token" | "password" | "signature" | "sig"), _)) => format!("{key}=…"),
        _ => pair.to_owned(),
    });
    format!("{path}?{}", shown.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_the_client_sent() {
        let record = Record { target: "/a\n{\"x\":1}\u{2028}\"".to_owned(), status: 404, ..Record::default() };
        let line = record.line();
        assert!(!line.contains('\n'), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(parsed["target"], record.target);
        assert_eq!(parsed["status"], 404);
    }

    #[test]
    fn its_time_is_the_one_that_the_calendar_has() {
        for millis in [0, 1, 999, 1_000, 951_782_399_999, 951_782_400_000, 1_795_600_000_042, 4_102_444_799_500] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let calendar = format!("{:.3}", jiff::Timestamp::try_from(at).unwrap());
            assert_eq!(stamp(at), Some(calendar));
        }
        assert_eq!(stamp(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), None);
    }

    #[test]
    fn secrets_in_a_query_are_left_out() {
        assert_eq!(
            loggable_target("/v2/a/blobs/uploads/1?_state=abc&digest=d"),
            "/v2/a/blobs/uploads/1?_state=…&digest=d"
        );
        assert_eq!(loggable_target("/v2/"), "/v2/");
    }
}
