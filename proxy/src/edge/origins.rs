//! Upstreams and auth backends at the start: names looked up, roots read, connections tried once.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::guard::vouch::Voucher;
use super::sys::socket::{self, unconnected};
use super::tls::{Trust, client_config};
use super::upstream::Service;
use super::worker::{Shared, Site};
use crate::config::Origin;

/// How long an upstream that refuses connections is tried: a registry that was started with the gate gets the time to
/// come up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks an origin up, and settles whom it has to prove to be.
///
/// # Errors
/// When the name is not found, or there is nothing to check its certificate against.
pub fn resolve(origin: &Origin, roots: &mut Roots<'_>) -> anyhow::Result<Service> {
    let addresses: Vec<SocketAddr> = (origin.host.as_str(), origin.port)
        .to_socket_addrs()
        .map_err(|error| anyhow!("cannot find {origin}: {error}; check the name, or write an address"))?
        .collect();
    let trust = if origin.tls { Some(Trust::new(&roots.config()?, &origin.host)?) } else { None };
    let url = origin.to_string().into();
    Ok(Service { url, authority: origin.authority().into(), addresses: addresses.into(), trust })
}

/// The roots that upstreams are checked against, read once and only where an upstream is `https://`.
#[derive(Debug)]
pub struct Roots<'c> {
    path: Option<&'c Path>,
    read: Option<Arc<rustls::ClientConfig>>,
}

impl<'c> Roots<'c> {
    /// The roots in this PEM file, or the system's.
    pub fn new(path: Option<&'c Path>) -> Self {
        Self { path, read: None }
    }

    fn config(&mut self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        if let Some(read) = &self.read {
            return Ok(Arc::clone(read));
        }
        let config = client_config(self.path)?;
        self.read = Some(Arc::clone(&config));
        Ok(config)
    }
}

/// Connects once to each site's upstreams, with the gate's own right to do so.
///
/// # Errors
/// When none of a site's upstreams takes a connection; the text says what to do.
pub fn try_all(shared: &Shared) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for site in &shared.sites {
        while let Some(error) = unreachable(site, shared.voucher.as_deref()) {
            if Instant::now() >= deadline {
                let names: Vec<&str> = site.services.iter().map(|service| service.url.as_ref()).collect();
                bail!("cannot reach the upstream {}: {error}", names.join(", "));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// The last error when none of the site's upstreams takes a connection.
fn unreachable(site: &Site, voucher: Option<&Voucher>) -> Option<String> {
    let mut last = None;
    for address in site.services.iter().flat_map(|service| service.addresses.iter()) {
        match knock(*address, voucher) {
            Ok(()) => return None,
            Err(error) => last = Some(knock_problem(&error)),
        }
    }
    last.or_else(|| Some("its name has no address".to_owned()))
}

/// Connects and closes at once. The socket is made and vouched for like every other that the workers make.
fn knock(address: SocketAddr, voucher: Option<&Voucher>) -> io::Result<()> {
    let fd = unconnected(&address)?;
    if let Some(voucher) = voucher {
        voucher.vouch(fd.as_fd())?;
    }
    match rustix::net::connect(&fd, &address) {
        Ok(()) => return socket::refuse_self(&fd),
        Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::OUT)];
    let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    if rustix::event::poll(&mut polled, Some(&patience))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    rustix::net::sockopt::socket_error(&fd)??;
    socket::refuse_self(&fd)
}

fn knock_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there: start the registry first, or correct --backend".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "a guard protects it and this gate may not pass: run it as root and name the guard's pins with --pin"
                .to_owned()
        }
        io::ErrorKind::TimedOut => "it does not answer: check the address and any firewall between".to_owned(),
        _ => error.to_string(),
    }
}
