//! Another configuration for a gate that runs: read, checked, and taken by all workers from their next request on; or
//! refused as a whole.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_channel::mpsc as orders;

use super::doors::{self, Door, Opened};
use super::files::inspect_files;
use super::telemetry::{Counters, say};
use super::worker::{Order, Shared, Switch, same_services};
use super::{generation, health, names, notify, origins};
use crate::config::Config;

/// How long a worker may take to look up from what it does.
const ATTENTION: Duration = Duration::from_secs(10);

/// Reads the configuration again, the way it was read at the start.
pub type Load = Box<dyn Fn() -> Result<Config, Vec<String>> + Send + Sync>;

/// Where a running gate takes orders.
pub struct Control {
    current: RwLock<Arc<Shared>>,
    doors: Mutex<Vec<Door>>,
    workers: Vec<orders::UnboundedSender<Order>>,
    load: Load,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// Everything that `serve` could not use of a configuration.
#[must_use]
pub fn inspect(config: &Config) -> Vec<String> {
    let mut errors = inspect_files(config);
    errors.extend(generation::policy(config).err().unwrap_or_default());
    errors
}

impl Control {
    /// For these workers, which serve `shared` at `doors`.
    pub fn new(
        shared: Arc<Shared>,
        doors: Vec<Door>,
        workers: Vec<orders::UnboundedSender<Order>>,
        load: Load,
    ) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(shared), doors: Mutex::new(doors), workers, load })
    }

    /// What holds now.
    pub fn current(&self) -> Arc<Shared> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether every worker answers within a time.
    pub fn answers(&self, within: Duration) -> bool {
        let (alive, heard) = mpsc::channel();
        let asked = self.workers.iter().filter(|worker| worker.unbounded_send(Order::Answer(alive.clone())).is_ok());
        let asked = asked.count();
        // A worker that has drained is not there to answer, and need not.
        drop(alive);
        (0..asked).all(|_| !matches!(heard.recv_timeout(within), Err(mpsc::RecvTimeoutError::Timeout)))
    }

    /// Tells the workers to finish; whether that is news.
    pub fn drain(&self) -> bool {
        let first = !self.current().draining.swap(true, std::sync::atomic::Ordering::SeqCst);
        if first {
            notify::tell("STOPPING=1");
            say("stopping: finishing what runs; the same signal again stops at once");
            self.workers.iter().for_each(|worker| drop(worker.unbounded_send(Order::Drain)));
        }
        first
    }

    /// Reads the configuration again and takes it: what became of it, one line each.
    ///
    /// # Errors
    /// Everything that is wrong with it; then all is as it was.
    pub fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        notify::reloading();
        let outcome = self.exchange();
        notify::tell("READY=1");
        let (counters, refused) = (Arc::clone(&self.current().counters), outcome.is_err());
        Counters::add(&counters.reloads[usize::from(refused)], 1);
        counters.reload_refused.store(u64::from(refused), std::sync::atomic::Ordering::Relaxed);
        match &outcome {
            Ok(lines) => lines.iter().for_each(|line| say(&format!("reload: {line}"))),
            Err(errors) => {
                errors.iter().for_each(|error| say(&format!("reload: error: {error}")));
                say("reload: the configuration stays as it was");
            }
        }
        outcome
    }

    fn exchange(&self) -> Result<Vec<String>, Vec<String>> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        if before.draining.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(vec!["the gate is stopping".to_owned()]);
        }
        let mut config = (self.load)()?;
        let errors = inspect(&config);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut lines = Vec::new();
        let restart = keep_what_cannot_change(&mut config, &before.config);
        let changes = changes(&before.config, &config);
        lines.push(if changes.is_empty() {
            "nothing in the configuration changed".to_owned()
        } else {
            format!("changed: {}", changes.join(", "))
        });
        if !restart.is_empty() {
            lines.push(format!("needs a restart, and stays as it was until then: {}", restart.join(", ")));
        }
        self.take(config, &before, &mut doors).map_err(|error| vec![format!("{error:#}")])?;
        lines.extend(self.look_at_files());
        Ok(lines)
    }

    /// All that can fail is done before the workers hear of it.
    fn take(&self, config: Config, before: &Shared, doors: &mut MutexGuard<'_, Vec<Door>>) -> anyhow::Result<()> {
        let Opened { doors: next, sockets } = doors::change(&config, doors, self.workers.len())?;
        let tls = next.iter().filter_map(|door| door.settings.tls.clone()).collect();
        let (shared, new_names) = generation::next(config, before, tls)?;
        shared.log.start().context("cannot open the access log")?;
        shared.gate.start().context("cannot start the password helpers")?;
        if !same_services(&before.config, &shared.config) {
            origins::try_all(&shared)?;
            names::keep_fresh(new_names, shared.config.limits.resolve_interval)?;
            health::start(&shared).context("cannot start the health checks")?;
        }
        doors::listen(&sockets)?;
        shared.peers.set_most(shared.config.limits.connections_per_peer);
        let stay: Vec<_> = next.iter().map(|door| Arc::clone(&door.settings)).collect();
        let (done, holds) = mpsc::channel();
        for (worker, opened) in self.workers.iter().zip(sockets) {
            let (shared, stay, done) = (Arc::clone(&shared), stay.clone(), done.clone());
            let _ = worker.unbounded_send(Order::Switch(Switch { shared, stay, opened, done }));
        }
        drop(done);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = shared;
        **doors = next;
        for _ in &self.workers {
            holds.recv_timeout(ATTENTION).map_err(|_| {
                anyhow!("the configuration is taken, but a worker is busy with something else: look at its log")
            })?;
        }
        Ok(())
    }

    /// The files that are looked at every second, at once.
    fn look_at_files(&self) -> Vec<String> {
        let shared = self.current();
        let mut lines: Vec<String> =
            shared.gate.look_at_htpasswd().into_iter().map(|(Ok(line) | Err(line))| line).collect();
        for server in &shared.tls {
            let (new, errors) = server.reload();
            lines.extend(errors);
            if new {
                lines.extend(server.expiries().iter().map(|expiry| format!("{}: re-read", expiry.path.display())));
            }
        }
        lines
    }
}

