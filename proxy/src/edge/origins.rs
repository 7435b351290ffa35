//! Upstreams and auth backends at the start: names looked up, roots read, connections tried once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::guard::vouch::Voucher;
use super::names::Name;
use super::sys::socket::{self, unconnected};
use super::telemetry::say;
use super::tls::{Trust, client_config};
use super::upstream::Service;
use super::worker::{Shared, Site};
use crate::config::Origin;

/// How long an upstream that refuses connections is tried: a registry that was started with the gate gets the time to
/// come up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes services of origins: each name is looked up once, and the roots are read once, if an origin is `https://`.
#[derive(Debug)]
pub struct Finder<'c> {
    roots: Option<&'c Path>,
    read: Option<Arc<rustls::ClientConfig>>,
    names: Vec<((String, u16), Arc<Name>)>,
}

impl<'c> Finder<'c> {
    /// With the roots in this PEM file, or the system's.
    pub fn new(roots: Option<&'c Path>) -> Self {
        Self { roots, read: None, names: Vec::new() }
    }

    /// Finds a site's upstreams. Where several are configured, a name that is not found is no reason not to start, as long
    /// as there is another.
    ///
    /// # Errors
    /// When none is found, or there is nothing to check a certificate against.
    pub fn all(&mut self, origins: &[Origin]) -> anyhow::Result<Vec<Service>> {
        let (mut services, mut missing) = (Vec::new(), Vec::new());
        for origin in origins {
            let (service, error) = self.service(origin)?;
            services.push(service);
            missing.extend(error.map(|error| not_found(origin, &error)));
        }
        if missing.len() == origins.len() {
            bail!(missing.join("; "));
        }
        missing.iter().for_each(|missing| say(&format!("warning: {missing}; it is looked up again")));
        Ok(services)
    }

    /// Finds one service that nothing can stand in for.
    ///
    /// # Errors
    /// When the name is not found, or there is nothing to check its certificate against.
    pub fn one(&mut self, origin: &Origin) -> anyhow::Result<Service> {
        match self.service(origin)? {
            (service, None) => Ok(service),
            (_, Some(error)) => Err(anyhow!(not_found(origin, &error))),
        }
    }

    /// All names that were asked for.
    pub fn names(self) -> Vec<Arc<Name>> {
        self.names.into_iter().map(|(_, name)| name).collect()
    }

    fn service(&mut self, origin: &Origin) -> anyhow::Result<(Service, Option<io::Error>)> {
        let (name, error) = self.name(origin);
        let trust = if origin.tls { Some(Trust::new(&self.client_config()?, &origin.host)?) } else { None };
        let url = origin.to_string().into();
        Ok((Service { url, authority: origin.authority().into(), trust, name }, error))
    }

    fn name(&mut self, origin: &Origin) -> (Arc<Name>, Option<io::Error>) {
        let key = (origin.host.clone(), origin.port);
        if let Some((_, known)) =
            self.names.iter().find(|(known, name)| *known == key && !name.addresses().1.is_empty())
        {
            return (Arc::clone(known), None);
        }
        let (name, error) = Name::new(&origin.host, origin.port);
        self.names.push((key, Arc::clone(&name)));
        (name, error)
    }

    fn client_config(&mut self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        if let Some(read) = &self.read {
            return Ok(Arc::clone(read));
        }
        let config = client_config(self.roots)?;
        self.read = Some(Arc::clone(&config));
        Ok(config)
    }
}

fn not_found(origin: &Origin, error: &io::Error) -> String {
    format!("cannot find {origin}: {error}; check the name, or write an address")
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
                let names: Vec<&str> = site.upstreams.iter().map(|upstream| upstream.service.url.as_ref()).collect();
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
    let addresses = site.upstreams.iter().map(|upstream| upstream.service.name.addresses().1);
    for address in addresses.flat_map(|addresses| addresses.to_vec()) {
        match knock(address, voucher) {
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
