//! The configuration: file, environment and flags resolved into one checked value.
//!
//! A flag beats an environment variable, which beats the file. [`resolve`] reports every error at once and reads
//! nothing itself: the text of the file and a look-up for the environment are arguments.

mod cidr;
mod document;
mod error;
mod file;
mod origin;
mod overrides;
mod reference;
mod resolve;
mod schema;
mod suggest;
mod summary;
pub mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use cidr::Cidr;
pub use error::{ConfigError, Fault, Place};
pub use origin::Origin;
pub use overrides::Overrides;
pub use reference::reference;
pub use resolve::{guard, is_realm, parse_protected, resolve};
pub use suggest::nearest;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Worker threads; 0: one for each core. Default 0.
    pub workers: usize,
    /// The roots that `https://` upstreams and auth backends are checked against, a PEM file. `None`: the system's.
    pub upstream_ca: Option<PathBuf>,
    /// The user that a gate started as root becomes. `None`: `portcullis`, if there is one.
    pub user: Option<String>,
    /// The admin listener; `None` when it is off. Default 127.0.0.1:9180.
    pub admin: Option<SocketAddr>,
    /// Where the access log goes. Default standard output.
    pub access_log: AccessLog,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// At least one; at most one of them without hosts.
    pub sites: Vec<Site>,
    /// Who checks a login.
    pub auth: Auth,
    /// How long and how many verdicts are remembered.
    pub verdicts: Verdicts,
    /// Who may do what; none: every authenticated principal may do everything.
    pub rules: Vec<Rule>,
    /// The groups that rules name as `@group`, without the `@`.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Bounds on what a peer may take.
    pub limits: Limits,
    /// How bodies are moved.
    pub blobs: Blobs,
    /// The guard that this gate works with.
    pub guard: Guard,
    /// Accept credentials on a plain listener that is not loopback. Default false.
    pub allow_plaintext_credentials: bool,
    /// TLS in the kernel. Default [`Ktls::Auto`].
    pub ktls: Ktls,
    /// What is allowed but probably not meant; one line each.
    pub warnings: Vec<String>,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// No access log.
    Off,
    /// One line for each exchange on standard output.
    Stdout,
    /// One line for each exchange at the end of this file.
    File(PathBuf),
}

/// An address to accept connections on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// Certificates to choose from by SNI, the first one when none fits; empty: plain HTTP.
    pub tls: Vec<TlsIdentity>,
    /// Client certificates that a CA of this PEM file signed log in, as `cert:` and their name; `None`: none is asked for.
    pub client_ca: Option<PathBuf>,
    /// The peers that must begin each connection with a PROXY header; others must not. Empty: nobody does.
    pub proxy_protocol: Vec<Cidr>,
    /// Every request is sent on to the same target under this origin, and nothing else is served here.
    pub redirect: Option<String>,
}

/// A certificate chain and its key, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What is served under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Names in lower case, without port; empty: the default site.
    pub hosts: Vec<String>,
    /// At least one.
    pub upstreams: Vec<Origin>,
    /// What the upstreams speak. Default [`Kind::Registry`].
    pub kind: Kind,
    /// How clients reach the site, an origin without a path, for example `https://registry.example.com`.
    pub public_url: Option<String>,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The OCI distribution protocol: its grammar is enforced.
    Registry,
    /// Any other HTTP service.
    Http,
}

/// Who checks a login: the htpasswd file first, then the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// An htpasswd file.
    pub htpasswd: Option<PathBuf>,
    /// A service that answers an auth subrequest.
    pub backend: Option<AuthBackend>,
    /// The realm of a challenge: printable ASCII without `"` and `\`. Default `Registry`.
    pub realm: String,
    /// Fields of the backend's reply that the upstream is told, names in lower case. Default none.
    pub copy_headers: Vec<String>,
}

