//! The addresses of upstreams and auth backends: looked up at the start and again and again, never on a worker.
//!
//! getaddrinfo(3) blocks and tells no lifetime, so each name has a thread that asks it at intervals. Workers see that
//! something changed by one number; they never wait.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::telemetry::say;

/// How often a name that was never found is looked up, at least.
const SOON: Duration = Duration::from_secs(2);

/// A host and port with its addresses.
#[derive(Debug)]
pub struct Name {
    host: String,
    port: u16,
    /// Goes up with each change.
    version: AtomicU64,
    addresses: Mutex<Arc<[SocketAddr]>>,
}

/// Looks a name up. The addresses come sorted: resolvers deal them in any order, and that is no change.
///
/// # Errors
/// When there is none.
fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

impl Name {
    /// A name, looked up for the first time; when it is not found, it has no addresses and the error says why.
    pub fn new(host: &str, port: u16) -> (Arc<Self>, Option<io::Error>) {
        let (addresses, error) = match look_up(host, port) {
            Ok(addresses) => (addresses, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let addresses = Mutex::new(addresses.into());
        (Arc::new(Self { host: host.to_owned(), port, version: AtomicU64::new(0), addresses }), error)
    }

    /// The addresses and their version; look at [`Name::version`] first, it costs nothing.
    pub fn addresses(&self) -> (u64, Arc<[SocketAddr]>) {
        // A change in between makes the addresses newer than their version: then they are fetched once more.
        let version = self.version();
        (version, Arc::clone(&self.addresses.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The version of the addresses.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether it is an address already.
    fn is_literal(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// Looks it up again. What is not found keeps its addresses: a resolver that fails says nothing about them.
    fn refresh(&self, failing: &mut bool) {
        let (_, before) = self.addresses();
        match look_up(&self.host, self.port) {
            Ok(now) => {
                *failing = false;
                if *now == *before {
                    return;
                }
                let shown: Vec<String> = now.iter().map(|address| address.ip().to_string()).collect();
                say(&format!("{} is now {}", self.host, shown.join(", ")));
                *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = now.into();
                self.version.fetch_add(1, Ordering::Release);
            }
            Err(error) if !std::mem::replace(failing, true) => {
                let stay = if before.is_empty() { "" } else { "; its last addresses stay" };
                say(&format!("cannot find {}: {error}{stay}", self.host));
            }
            Err(_) => {}
        }
    }
}

/// Until nobody uses the name any more.
fn keep_fresh_while_used(name: &Weak<Name>, interval: Duration) {
    let mut failing = false;
    while let Some(used) = name.upgrade() {
        let never_found = used.addresses().1.is_empty();
        drop(used);
        thread::sleep(if never_found { interval.min(SOON) } else { interval });
        name.upgrade().iter().for_each(|name| name.refresh(&mut failing));
    }
}

/// Looks these names up again at intervals, from now on; each on a thread of its own, so that none waits for another.
///
/// # Errors
/// When a thread cannot be started.
pub fn keep_fresh(names: Vec<Arc<Name>>, interval: Duration) -> io::Result<()> {
    for name in names.into_iter().filter(|name| !name.is_literal()) {
        let name = Arc::downgrade(&name);
        thread::Builder::new().name("names".to_owned()).spawn(move || keep_fresh_while_used(&name, interval))?;
    }
    Ok(())
}
