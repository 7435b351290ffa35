//! Starting and stopping the gate.
//!
//! Everything that can fail does so before the first connection is accepted: files are read, addresses bound, the guard
//! opened and the upstreams tried. What needs root comes first, then the gate becomes an ordinary user and confines itself
//! to its own files, and only then are there threads.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use anyhow::{Context as _, bail};
use futures_channel::mpsc as orders;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::doors::{self, Opened};
use super::generation::{self, Met};
use super::guard::metrics;
use super::guard::vouch::Voucher;
use super::listener::Bound;
use super::passwords::FILE_CHECK;
use super::reload::{Control, Load};
use super::sandbox::Places;
use super::sys::driver::{Driver, Kind as DriverKind};
use super::sys::memory::keep_working_memory;
use super::sys::privilege::{account, become_account, hide_memory, is_root, raise_file_limit};
use super::telemetry::say;
use super::tls::renewal;
use super::worker::{self, Order, Shared};
use super::{admin, handover, health, names, notify, origins, sandbox};
use crate::config::Config;

/// Runs the gate until it is told to stop; `load` reads its configuration, which stands in `file`, whenever it is told to
/// reload.
///
/// # Errors
/// When it cannot start; the text names the thing and the remedy. Nothing is left half-started.
pub fn run(config: Config, file: Option<&Path>, load: Load, take_over: bool) -> anyhow::Result<ExitCode> {
    hide_memory().context("cannot keep this process's memory to itself")?;
    raise_file_limit();
    keep_working_memory();
    let workers = worker_count(&config);
    // First: descriptors that are passed have fixed numbers.
    let Opened { doors, sockets } = doors::open(&config, workers, take_over)?;
    let voucher = Voucher::open(config.guard.pin.as_deref())?.map(Arc::new);
    let admin = admin::bind(config.admin, take_over)?;
    let (guarded, guard) = metrics::meet(&config.guard)?;
    let tls = doors.iter().filter_map(|door| door.settings.tls.clone()).collect();
    let (shared, names) = generation::first(config, Met { voucher, metrics: guard.map(Arc::new) }, tls)?;
    origins::try_all(&shared)?;
    // Looked for as root: afterwards some of the links on the way may be out of sight.
    let places = Places::of(&shared.config, file);
    handover::keep_tables();
    drop_privileges(shared.config.user.as_deref())?;
    sandbox::enter(places)?.iter().for_each(|line| say(line));
    doors::listen(&sockets)?;
    abort_on_panic();
    names::keep_fresh(names, shared.config.limits.resolve_interval).context("cannot start a thread for names")?;
    health::start(&shared).context("cannot start the health checks")?;
    let (threads, senders, driver) = start(&shared, sockets)?;
    announce(&shared, workers, driver, &guarded);
    let control = Control::new(shared, doors, senders, load);
    watch_htpasswd(&control)?;
    renewal::watch(&control)?;
    admin::start(admin, Arc::clone(&control), driver)?;
    obey_signals(&control)?;
    keep_the_watchdog_quiet(&control)?;
    notify::tell("READY=1");
    for thread in threads {
        if thread.join().is_err() {
            bail!("a worker ended with a panic");
        }
    }
    control.current().log.finish();
    Ok(ExitCode::SUCCESS)
}

pub(super) fn worker_count(config: &Config) -> usize {
    // Found out at the start: later the gate may not see what its container allots.
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, Into::into));
    if config.workers == 0 { processors } else { config.workers }
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

type Started = (Vec<thread::JoinHandle<()>>, Vec<orders::UnboundedSender<Order>>, DriverKind);

/// Starts the workers and waits until each has its runtime.
fn start(shared: &Arc<Shared>, bound: Vec<Vec<Bound>>) -> anyhow::Result<Started> {
    shared.log.start().context("cannot open the access log")?;
    shared.gate.start().context("cannot start the password helpers")?;
    let (ready, built) = mpsc::channel();
    let (mut threads, mut senders) = (Vec::new(), Vec::new());
    for (n, sockets) in bound.into_iter().enumerate() {
        let (sender, receiver) = orders::unbounded();
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
    if !shared.tls.is_empty() {
        let by = if shared.ktls.is_some() { "the kernel (kTLS)" } else { "this process" };
        say(&format!("TLS records are sealed by {by}"));
    }
    say(guarded);
    let with = if shared.voucher.is_some() { "with a guard" } else { "without a guard" };
    say(&format!("ready: {workers} workers on {driver}, {with}"));
}

/// Listens for signals on a thread of its own: the first SIGTERM or SIGINT drains, the second stops at once; SIGHUP reads the
/// configuration again, SIGUSR1 opens the access log again.
fn obey_signals(control: &Arc<Control>) -> anyhow::Result<()> {
    let wanted = [SIGTERM, SIGINT, SIGHUP, SIGUSR1];
    let mut signals = signal_hook::iterator::Signals::new(wanted).context("cannot catch signals")?;
    let control = Arc::clone(control);
    let obey = move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => drop(control.reload()),
                SIGUSR1 => match control.current().log.reopen() {
                    Ok(Some(path)) => say(&format!("{}: opened again", path.display())),
                    Ok(None) => say("SIGUSR1: the access log is no file"),
                    Err(error) => say(&format!("warning: cannot open the access log again: {error}")),
                },
                _ if control.drain() => {}
                _ => {
                    say("stopping at once");
                    control.current().log.finish();
                    std::process::exit(1);
                }
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(obey)?;
    Ok(())
}

/// Looks at the htpasswd file every second and takes it when it changed.
fn watch_htpasswd(control: &Arc<Control>) -> anyhow::Result<()> {
    let control = Arc::clone(control);
    let watch = move || {
        loop {
            thread::sleep(FILE_CHECK);
            if let Some(Ok(line) | Err(line)) = control.current().gate.look_at_htpasswd() {
                say(&line);
            }
        }
    };
    thread::Builder::new().name("htpasswd".to_owned()).spawn(watch)?;
    Ok(())
}

/// Tells the service manager's watchdog that all is well, as long as every worker answers.
fn keep_the_watchdog_quiet(control: &Arc<Control>) -> anyhow::Result<()> {
    let Some(every) = notify::watchdog() else { return Ok(()) };
    let (control, every) = (Arc::clone(control), every / 2);
    let watch = move || {
        loop {
            if control.answers(every) {
                notify::tell("WATCHDOG=1");
            } else {
                say("warning: a worker does not answer: the service manager's watchdog is not told that all is well");
            }
            thread::sleep(every);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
    Ok(())
}