/// A service that answers an auth subrequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthBackend {
    /// Where it listens.
    pub origin: Origin,
    /// The path of the subrequest. Default `/auth`.
    pub path: String,
}

/// How verdicts are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts {
    /// How long a permit lives; zero: not remembered. Default 60 s.
    pub allow_ttl: Duration,
    /// How long a refusal lives; zero: not remembered. Default 5 s.
    pub deny_ttl: Duration,
    /// How many verdicts are kept. Default 100,000.
    pub capacity: usize,
    /// How long after its time a permit to pull still holds while the authenticator is not to be had; zero: not at all.
    /// Default 0.
    pub stale_if_error: Duration,
}

/// Who may do what where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// User names, `@group` or `anonymous`; at least one.
    pub who: Vec<String>,
    /// Repository patterns; empty only where `catalog` is the one action.
    pub repositories: Vec<String>,
    /// Of `pull`, `push`, `delete`, `catalog`; at least one.
    pub actions: Vec<String>,
}

/// Bounds on what a peer may take: counts, bytes, durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open downstream connections of the whole process. Default 10,000.
    pub connections: usize,
    /// Of them, those of one peer: an IPv4 address or an IPv6 /64; 0: any number, which is right behind a proxy that hides
    /// its clients' addresses. Default 2,000.
    pub connections_per_peer: usize,
    /// Bytes of a request head. Default 16 KiB.
    pub head_bytes: usize,
    /// Header fields of a request. Default 100.
    pub fields: usize,
    /// Bytes of a request target. Default 8 KiB.
    pub target_bytes: usize,
    /// Bytes of a manifest that is pushed; registries keep it in memory. Default 4 MiB, as distribution's own.
    pub manifest_bytes: usize,
    /// From the first byte of a head to its last. Default 10 s.
    pub head_timeout: Duration,
    /// A kept-alive connection without a request. Default 60 s.
    pub idle_timeout: Duration,
    /// A TLS handshake, the wait for its turn included. Default 10 s.
    pub tls_timeout: Duration,
    /// TLS handshakes at once; more wait for their turn, within [`Limits::tls_timeout`]. Default 1,024.
    pub handshakes: usize,
    /// Opening a connection to an upstream or an auth backend. Default 3 s.
    pub connect_timeout: Duration,
    /// From the last byte of a request to the first byte of the upstream's response. Default 300 s:
    /// a registry on an object store takes its time to complete a large upload.
    pub response_timeout: Duration,
    /// Bytes a second that a body must move over [`Limits::rate_window`]; 0: only that something moves. Default 1 KiB.
    pub min_rate: u64,
    /// The window of [`Limits::min_rate`]. Default 20 s.
    pub rate_window: Duration,
    /// One auth subrequest or password check. Default 5 s.
    pub auth_timeout: Duration,
    /// Auth subrequests at once. Default 64.
    pub auth_concurrency: usize,
    /// Auth subrequests that may wait for their turn, within [`Limits::auth_timeout`]; more are answered with 503. Default
    /// 1,024.
    pub auth_queue: usize,
    /// Wrong passwords for one user from one source (an IPv6 /64 is one) before the next are delayed; 0: never, which is
    /// right behind a proxy that hides its clients' addresses. Default 10.
    pub failed_logins: usize,
    /// The first delay after [`Limits::failed_logins`]; it doubles with each further wrong password, up to 60 s. Default
    /// 1 s.
    pub failed_login_delay: Duration,
    /// How long an unused upstream connection is kept; must stay below the registry's own. Default 30 s.
    pub upstream_idle: Duration,
    /// How long one of several upstreams may take to begin its answer to a GET or HEAD before the next one is asked; after
    /// three times that, no further one is. Default 30 s.
    pub retry_timeout: Duration,
    /// How often the names of upstreams are looked up again. Default 30 s.
    pub resolve_interval: Duration,
    /// How often each of several upstreams is checked; zero: never. Default 10 s.
    pub health_interval: Duration,
    /// Failures in a row, of requests or of checks, after which an upstream is out. Default 3.
    pub health_failures: usize,
    /// Good checks in a row after which one that failed its checks is used again. Default 2.
    pub health_successes: usize,
    /// How long open exchanges may go on after a stop was asked for. Default 30 s.
    pub drain_timeout: Duration,
    /// How long nothing may move through a tunnel (an upgraded connection). Default 300 s.
    pub tunnel_timeout: Duration,
    /// Threads that check passwords against the htpasswd file. Default 2.
    pub hash_threads: usize,
    /// Password checks that may wait for a thread; more are answered with 503. Default 128.
    pub hash_queue: usize,
}

