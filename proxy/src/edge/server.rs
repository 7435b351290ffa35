//! Starting and stopping the gate.
//!
//! Everything that can fail does so before the first connection is accepted: files are read, addresses bound, the guard
//! opened and the upstreams tried. What needs root comes first, then the gate becomes an ordinary user, and only then
//! are there threads.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use futures_channel::mpsc as drain;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::admin;
use super::attempts::Attempts;
use super::balance::Upstream;
use super::files::load_htpasswd;
use super::gate::{Gate, Parts};
use super::guard::metrics::{self, Metrics};
use super::guard::vouch::Voucher;
use super::hashing::Hashers;
use super::health;
use super::listener::{Bound, Settings};
use super::names::{self, Name};
use super::origins::{self, Finder};
use super::sys::driver::{Driver, Kind as DriverKind};
use super::sys::memory::keep_working_memory;
use super::sys::privilege::{account, become_account, is_root, raise_file_limit};
use super::sys::socket;
use super::telemetry::{Counters, Log, say};
use super::tls::{Server, renewal};
use super::worker::{self, Drain, Shared, Site};
use crate::config::Config;
use crate::limit::peers::Peers;
use crate::limit::turns::Turns;
use crate::policy::{Policy, RuleText};

/// How often the htpasswd file is looked at.
const FILE_CHECK: Duration = Duration::from_secs(1);

/// Runs the gate until it is told to stop.
///
/// # Errors
/// When it cannot start; the text names the thing and the remedy. Nothing is left half-started.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    raise_file_limit();
    keep_working_memory();
    let voucher = Voucher::open(config.guard.pin.as_deref())?.map(Arc::new);
    let workers = worker_count(&config);
    let bound = bind_all(&config, workers)?;
    let admin = admin::bind(config.admin)?;
    let (guarded, guard) = metrics::meet(&config.guard)?;
    // Every worker has the same listeners.
    let tls = bound.iter().take(1).flatten().filter_map(|bound| bound.settings.tls.clone()).collect();
    let (shared, names) = prepare(config, voucher, guard, tls)?;
    origins::try_all(&shared)?;
    drop_privileges(shared.config.user.as_deref())?;
    listen_all(&bound)?;
    abort_on_panic();
    watch_htpasswd(&shared)?;
    names::keep_fresh(names, shared.config.limits.resolve_interval).context("cannot start a thread for names")?;
    health::start(&shared).context("cannot start the health checks")?;
    renewal::watch(&shared)?;
    let (threads, senders, driver) = start(&shared, bound)?;
    admin::start(admin, Arc::clone(&shared), driver)?;
    announce(&shared, workers, driver, &guarded);
    obey_signals(&shared, senders)?;
    for thread in threads {
        if thread.join().is_err() {
            bail!("a worker ended with a panic");
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn worker_count(config: &Config) -> usize {
    match config.workers {
        0 => thread::available_parallelism().map_or(1, Into::into),
        n => n,
    }
}

/// The policy of a configuration.
///
/// # Errors
/// One line for each rule or group that is wrong.
pub fn policy(config: &Config) -> Result<Policy, Vec<String>> {
    let text = |rule: &crate::config::Rule| RuleText {
        who: rule.who.clone(),
        repositories: rule.repositories.clone(),
        actions: rule.actions.clone(),
    };
    Policy::new(&config.rules.iter().map(text).collect::<Vec<_>>(), &config.groups)
}

/// Binds every address once for each worker.
fn bind_all(config: &Config, workers: usize) -> anyhow::Result<Vec<Vec<Bound>>> {
    let mut all: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
    for configured in &config.listeners {
        let tls = Server::load(configured).map_err(anyhow::Error::msg)?.map(Arc::new);
        let refuses_credentials = configured.exposes_credentials() && !config.allow_plaintext_credentials;
        let redirect = configured.redirect.clone();
        let proxy_protocol = configured.proxy_protocol.clone();
        let address = configured.address;
        let mut settings = Settings { address, tls, proxy_protocol, refuses_credentials, redirect };
        let sockets = bind(&mut settings.address, workers)
            .map_err(|error| anyhow!("cannot listen on {}: {}", configured.address, bind_problem(&error)))?;
        let settings = Arc::new(settings);
        for (worker, fd) in all.iter_mut().zip(sockets) {
            worker.push(Bound { fd, settings: Arc::clone(&settings) });
        }
    }
    Ok(all)
}

/// Opens the doors, all or none, when everything else is in order: nobody is let in to wait for a gate that then fails.
fn listen_all(bound: &[Vec<Bound>]) -> anyhow::Result<()> {
    for bound in bound.iter().flatten() {
        let address = bound.settings.address;
        socket::start_listening(&bound.fd)
            .map_err(|error| anyhow!("cannot listen on {address}: {}", bind_problem(&error)))?;
    }
    Ok(())
}

/// One socket for each worker. SO_REUSEPORT would also let a second gate share the port unseen, so a socket without it
/// asks first whether the port is free. Port 0 becomes one free port for all.
fn bind(address: &mut SocketAddr, workers: usize) -> io::Result<Vec<OwnedFd>> {
    let probe = patiently(|| socket::bound(*address, false))?;
    if address.port() == 0 {
        *address = rustix::net::getsockname(&probe)?.try_into()?;
    }
    drop(probe);
    (0..workers).map(|_| socket::bound(*address, true)).collect()
}

/// Tries to bind for a second. The kernel takes down the rings of a gate that was killed in its own time, and until then
/// they hold the ports: a restart must not fail for that.
pub(super) fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

/// What to do about a failed bind.
pub(super) fn bind_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use by another process: stop it (`ss -ltnp` shows it) or choose another with --listen"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: grant it or choose another with --listen".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: `ip address` lists those that it has".to_owned()
        }
        _ => error.to_string(),
    }
}

