//! Numbers: verdict lifetimes, limits, buffer sizes. Each has a default and a range in which it makes sense.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Resolver;
use crate::config::error::Fault;
use crate::config::file::{self, Maybe};
use crate::config::units::{Period, Size, format_duration, format_size};
use crate::config::{Blobs, Limits, Verdicts};

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

impl Resolver<'_> {
    pub(super) fn verdicts(&mut self, file: &file::Verdicts) -> Verdicts {
        let default = Verdicts::default();
        Verdicts {
            allow_ttl: self.period("verdicts.allow_ttl", &file.allow_ttl, default.allow_ttl, Duration::ZERO..=DAY),
            deny_ttl: self.period("verdicts.deny_ttl", &file.deny_ttl, default.deny_ttl, Duration::ZERO..=HOUR),
            capacity: self.count("verdicts.capacity", &file.capacity, default.capacity, 1..=100_000_000),
            stale_if_error: self.period(
                "verdicts.stale_if_error",
                &file.stale_if_error,
                default.stale_if_error,
                Duration::ZERO..=DAY,
            ),
        }
    }

    pub(super) fn limits(&mut self, file: &file::Limits) -> Limits {
        let default = Limits::default();
        let mut time =
            |key: &str, value: &Maybe<Period>, default: Duration| self.period(key, value, default, MILLISECOND..=DAY);
        let head_timeout = time("limits.head_timeout", &file.head_timeout, default.head_timeout);
        let idle_timeout = time("limits.idle_timeout", &file.idle_timeout, default.idle_timeout);
        let tls_timeout = time("limits.tls_timeout", &file.tls_timeout, default.tls_timeout);
        let connect_timeout = time("limits.connect_timeout", &file.connect_timeout, default.connect_timeout);
        let response_timeout = time("limits.response_timeout", &file.response_timeout, default.response_timeout);
        let rate_window = time("limits.rate_window", &file.rate_window, default.rate_window);
        let auth_timeout = time("limits.auth_timeout", &file.auth_timeout, default.auth_timeout);
        let upstream_idle = time("limits.upstream_idle", &file.upstream_idle, default.upstream_idle);
        let retry_timeout = time("limits.retry_timeout", &file.retry_timeout, default.retry_timeout);
        let resolve_interval = time("limits.resolve_interval", &file.resolve_interval, default.resolve_interval);
        let drain_timeout = time("limits.drain_timeout", &file.drain_timeout, default.drain_timeout);
        let tunnel_timeout = time("limits.tunnel_timeout", &file.tunnel_timeout, default.tunnel_timeout);

        let head_bytes = self.bytes("limits.head_bytes", &file.head_bytes, default.head_bytes, KIB..=MIB);
        // A small head limit alone must not make the default target limit an error.
        let target_default = default.target_bytes.min(head_bytes);
        Limits {
            connections: self.count("limits.connections", &file.connections, default.connections, 1..=10_000_000),
            connections_per_peer: self.count(
                "limits.connections_per_peer",
                &file.connections_per_peer,
                default.connections_per_peer,
                0..=10_000_000,
            ),
            head_bytes,
            fields: self.count("limits.fields", &file.fields, default.fields, 8..=1_000),
            target_bytes: self.bytes("limits.target_bytes", &file.target_bytes, target_default, 256..=head_bytes),
            manifest_bytes: self.bytes(
                "limits.manifest_bytes",
                &file.manifest_bytes,
                default.manifest_bytes,
                KIB..=1024 * MIB,
            ),
            head_timeout,
            idle_timeout,
            tls_timeout,
            handshakes: self.count("limits.handshakes", &file.handshakes, default.handshakes, 1..=1_000_000),
            connect_timeout,
            response_timeout,
            min_rate: file.min_rate.as_ref().map_or(default.min_rate, |rate| rate.get_ref().0),
            rate_window,
            auth_timeout,
            auth_concurrency: self.count(
                "limits.auth_concurrency",
                &file.auth_concurrency,
                default.auth_concurrency,
                1..=100_000,
            ),
            auth_queue: self.count("limits.auth_queue", &file.auth_queue, default.auth_queue, 0..=1_000_000),
            failed_logins: self.count("limits.failed_logins", &file.failed_logins, default.failed_logins, 0..=1_000),
            failed_login_delay: self.period(
                "limits.failed_login_delay",
                &file.failed_login_delay,
                default.failed_login_delay,
                MILLISECOND..=MINUTE,
            ),
            upstream_idle,
            retry_timeout,
            resolve_interval,
            health_interval: self.period(
                "limits.health_interval",
                &file.health_interval,
                default.health_interval,
                Duration::ZERO..=DAY,
            ),
            health_failures: self.count(
                "limits.health_failures",
                &file.health_failures,
                default.health_failures,
                1..=1_000,
            ),
            health_successes: self.count(
                "limits.health_successes",
                &file.health_successes,
                default.health_successes,
                1..=1_000,
            ),
            drain_timeout,
            tunnel_timeout,
            hash_threads: self.count("limits.hash_threads", &file.hash_threads, default.hash_threads, 1..=256),
            hash_queue: self.count("limits.hash_queue", &file.hash_queue, default.hash_queue, 1..=100_000),
        }
    }

    pub(super) fn blobs(&mut self, file: &file::Blobs) -> Blobs {
        let default = Blobs::default();
        Blobs {
            splice_threshold: file.splice_threshold.as_ref().map_or(default.splice_threshold, |size| size.get_ref().0),
            pipe_size: self.bytes("blobs.pipe_size", &file.pipe_size, default.pipe_size, 4 * KIB..=64 * MIB),
            buffer: self.bytes("blobs.buffer", &file.buffer, default.buffer, 4 * KIB..=64 * MIB),
        }
    }

    fn count(&mut self, key: &str, value: &Maybe<usize>, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some(value) = value else { return default };
        self.in_range(key, value, *value.get_ref(), &range, |count| count.to_string())
    }

    fn bytes(&mut self, key: &str, value: &Maybe<Size>, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some(value) = value else { return default };
        let bytes = usize::try_from(value.get_ref().0).unwrap_or(usize::MAX);
        self.in_range(key, value, bytes, &range, |bytes| format_size(*bytes as u64))
    }

    fn period(
        &mut self,
        key: &str,
        value: &Maybe<Period>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(value) = value else { return default };
        self.in_range(key, value, value.get_ref().0, &range, |time| format_duration(*time))
    }

    fn in_range<S, T: PartialOrd>(
        &mut self,
        key: &str,
        written: &toml::Spanned<S>,
        value: T,
        range: &RangeInclusive<T>,
        format: fn(&T) -> String,
    ) -> T {
        if !range.contains(&value) {
            let problem = format!("{} is out of range", format(&value));
            let remedy = format!("choose from {} to {}", format(range.start()), format(range.end()));
            let place = self.place(written, key);
            self.fail(Fault::new(problem, remedy), &place);
        }
        value
    }
}