/// How bodies are moved; bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blobs {
    /// Bodies from this length on are spliced where both ends allow it. Default 32 KiB.
    pub splice_threshold: u64,
    /// Capacity asked for a splice pipe. Default 1 MiB.
    pub pipe_size: usize,
    /// The buffer of a body that is copied. Default 256 KiB.
    pub buffer: usize,
}

/// The guard that this gate works with, and what `portcullis guard` does where its flags say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// The directory of its pins; `None`: the guard's own default place.
    pub pin: Option<PathBuf>,
    /// The gate does not start unless the guard enforces, whole. Default false.
    pub require: bool,
    /// Ports protected on the addresses of the network namespace.
    pub ports: Vec<u16>,
    /// Addresses protected one by one.
    pub protect: Vec<SocketAddr>,
    /// Names of the guarded interfaces; `all`: every one but lo; empty: those that face outside.
    pub interfaces: Vec<String>,
    /// Sources that are let in from outside.
    pub allow: Vec<Cidr>,
    /// Leave the connect ring out. Default false.
    pub no_local: bool,
    /// How packets are intercepted. Default [`XdpMode::Auto`].
    pub mode: XdpMode,
}

/// How packets are intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver takes it, else generic.
    #[default]
    Auto,
    /// By the driver, before the kernel allocates anything.
    Native,
    /// By the kernel, on any interface.
    Generic,
}

/// TLS in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ktls {
    /// Where the kernel has it.
    Auto,
    /// Never.
    Off,
    /// Or do not start.
    Require,
}

impl Listener {
    /// Plain HTTP on an address, and nothing else about it.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: Vec::new(), client_ca: None, proxy_protocol: Vec::new(), redirect: None }
    }

    /// Whether a password sent here can be read on the way: plain HTTP on an address that is not loopback.
    #[must_use]
    pub fn exposes_credentials(&self) -> bool {
        self.redirect.is_none() && self.tls.is_empty() && !self.address.ip().to_canonical().is_loopback()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_peer: 2_000,
            head_bytes: 16 << 10,
            fields: 100,
            target_bytes: 8 << 10,
            manifest_bytes: 4 << 20,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            tls_timeout: Duration::from_secs(10),
            handshakes: 1024,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(300),
            min_rate: 1 << 10,
            rate_window: Duration::from_secs(20),
            auth_timeout: Duration::from_secs(5),
            auth_concurrency: 64,
            auth_queue: 1024,
            failed_logins: 10,
            failed_login_delay: Duration::from_secs(1),
            upstream_idle: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(30),
            resolve_interval: Duration::from_secs(30),
            health_interval: Duration::from_secs(10),
            health_failures: 3,
            health_successes: 2,
            drain_timeout: Duration::from_secs(30),
            tunnel_timeout: Duration::from_secs(300),
            hash_threads: 2,
            hash_queue: 128,
        }
    }
}

impl Default for Blobs {
    fn default() -> Self {
        Self { splice_threshold: 32 << 10, pipe_size: 1 << 20, buffer: 256 << 10 }
    }
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            allow_ttl: Duration::from_secs(60),
            deny_ttl: Duration::from_secs(5),
            capacity: 100_000,
            stale_if_error: Duration::ZERO,
        }
    }
}
