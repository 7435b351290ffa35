//! One worker: a thread, its runtime, its listeners and its connections. Workers share the verdicts and nothing else
//! that is written to on the way of a request.

use std::cell::RefCell;
use std::net::SocketAddr;
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
use super::handover::Successors;
use super::listener::{Bound, Listener, Settings};
use super::relay::Mover;
use super::requests::Requests;
use super::sys::driver::Driver;
use super::sys::pipe;
use super::sys::rooms::Rooms;
use super::telemetry::{Counters, Log, say};
use super::tls::{Server, Support};
use super::upstream::{Pool, Service};
use super::watch::Watch;
use crate::config::{Config, Kind};
use crate::limit::peers::Peers;
use crate::limit::turns::Turns;
use crate::limit::{Millis, MinimumRate};

/// How often idle upstream connections are looked over.
const SWEEP: Duration = Duration::from_secs(2);

/// How long an idle connection may still bring a request when the gate drains.
const LAST_REQUEST: Millis = 1_000;

/// How long connections that began at this gate's sockets may take to be there once another gate gets all new ones: a
/// network's round trip, and one segment that was lost.
const HAND_OVER: Duration = Duration::from_millis(1_500);

/// A site with its upstreams resolved.
#[derive(Debug, Clone)]
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

/// What all workers share while one configuration holds. Another configuration makes another one, of which those parts are
/// the same that did not change, or that outlive every configuration.
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
    pub handshakes: Arc<Turns>,
    /// What the kernel can encrypt, where it is to.
    pub ktls: Option<Arc<Support>>,
    /// What there is to tell of the guard.
    pub guard: Option<Arc<Metrics>>,
    /// The access log.
    pub log: Arc<Log>,
    /// Open connections by peer.
    pub peers: Arc<Peers>,
    /// The counters.
    pub counters: Arc<Counters>,
    /// Set once the gate finishes what runs and takes nothing new.
    pub draining: Arc<AtomicBool>,
}

/// What one worker has to itself while one configuration holds.
#[derive(Debug)]
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// The requests that it has counted.
    pub requests: Arc<Requests>,
    /// The deadlines of its sockets.
    pub watch: Rc<Watch>,
    /// How it moves bodies.
    pub mover: Rc<Mover>,
    /// The way to each site's upstreams.
    pub upstreams: Rc<Vec<Upstreams>>,
    /// Connections to the auth backend.
    pub backend: Option<Rc<Backend>>,
}

/// A worker's thread, which outlives every configuration.
#[derive(Debug)]
pub struct Home {
    /// Where futures of requests live.
    pub rooms: Rooms,
    worker: RefCell<Rc<Worker>>,
    /// Open connections by peer.
    pub peers: Arc<Peers>,
    /// The counters.
    pub counters: Arc<Counters>,
}

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// From the next request on, this configuration holds.
    Switch(Switch),
    /// Say that you are alive.
    Answer(std::sync::mpsc::Sender<()>),
    /// Accept nothing more, and end when the last exchange has. Dropping the sender says the same.
    Drain,
}

/// Another configuration.
#[derive(Debug)]
pub struct Switch {
    /// What the workers share from now on.
    pub shared: Arc<Shared>,
    /// Every address that stays, with what is spoken there from now on; the others are given up.
    pub stay: Vec<Arc<Settings>>,
    /// This worker's sockets of the addresses that are new.
    pub opened: Vec<Bound>,
    /// Told when it holds.
    pub done: std::sync::mpsc::Sender<()>,
}

impl Worker {
    fn new(shared: &Arc<Shared>) -> Rc<Self> {
        Self::with(shared, &Watch::new(rate(&shared.config)), None)
    }

    /// The same worker under another configuration; what did not change goes on.
    fn next(&self, shared: &Arc<Shared>) -> Rc<Self> {
        self.watch.set_rate(rate(&shared.config));
        Self::with(shared, &self.watch, Some(self))
    }

    fn with(shared: &Arc<Shared>, watch: &Rc<Watch>, before: Option<&Self>) -> Rc<Self> {
        let config = &shared.config;
        let pool =
            |service: &Service| Pool::new(service.clone(), Rc::clone(watch), shared.voucher.clone(), &config.limits);
        let (upstreams, backend) = match before {
            Some(before) if same_services(&before.shared.config, config) => {
                (Rc::clone(&before.upstreams), before.backend.clone())
            }
            _ => {
                let upstreams = |site| Upstreams::new(site, &config.limits, pool);
                let backend = |(service, path): &(Service, String)| Backend { pool: pool(service), path: path.clone() };
                let upstreams: Vec<_> = shared.sites.iter().map(upstreams).collect();
                (Rc::new(upstreams), shared.backend.as_ref().map(backend).map(Rc::new))
            }
        };
        let mover = match before {
            Some(before) if before.shared.config.blobs == config.blobs => Rc::clone(&before.mover),
            _ => Rc::new(Mover {
                pipes: pipe::Pool::new(config.blobs.pipe_size),
                threshold: config.blobs.splice_threshold,
                buffers: Buffers::new(config.blobs.buffer),
            }),
        };
        let requests = before.map_or_else(|| shared.counters.requests.join(), |before| Arc::clone(&before.requests));
        Rc::new(Self { requests, watch: Rc::clone(watch), mover, upstreams, backend, shared: Arc::clone(shared) })
    }
}

