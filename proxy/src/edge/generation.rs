//! What one configuration becomes: sites, gate, log. The parts that another configuration leaves as they are go on in the
//! next generation: connections to upstreams, their health, verdicts, failed logins, the open access log.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow};

use super::attempts::Attempts;
use super::balance::Upstream;
use super::gate::{Before, Gate, Parts};
use super::guard::metrics::Metrics;
use super::guard::vouch::Voucher;
use super::hashing::Hashers;
use super::names::Name;
use super::origins::Finder;
use super::passwords::Passwords;
use super::telemetry::{Counters, Log};
use super::tls::{Server, kernel};
use super::upstream::Service;
use super::worker::{Shared, Site, same_services};
use crate::config::Config;
use crate::limit::peers::Peers;
use crate::limit::turns::Turns;
use crate::policy::{Policy, RuleText};

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

/// A generation, and the names that it is the first to use.
pub type Prepared = (Arc<Shared>, Vec<Arc<Name>>);

/// The guard as the gate met it at the start.
#[derive(Debug)]
pub struct Met {
    /// The right to connect to a guarded port.
    pub voucher: Option<Arc<Voucher>>,
    /// What there is to tell of it.
    pub metrics: Option<Arc<Metrics>>,
}

/// The first generation.
///
/// # Errors
/// When a file, a name or a rule cannot be used.
pub fn first(config: Config, met: Met, tls: Vec<Arc<Server>>) -> anyhow::Result<Prepared> {
    let gate = gate(&config, None)?;
    let (services, names) = services(&config, None)?;
    let limits = &config.limits;
    let ktls = kernel::support(config.ktls, !tls.is_empty())?;
    let shared = Shared {
        sites: services.sites,
        gate,
        backend: services.backend,
        voucher: met.voucher,
        ktls,
        tls,
        handshakes: Arc::new(Turns::new(limits.handshakes, limits.connections)),
        guard: met.metrics,
        log: Arc::new(log(&config)?),
        peers: Arc::new(Peers::new(limits.connections_per_peer)),
        counters: Arc::new(Counters::default()),
        draining: Arc::new(AtomicBool::new(false)),
        config,
    };
    Ok((Arc::new(shared), names))
}

/// The generation that follows `before`.
///
/// # Errors
/// As [`first`]; nothing has changed then.
pub fn next(config: Config, before: &Shared, tls: Vec<Arc<Server>>) -> anyhow::Result<Prepared> {
    let gate = gate(&config, Some(before))?;
    let (services, names) = services(&config, Some(before))?;
    let (limits, old) = (&config.limits, &before.config.limits);
    let same_log = config.access_log == before.config.access_log;
    let log = if same_log { Arc::clone(&before.log) } else { Arc::new(log(&config)?) };
    // As many may wait as may be connected.
    let same_turns = (limits.handshakes, limits.connections) == (old.handshakes, old.connections);
    let handshakes = if same_turns {
        Arc::clone(&before.handshakes)
    } else {
        Arc::new(Turns::new(limits.handshakes, limits.connections))
    };
    let ktls = match &before.ktls {
        Some(support) => Some(Arc::clone(support)),
        // The first listener with TLS, perhaps.
        None => kernel::support(config.ktls, !tls.is_empty())?,
    };
    let shared = Shared {
        sites: services.sites,
        gate,
        backend: services.backend,
        voucher: before.voucher.clone(),
        ktls,
        tls,
        handshakes,
        guard: before.guard.clone(),
        log,
        peers: Arc::clone(&before.peers),
        counters: Arc::clone(&before.counters),
        draining: Arc::clone(&before.draining),
        config,
    };
    Ok((Arc::new(shared), names))
}

fn log(config: &Config) -> anyhow::Result<Log> {
    Log::prepare(&config.access_log).map_err(|error| anyhow!("cannot open the access log: {error}"))
}

struct Services {
    sites: Vec<Site>,
    backend: Option<(Service, String)>,
}

fn services(config: &Config, before: Option<&Shared>) -> anyhow::Result<(Services, Vec<Arc<Name>>)> {
    if let Some(before) = before.filter(|before| same_services(&before.config, config)) {
        return Ok((Services { sites: before.sites.clone(), backend: before.backend.clone() }, Vec::new()));
    }
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
    Ok((Services { sites, backend }, finder.names()))
}

fn gate(config: &Config, before: Option<&Shared>) -> anyhow::Result<Gate> {
    let policy = policy(config).map_err(|errors| anyhow!(errors.join("; ")))?;
    let mut secret = [0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()).context("no random numbers")?;
    let (limits, old) = (&config.limits, before.map(|before| &before.config));
    let kept = |same: fn(&Config, &Config) -> bool| before.filter(|before| same(&before.config, config));
    let htpasswd = match (&config.auth.htpasswd, kept(|a, b| a.auth.htpasswd == b.auth.htpasswd)) {
        (None, _) => None,
        (Some(_), Some(before)) => before.gate.htpasswd().cloned(),
        (Some(path), None) => Some(Arc::new(Passwords::load(path).map_err(anyhow::Error::msg)?)),
    };
    let hashers = match before {
        Some(before) => Arc::clone(before.gate.hashers()),
        None => Arc::new(Hashers::new(limits.hash_threads, limits.hash_queue)),
    };
    let turns = |config: &Config| (config.limits.auth_concurrency, config.limits.auth_queue);
    let turns = match before.filter(|before| turns(&before.config) == turns(config)) {
        Some(before) => Arc::clone(before.gate.turns()),
        None => Arc::new(Turns::new(limits.auth_concurrency, limits.auth_queue)),
    };
    let logins = |config: &Config| (config.limits.failed_logins, config.limits.failed_login_delay);
    let attempts = match before.filter(|before| logins(&before.config) == logins(config)) {
        Some(before) => Arc::clone(before.gate.attempts()),
        None => Arc::new(Attempts::new(&secret, limits.failed_logins, limits.failed_login_delay)),
    };
    let holds = old.is_some_and(|old| same_answers(old, config));
    Ok(Gate::new(Parts {
        secret,
        before: before.map(|before| Before { gate: &before.gate, holds }),
        policy,
        verdicts: config.verdicts.clone(),
        htpasswd,
        hashers,
        turns,
        auth_timeout: limits.auth_timeout,
        attempts,
    }))
}

/// Whether what was answered under one configuration holds under the other. A site is known to the cache by its number.
fn same_answers(a: &Config, b: &Config) -> bool {
    let listeners = |config: &Config| config.listeners.iter().map(|one| (one.address, one.client_ca.clone())).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = (listeners(a), listeners(b));
    a.auth == b.auth
        && a.sites == b.sites
        && a.upstream_ca == b.upstream_ca
        && a.rules == b.rules
        && a.groups == b.groups
        && a.verdicts == b.verdicts
        && ours == theirs
}
