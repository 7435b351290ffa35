//! The admin listener: is the gate alive, is it ready, what has it counted. On its own port, never the data port, and on
//! a thread of its own: it answers when the workers are busy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::balance;
use super::doors::bind_problem;
use super::reload::Control;
use super::requests::{SOURCES, STATUSES};
use super::revoke;
use super::sys::driver::Kind as DriverKind;
use super::worker::Shared;
use ready::Readiness;

mod page;
mod process;
mod ready;

/// Where it listens unless told otherwise.
pub(super) const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);

/// How long a caller may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The listener, or where it will be.
#[derive(Debug)]
pub enum Door {
    /// It listens.
    Open(TcpListener),
    /// The gate that this one takes over from has the address until it ends.
    Later(SocketAddr),
}

impl Door {
    fn open(self) -> TcpListener {
        loop {
            match self {
                Door::Open(listener) => return listener,
                Door::Later(address) => {
                    if let Ok(listener) = TcpListener::bind(address) {
                        return listener;
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }
}

/// Binds the listener, if one is wanted. That the default port is taken, by another gate on this host perhaps, is no reason
/// not to start; that the port somebody asked for is taken is one.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: Option<SocketAddr>, take_over: bool) -> anyhow::Result<Option<Door>> {
    let Some(address) = address else { return Ok(None) };
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(Door::Open(listener))),
        Err(error) if take_over && error.kind() == io::ErrorKind::AddrInUse => Ok(Some(Door::Later(address))),
        Err(error) if address == DEFAULT && error.kind() == io::ErrorKind::AddrInUse => {
            let _ = writeln!(io::stderr().lock(), "portcullis: warning: no admin listener: {address} is in use");
            Ok(None)
        }
        Err(error) => Err(anyhow!("cannot listen on {address} for --admin: {}", bind_problem(&error))),
    }
}

/// Serves it from now on.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(door: Option<Door>, control: Arc<Control>, driver: DriverKind) -> anyhow::Result<()> {
    let Some(door) = door else { return Ok(()) };
    process::started();
    let serve = move || {
        let readiness = Arc::new(Readiness::default());
        for stream in door.open().incoming().flatten() {
            // One caller after the other, each with a deadline: nobody can use up more than this one thread.
            let _ = answer(stream, &control, driver, &readiness);
        }
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(serve).context("cannot start the admin thread")?;
    Ok(())
}

fn answer(mut stream: TcpStream, control: &Control, driver: DriverKind, readiness: &Arc<Readiness>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < 8192 {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&piece[..n]),
        }
    }
    if let Some(request) = revoke::Request::read(&head) {
        let local = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        let (status, body) = revoke::obey(&request, local, control);
        return reply(&mut stream, status, "text/plain", &body);
    }
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let target = line.strip_prefix(b"GET ").and_then(|rest| rest.split(|&b| b == b' ').next());
    // Scrapers may come from elsewhere and by a name; on the loopback interface a name is one that was rebound.
    let local = stream.local_addr().is_ok_and(|own| own.ip().to_canonical().is_loopback());
    let private = match target {
        Some(b"/" | b"/status.json") => true,
        Some(b"/metrics" | b"/readyz") => local,
        _ => false,
    };
    if private && !revoke::calls_an_address(&head) {
        let why = "call the admin listener by its address, not by a name\n";
        return reply(&mut stream, "403 Forbidden", "text/plain", why);
    }
    let (status, kind, body) = match target {
        Some(b"/") => return reply(&mut stream, "200 OK", "text/html; charset=utf-8", page::HTML),
        Some(b"/status.json") => ("200 OK", "application/json", page::status(&control.current(), driver)),
        Some(b"/readyz") => return answer_readiness(stream, control.current(), Arc::clone(readiness)),
        Some(b"/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
        Some(b"/metrics") => ("200 OK", "text/plain; version=0.0.4", metrics(&control.current(), driver)),
        Some(_) => {
            let here = "here are /, /healthz, /readyz, /metrics, /status.json, and POST /revoke, /reload and /drain\n";
            ("404 Not Found", "text/plain", here.to_owned())
        }
        None => ("405 Method Not Allowed", "text/plain", "only GET\n".to_owned()),
    };
    reply(&mut stream, status, kind, &body)
}

/// On a thread of its own, so that a silent upstream does not keep `/healthz` waiting.
fn answer_readiness(mut stream: TcpStream, shared: Arc<Shared>, readiness: Arc<Readiness>) -> io::Result<()> {
    let ask = move || {
        let failures = readiness.failures(&shared);
        let status = if failures.is_empty() { "200 OK" } else { "503 Service Unavailable" };
        let body = if failures.is_empty() { "ready\n".to_owned() } else { failures.join("\n") + "\n" };
        let _ = reply(&mut stream, status, "text/plain", &body);
    };
    std::thread::Builder::new().name("readiness".to_owned()).spawn(ask).map(drop)
}