type Prepared = (Arc<Shared>, Vec<Arc<Name>>);

fn prepare(
    config: Config,
    voucher: Option<Arc<Voucher>>,
    guard: Option<Metrics>,
    tls: Vec<Arc<Server>>,
) -> anyhow::Result<Prepared> {
    let policy = policy(&config).map_err(|errors| anyhow!(errors.join("; ")))?;
    let htpasswd = config.auth.htpasswd.as_deref().map(load_htpasswd).transpose().map_err(anyhow::Error::msg)?;
    let mut secret = [0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).context("no random numbers")?;
    let mut finder = Finder::new(config.upstream_ca.as_deref());
    let mut sites = Vec::new();
    for site in &config.sites {
        sites.push(Site {
            hosts: site.hosts.clone(),
            kind: site.kind,
            public_url: site.public_url.clone(),
            upstreams: Upstream::site(finder.all(&site.upstreams)?, &config.limits),
        });
    }
    let backend = match &config.auth.backend {
        Some(backend) => Some((finder.one(&backend.origin)?, backend.path.clone())),
        None => None,
    };
    let names = finder.names();
    let log = Log::prepare(&config.access_log).map_err(|error| anyhow!("cannot open the access log: {error}"))?;
    let gate = Gate::new(Parts {
        secret,
        policy,
        verdicts: config.verdicts.clone(),
        htpasswd,
        hashers: Hashers::new(config.limits.hash_threads, config.limits.hash_queue),
        turns: Turns::new(config.limits.auth_concurrency, config.limits.auth_queue),
        auth_timeout: config.limits.auth_timeout,
        attempts: Attempts::new(&secret, config.limits.failed_logins, config.limits.failed_login_delay),
    });
    let (counters, draining) = (Counters::default(), AtomicBool::new(false));
    let peers = Peers::new(config.limits.connections_per_peer);
    // As many may wait as may be connected.
    let handshakes = Turns::new(config.limits.handshakes, config.limits.connections);
    let shared =
        Shared { config, sites, gate, backend, voucher, guard, tls, handshakes, log, peers, counters, draining };
    Ok((Arc::new(shared), names))
}