/// Puts back what only a start can change, and names it.
fn keep_what_cannot_change(config: &mut Config, before: &Config) -> Vec<&'static str> {
    fn keep<T: Clone + PartialEq>(now: &mut T, before: &T, name: &'static str, kept: &mut Vec<&'static str>) {
        if now != before {
            now.clone_from(before);
            kept.push(name);
        }
    }
    let mut kept = Vec::new();
    keep(&mut config.workers, &before.workers, "workers", &mut kept);
    keep(&mut config.user, &before.user, "user", &mut kept);
    keep(&mut config.admin, &before.admin, "admin", &mut kept);
    keep(&mut config.ktls, &before.ktls, "ktls", &mut kept);
    keep(&mut config.guard, &before.guard, "guard", &mut kept);
    let (limits, old) = (&mut config.limits, &before.limits);
    keep(&mut limits.hash_threads, &old.hash_threads, "limits.hash_threads", &mut kept);
    keep(&mut limits.hash_queue, &old.hash_queue, "limits.hash_queue", &mut kept);
    kept
}

/// The parts of the configuration that differ, as the file calls them.
fn changes(a: &Config, b: &Config) -> Vec<String> {
    let mut changed = Vec::new();
    for old in &a.listeners {
        match b.listeners.iter().find(|new| new.address == old.address) {
            None => changed.push(format!("listen {} (closed)", old.address)),
            Some(new) if new != old => changed.push(format!("listen {}", old.address)),
            Some(_) => {}
        }
    }
    let new = b.listeners.iter().filter(|new| a.listeners.iter().all(|old| old.address != new.address));
    changed.extend(new.map(|new| format!("listen {} (opened)", new.address)));
    for (differs, name) in [
        (a.sites != b.sites, "site"),
        (a.upstream_ca != b.upstream_ca, "upstream_ca"),
        (a.auth != b.auth, "auth"),
        (a.verdicts != b.verdicts, "verdicts"),
        (a.rules != b.rules, "rule"),
        (a.groups != b.groups, "groups"),
        (a.limits != b.limits, "limits"),
        (a.blobs != b.blobs, "blobs"),
        (a.access_log != b.access_log, "access_log"),
        (a.allow_plaintext_credentials != b.allow_plaintext_credentials, "allow_plaintext_credentials"),
    ] {
        if differs {
            changed.push(name.to_owned());
        }
    }
    changed
}
