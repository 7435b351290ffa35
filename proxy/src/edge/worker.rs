//! One worker: a thread, its runtime, its listeners and its connections. Workers share the verdicts and nothing else
//! that is written to on the way of a request.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_channel::mpsc;
use futures_util::StreamExt as _;

use super::balance::{Upstream, Upstreams};
use super::buffers::Buffers;
use super::gate::{Backend, Gate};
use super::guard::metrics::Metrics;
use super::guard::vouch::Voucher;
use super::listener::{self, Bound};
use super::relay::Mover;
use super::requests::Requests;
use super::sys::driver::Driver;
use super::sys::pipe;
use super::telemetry::{Counters, Log};
use super::tls::Server;
use super::upstream::{Pool, Service};
use super::watch::Watch;
use crate::config::{Config, Kind};
use crate::limit::peers::Peers;
use crate::limit::turns::Turns;
use crate::limit::{Millis, MinimumRate};

/// How often idle upstream connections are looked over.
const SWEEP: Duration = Duration::from_secs(2);

/// A site with its upstreams resolved.
#[derive(Debug)]
pub struct Site {
    /// Names in lower case, without port; none: the default site.
    pub hosts: Vec<String>,
    /// What the upstreams speak.
    pub kind: Kind,
    /// How clients reach the site.
    pub public_url: Option<String>,
    /// The upstreams, at least one.
    pub upstreams: Vec<Arc<Upstream>>,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The checked configuration.
    pub config: Config,
    /// The sites, in the configuration's order.
    pub sites: Vec<Site>,
    /// The verdicts.
    pub gate: Gate,
    /// Where the auth backend listens, and its path.
    pub backend: Option<(Service, String)>,
    /// The right to connect to a guarded port.
    pub voucher: Option<Arc<Voucher>>,
    /// The TLS of each listener that has it.
    pub tls: Vec<Arc<Server>>,
    /// TLS handshakes at once.
    pub handshakes: Turns,
    /// What there is to tell of the guard.
    pub guard: Option<Metrics>,
    /// The access log.
    pub log: Log,
    /// Open connections by peer.
    pub peers: Peers,
    /// The counters.
    pub counters: Counters,
    /// Set once the gate finishes what runs and takes nothing new.
    pub draining: AtomicBool,
}

/// What one worker has to itself.
#[derive(Debug)]
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// The requests that it has counted.
    pub requests: Arc<Requests>,
    /// The deadlines of its sockets.
    pub watch: Rc<Watch>,
    /// How it moves bodies.
    pub mover: Mover,
    /// The way to each site's upstreams.
    pub upstreams: Vec<Upstreams>,
    /// Connections to the auth backend.
    pub backend: Option<Backend>,
}

/// The word to accept nothing more and to end when the last exchange has. Dropping the sender says the same.
#[derive(Debug, Clone, Copy)]
pub struct Drain;

impl Worker {
    fn new(shared: &Arc<Shared>) -> Rc<Self> {
        let config = &shared.config;
        let window = Millis::try_from(config.limits.rate_window.as_millis()).unwrap_or(Millis::MAX);
        let watch = Watch::new(MinimumRate { bytes_per_second: config.limits.min_rate, window });
        let pool =
            |service: &Service| Pool::new(service.clone(), Rc::clone(&watch), shared.voucher.clone(), &config.limits);
        let upstreams = |site| Upstreams::new(site, Rc::clone(&watch), &config.limits, pool);
        let upstreams = shared.sites.iter().map(upstreams).collect();
        let backend =
            shared.backend.as_ref().map(|(service, path)| Backend { pool: pool(service), path: path.clone() });
        let mover = Mover {
            pipes: pipe::Pool::new(config.blobs.pipe_size),
            threshold: config.blobs.splice_threshold,
            buffers: Buffers::new(config.blobs.buffer),
        };
        let requests = shared.counters.requests.join();
        Rc::new(Self { requests, watch, mover, upstreams, backend, shared: Arc::clone(shared) })
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            monoio::time::sleep(SWEEP).await;
            self.upstreams.iter().for_each(Upstreams::sweep);
            self.backend.iter().for_each(|backend| backend.pool.sweep());
        }
    }
}

/// Runs a worker on the calling thread until it has drained.
pub fn run(driver: &mut Driver, shared: Arc<Shared>, bound: Vec<Bound>, mut drain: mpsc::UnboundedReceiver<Drain>) {
    driver.block_on(async move {
        let worker = Worker::new(&shared);
        monoio::spawn(Rc::clone(&worker.watch).run());
        monoio::spawn(Rc::clone(&worker).sweep());
        let listeners: Vec<_> = bound.into_iter().map(|bound| Rc::new(bound.settle())).collect();
        for listener in &listeners {
            monoio::spawn(listener::accept(Rc::clone(&worker), Rc::clone(listener)));
        }
        let _ = drain.next().await;
        listeners.iter().for_each(|listener| listener.stop());
        drop(listeners);
        worker.watch.drain();
        worker.drained().await;
    });
}

impl Worker {
    /// Waits until no exchange is left, or the drain's time is up.
    async fn drained(&self) {
        const STEP: Duration = Duration::from_millis(50);
        let deadline =
            self.watch.now() + Millis::try_from(self.shared.config.limits.drain_timeout.as_millis()).unwrap_or(0);
        while self.shared.counters.connections.load(Ordering::Relaxed) > 0 && self.watch.now() < deadline {
            monoio::time::sleep(STEP).await;
        }
    }
}