fn reply(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\nContent-Security-Policy: {}\r\n\r\n{body}",
        body.len(),
        page::security_policy(),
    )
}

/// The counters in Prometheus' text format.
fn metrics(shared: &Shared, driver: DriverKind) -> String {
    let counters = &shared.counters;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let plain = |value: u64| vec![(String::new(), value)];
    let exchanges: Vec<_> =
        STATUSES.iter().zip(&counters.exchanges).map(|(c, n)| (format!("{{status=\"{c}\"}}"), load(n))).collect();
    let verdicts: Vec<_> =
        SOURCES.iter().zip(&counters.verdicts).map(|(s, n)| (format!("{{source=\"{s}\"}}"), load(n))).collect();
    let bytes = [
        ("{path=\"splice\"}".to_owned(), load(&counters.bytes_spliced)),
        ("{path=\"ktls\"}".to_owned(), load(&counters.bytes_ktls)),
        ("{path=\"copy\"}".to_owned(), load(&counters.bytes_copied)),
    ];
    family("portcullis_exchanges_total", "counter", "Exchanges by status class.", &exchanges);
    family("portcullis_verdicts_total", "counter", "Verdicts by where they came from.", &verdicts);
    family("portcullis_response_bytes_total", "counter", "Response body bytes by how they moved.", &bytes);
    family("portcullis_connections", "gauge", "Open downstream connections.", &plain(load(&counters.connections)));
    let refused = [
        ("{limit=\"connections\"}".to_owned(), load(&counters.connections_refused)),
        ("{limit=\"connections_per_peer\"}".to_owned(), load(&counters.connections_refused_to_peer)),
    ];
    family("portcullis_connections_refused_total", "counter", "Connections closed above a limit.", &refused);
    let remembered = plain(shared.gate.remembered() as u64);
    family("portcullis_verdicts_remembered", "gauge", "Answers of the authenticator in the cache.", &remembered);
    let dropped = plain(shared.log.dropped());
    family("portcullis_log_dropped_total", "counter", "Access log lines that could not be written.", &dropped);
    let tls = &counters.tls;
    family("portcullis_tls_handshakes_total", "counter", "Finished TLS handshakes.", &tls.done_samples());
    let taken = tls.taken_samples();
    family("portcullis_tls_connections_total", "counter", "Encrypted connections by who encrypts them.", &taken);
    let failed = tls.failed_samples();
    family("portcullis_tls_handshake_failures_total", "counter", "Failed TLS handshakes by reason.", &failed);
    let under_way = plain(shared.handshakes.taken() as u64);
    family("portcullis_tls_handshakes_under_way", "gauge", "TLS handshakes that have begun.", &under_way);
    let renewals = [
        ("{result=\"ok\"}".to_owned(), load(&tls.renewed)),
        ("{result=\"failed\"}".to_owned(), load(&tls.renewal_failed)),
    ];
    family("portcullis_certificate_renewals_total", "counter", "Changed certificates by what became.", &renewals);
    let ends = certificate_samples(shared);
    family("portcullis_certificate_expiry_timestamp_seconds", "gauge", "The end of each certificate.", &ends);
    let refused = plain(load(&counters.proxy_refused));
    let help = "Connections closed for a PROXY header that was missing, malformed or late.";
    family("portcullis_proxy_protocol_refused_total", "counter", help, &refused);
    let name = if driver == DriverKind::Epoll { "epoll" } else { "io_uring" };
    family("portcullis_driver_info", "gauge", "The event mechanism.", &[(format!("{{driver=\"{name}\"}}"), 1)]);
    for (name, kind, help, samples) in shared.guard.iter().flat_map(|guard| guard.families()) {
        family(name, kind, help, &samples);
    }
    process::metrics(shared, &mut out);
    balance::metrics(&shared.sites, &mut out);
    counters.requests.metrics(&mut out);
    out
}

/// The end of each file's certificate, however many listeners use it.
fn certificate_ends(shared: &Shared) -> BTreeMap<PathBuf, u64> {
    shared.tls.iter().flat_map(|server| server.expiries()).map(|expiry| (expiry.path, expiry.at)).collect()
}

fn certificate_samples(shared: &Shared) -> Vec<(String, u64)> {
    let label =
        |path: &Path| path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let ends = certificate_ends(shared);
    ends.iter().map(|(path, at)| (format!("{{certificate=\"{}\"}}", label(path)), *at)).collect()
}