/// Becomes the configured user. Without one, root stays root only where no user `portcullis` was made for the gate.
fn drop_privileges(user: Option<&str>) -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let name = user.unwrap_or("portcullis");
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    match (account(&passwd, name), user) {
        (Some(account), _) => become_account(account).with_context(|| format!("cannot become the user {name}")),
        (None, Some(name)) => {
            bail!("there is no user {name}: create it with `useradd --system {name}`, or correct `user`")
        }
        (None, None) => {
            say("warning: running as root: create a user for the gate with `useradd --system portcullis`");
            Ok(())
        }
    }
}

/// A worker that panics would leave its share of the port unserved: the whole gate ends instead, and is started anew.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

type Started = (Vec<thread::JoinHandle<()>>, Vec<drain::UnboundedSender<Drain>>, DriverKind);

/// Starts the workers and waits until each has its runtime.
fn start(shared: &Arc<Shared>, bound: Vec<Vec<Bound>>) -> anyhow::Result<Started> {
    shared.log.start().context("cannot start the access log's thread")?;
    shared.gate.start().context("cannot start the password helpers")?;
    let (ready, built) = mpsc::channel();
    let (mut threads, mut senders) = (Vec::new(), Vec::new());
    for (n, sockets) in bound.into_iter().enumerate() {
        let (sender, receiver) = drain::unbounded();
        let (shared, ready) = (Arc::clone(shared), ready.clone());
        let work = move || match Driver::build() {
            Ok(mut driver) => {
                let _ = ready.send(Ok(driver.kind()));
                worker::run(&mut driver, shared, sockets, receiver);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        threads.push(thread::Builder::new().name(format!("worker-{n}")).spawn(work)?);
        senders.push(sender);
    }
    drop(ready);
    let mut kind = DriverKind::Epoll;
    for _ in 0..threads.len() {
        kind = built.recv()?.context("a worker cannot start its event loop")?;
    }
    Ok((threads, senders, kind))
}

fn announce(shared: &Shared, workers: usize, driver: DriverKind, guarded: &str) {
    for configured in &shared.config.listeners {
        let scheme = if configured.tls.is_empty() { "http" } else { "https" };
        say(&format!("listening on {scheme}://{}", configured.address));
    }
    say(guarded);
    let with = if shared.voucher.is_some() { "with a guard" } else { "without a guard" };
    say(&format!("ready: {workers} workers on {driver}, {with}"));
}

/// Listens for signals on a thread of its own: the first SIGTERM or SIGINT drains, the second stops at once.
fn obey_signals(shared: &Arc<Shared>, senders: Vec<drain::UnboundedSender<Drain>>) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot catch signals")?;
    let shared = Arc::clone(shared);
    let obey = move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                say("SIGHUP: the htpasswd file is re-read whenever it changes; anything else needs a restart");
            } else if shared.draining.swap(true, Ordering::SeqCst) {
                say("stopping at once");
                std::process::exit(1);
            } else {
                say("stopping: finishing what runs; the same signal again stops at once");
                senders.iter().for_each(|sender| drop(sender.unbounded_send(Drain)));
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(obey)?;
    Ok(())
}

/// Looks at the htpasswd file every second and takes it when it changed. A file that is broken, perhaps half-written, is
/// named once, and the users of the last good one stay.
fn watch_htpasswd(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let Some(path) = shared.config.auth.htpasswd.clone() else { return Ok(()) };
    let shared = Arc::clone(shared);
    let mut last = stamp(&path);
    let watch = move || {
        loop {
            thread::sleep(FILE_CHECK);
            let now = stamp(&path);
            if now == last {
                continue;
            }
            last = now;
            match load_htpasswd(&path) {
                Ok(file) => {
                    say(&format!("{}: re-read, {} users", path.display(), file.len()));
                    shared.gate.replace_htpasswd(file);
                }
                Err(error) => say(&format!("{error}; the users of the last good file stay")),
            }
        }
    };
    thread::Builder::new().name("htpasswd".to_owned()).spawn(watch)?;
    Ok(())
}

type Stamp = Option<(SystemTime, u64, u64)>;

/// What changes when a file is written or replaced.
fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