fn rate(config: &Config) -> MinimumRate {
    let window = Millis::try_from(config.limits.rate_window.as_millis()).unwrap_or(Millis::MAX);
    MinimumRate { bytes_per_second: config.limits.min_rate, window }
}

/// Whether two configurations reach the same services in the same way, so that connections and health can be kept.
pub fn same_services(a: &Config, b: &Config) -> bool {
    a.sites == b.sites && a.upstream_ca == b.upstream_ca && a.auth.backend == b.auth.backend && a.limits == b.limits
}

impl Home {
    /// The worker under the configuration that holds now.
    pub fn worker(&self) -> Rc<Worker> {
        Rc::clone(&self.worker.borrow())
    }

    /// Whether this is the worker under the configuration that holds now.
    pub fn is_current(&self, worker: &Rc<Worker>) -> bool {
        Rc::ptr_eq(&self.worker.borrow(), worker)
    }

    fn switch(&self, shared: &Arc<Shared>) {
        let next = self.worker.borrow().next(shared);
        *self.worker.borrow_mut() = next;
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            monoio::time::sleep(SWEEP).await;
            let worker = self.worker();
            worker.upstreams.iter().for_each(Upstreams::sweep);
            worker.backend.iter().for_each(|backend| backend.pool.sweep());
        }
    }
}

/// Runs a worker on the calling thread until it has drained.
pub fn run(driver: &mut Driver, shared: Arc<Shared>, bound: Vec<Bound>, mut orders: mpsc::UnboundedReceiver<Order>) {
    driver.block_on(async move {
        let worker = RefCell::new(Worker::new(&shared));
        let home = Rc::new(Home {
            rooms: Rooms::default(),
            worker,
            peers: Arc::clone(&shared.peers),
            counters: Arc::clone(&shared.counters),
        });
        drop(shared);
        monoio::spawn(Rc::clone(&home.worker().watch).run());
        monoio::spawn(Rc::clone(&home).sweep());
        let mut doors = Doors::default();
        doors.open(bound, &home);
        while let Some(order) = orders.next().await {
            match order {
                Order::Switch(switch) => {
                    home.switch(&switch.shared);
                    doors.keep(&switch.stay).await;
                    doors.open(switch.opened, &home);
                    let _ = switch.done.send(());
                }
                Order::Answer(alive) => drop(alive.send(())),
                Order::Drain => break,
            }
        }
        // Whoever still asks is not kept waiting.
        drop(orders);
        home.worker().watch.drain();
        doors.leave().await;
        home.worker().drained().await;
    });
}

/// The listeners of one worker, by address.
#[derive(Default)]
struct Doors(Vec<(SocketAddr, Listener)>);

impl Doors {
    fn open(&mut self, bound: Vec<Bound>, home: &Rc<Home>) {
        for bound in bound {
            let address = bound.settings.address;
            match bound.open(home) {
                Ok(listener) => self.0.push((address, listener)),
                Err(error) => say(&format!("warning: a worker does not listen on {address}: {error}")),
            }
        }
    }

    /// Closes all. What is on its way to them while another gate takes over is still taken in.
    async fn leave(&mut self) {
        let leaving: Vec<_> = self.0.drain(..).map(|(_, listener)| (listener.hand_over(), listener)).collect();
        if leaving.iter().any(|(successors, _)| successors.any()) {
            monoio::time::sleep(HAND_OVER).await;
        }
        for (successors, listener) in leaving {
            listener.stop(successors).await;
        }
    }

    /// Tells those that stay what holds now, and closes the others.
    async fn keep(&mut self, stay: &[Arc<Settings>]) {
        // All at once, before anything else has a turn: no connection sees another configuration behind the old address.
        let mut gone = Vec::new();
        for (address, listener) in std::mem::take(&mut self.0) {
            match stay.iter().find(|settings| settings.address == address) {
                Some(settings) => {
                    listener.set(settings);
                    self.0.push((address, listener));
                }
                None => gone.push(listener),
            }
        }
        for listener in gone {
            listener.stop(Successors::default()).await;
        }
    }
}

impl Worker {
    /// Waits until no connection is left. Those that are idle have a moment for one more request, which is told that it is
    /// the last: closed at once, they would lose one that is on its way. The others have the drain's time.
    async fn drained(&self) {
        const STEP: Duration = Duration::from_millis(50);
        let begin = self.watch.now();
        let grace = begin + LAST_REQUEST;
        let deadline = begin + Millis::try_from(self.shared.config.limits.drain_timeout.as_millis()).unwrap_or(0);
        let mut closed = false;
        while self.shared.counters.connections.load(Ordering::Relaxed) > 0 && self.watch.now() < deadline {
            if !closed && self.watch.now() >= grace {
                closed = true;
                self.watch.close_idle();
            }
            monoio::time::sleep(STEP).await;
        }
    }
}
