//! The addresses that the gate listens on: bound at the start, passed by a service manager, or changed while it runs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::handover;
use super::listener::{Bound, Settings};
use super::sys::socket;
use super::tls::Server;
use crate::config::{Config, Listener};

/// One address, as it was configured and as it is served.
#[derive(Debug)]
pub struct Door {
    configured: Listener,
    /// What is spoken there.
    pub settings: Arc<Settings>,
}

/// Doors, and sockets for each worker.
#[derive(Debug)]
pub struct Opened {
    /// All doors.
    pub doors: Vec<Door>,
    /// For each worker the sockets that it does not have yet. They listen once [`listen`] says so.
    pub sockets: Vec<Vec<Bound>>,
}

/// Opens all doors at the start; `beside` lets another gate listen on the same addresses.
///
/// # Errors
/// When a certificate cannot be used or an address not be had; the text says what to do.
pub fn open(config: &Config, workers: usize, beside: bool) -> anyhow::Result<Opened> {
    let mut passed = handover::inherited()?;
    let opened = build(config, &[], workers, |address| {
        let (ours, others) = std::mem::take(&mut passed).into_iter().partition(|(at, _)| at == address);
        passed = others;
        if !ours.is_empty() {
            return Ok((share(&ours, workers)?, true));
        }
        Ok((bind(address, workers, beside)?, false))
    })?;
    if let Some((address, _)) = passed.first() {
        bail!(
            "the service manager passes a socket for {address}, which no [[listen]] names: let ListenStream= of the \
             socket unit and the addresses here agree"
        );
    }
    Ok(opened)
}

/// Doors for another configuration: those whose address stays are kept.
///
/// # Errors
/// As [`open`].
pub fn change(config: &Config, before: &[Door], workers: usize) -> anyhow::Result<Opened> {
    build(config, before, workers, |address| Ok((bind(address, workers, false)?, false)))
}

/// Opens the doors, all or none, when everything else is in order: nobody is let in to wait for a gate that then fails.
///
/// # Errors
/// When another process was quicker.
pub fn listen(sockets: &[Vec<Bound>]) -> anyhow::Result<()> {
    for bound in sockets.iter().flatten().filter(|bound| !bound.inherited) {
        let address = bound.settings.address;
        socket::start_listening(&bound.fd)
            .map_err(|error| anyhow!("cannot listen on {address}: {}", bind_problem(&error)))?;
    }
    Ok(())
}

type Sockets = (Vec<OwnedFd>, bool);

fn build(
    config: &Config,
    before: &[Door],
    workers: usize,
    mut sockets_at: impl FnMut(&mut SocketAddr) -> io::Result<Sockets>,
) -> anyhow::Result<Opened> {
    let mut opened = Opened { doors: Vec::new(), sockets: (0..workers).map(|_| Vec::new()).collect() };
    for configured in &config.listeners {
        let old = before.iter().find(|door| door.configured.address == configured.address);
        let mut settings = Settings {
            address: old.map_or(configured.address, |door| door.settings.address),
            tls: tls(configured, old)?,
            proxy_protocol: configured.proxy_protocol.clone(),
            refuses_credentials: configured.exposes_credentials() && !config.allow_plaintext_credentials,
            redirect: configured.redirect.clone(),
            sockets: workers,
            open: Mutex::new(workers),
        };
        let (sockets, inherited) = match old {
            Some(_) => (Vec::new(), false),
            None => sockets_at(&mut settings.address)
                .map_err(|error| anyhow!("cannot listen on {}: {}", configured.address, bind_problem(&error)))?,
        };
        let settings = Arc::new(settings);
        for (n, fd) in sockets.into_iter().enumerate() {
            // More sockets than workers may be passed; none may be left without one.
            opened.sockets[n % workers].push(Bound { fd, inherited, settings: Arc::clone(&settings) });
        }
        opened.doors.push(Door { configured: configured.clone(), settings });
    }
    Ok(opened)
}

/// The server side of TLS goes on, with its tickets, where its files are the same.
fn tls(configured: &Listener, old: Option<&Door>) -> anyhow::Result<Option<Arc<Server>>> {
    if let Some(old) = old
        && (&old.configured.tls, &old.configured.client_ca) == (&configured.tls, &configured.client_ca)
    {
        return Ok(old.settings.tls.clone());
    }
    Ok(Server::load(configured).map_err(anyhow::Error::msg)?.map(Arc::new))
}

/// The service manager's sockets for every worker: several may wait for one socket, and one of them gets a connection.
fn share(passed: &[(SocketAddr, OwnedFd)], workers: usize) -> io::Result<Vec<OwnedFd>> {
    passed.iter().cycle().take(workers.max(passed.len())).map(|(_, fd)| fd.try_clone()).collect()
}

/// One socket for each worker. SO_REUSEPORT would also let a second gate share the port unseen, so a socket without it
/// asks first whether the port is free. Port 0 becomes one free port for all.
fn bind(address: &mut SocketAddr, workers: usize, beside: bool) -> io::Result<Vec<OwnedFd>> {
    if !beside {
        let probe = patiently(|| socket::bound(*address, false))?;
        if address.port() == 0 {
            *address = rustix::net::getsockname(&probe)?.try_into()?;
        }
    }
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
            "ports below 1024 need root or CAP_NET_BIND_SERVICE: start it so, name the address in portcullis.socket, or \
             choose another with --listen"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: `ip address` lists those that it has".to_owned()
        }
        _ => error.to_string(),
    }
}
