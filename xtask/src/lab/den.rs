//! A network and a mount namespace of its own: an address that is not loopback, where clients insist on real TLS, and
//! the fixed places where they keep things (`/etc/docker`, `/run`, `/var/lib`) empty and nobody else's.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use super::cmd::{Cmd, tail};
use super::process::{Service, free_port, is_root, scratch};

/// The address of every den; it is on the den's own loopback interface and on nothing outside it.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const READY: &str = "ready";

/// Make the interface and the empty places, and stay.
const INTERFACE: &str = "ip link set lo up
ip address add ADDRESS/32 dev lo";
const PLACES: &str = "for place in /etc/docker /run /var/lib; do mount -t tmpfs tmpfs $place; done
echo ready
exec sleep infinity";

/// The namespaces, until this is dropped and the last process in them has ended.
#[derive(Debug)]
pub struct Den {
    holder: Service,
    _dir: TempDir,
}

impl Den {
    /// Why this machine cannot have one, if it cannot.
    #[must_use]
    pub fn why_not() -> Option<String> {
        if !is_root() {
            return Some("not root: namespaces of its own take root".into());
        }
        if !Path::new("/etc/docker").is_dir() {
            return Some("there is no /etc/docker to hide in a mount namespace".into());
        }
        let tried = Cmd::new("unshare").args(["--net", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"]).output();
        match tried {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(format!("namespaces are refused here: {}", output.everything().trim())),
            Err(error) => Some(format!("namespaces are refused here: {error:#}")),
        }
    }

    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start() -> anyhow::Result<Self> {
        let script = format!("set -e\n{INTERFACE}\n{PLACES}").replace("ADDRESS", &ADDRESS.to_string());
        Self::by(Cmd::new("unshare").args(["--net", "--mount", "sh", "-c", &script]))
    }

    /// Makes one with empty places, but in the caller's network: for who is in one of its own already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start_in_this_network() -> anyhow::Result<Self> {
        Self::by(Cmd::new("unshare").args(["--mount", "sh", "-c", &format!("set -e\n{PLACES}")]))
    }

    fn by(cmd: Cmd) -> anyhow::Result<Self> {
        let dir = scratch("den")?;
        let mut holder = Service::start("den", cmd, dir.path())?;
        let end = Instant::now() + Duration::from_secs(30);
        while !holder.log().contains(READY) {
            if holder.exited().is_some() || Instant::now() > end {
                bail!("cannot make a namespace:\n{}", tail(&holder.log()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { holder, _dir: dir })
    }

    /// A free port on its address.
    ///
    /// # Errors
    /// When there is none.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(IpAddr::V4(ADDRESS), free_port()?))
    }

    /// The words that start a command inside.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        let space = |name: &str| format!("/proc/{}/ns/{name}", self.holder.pid());
        let words = ["nsenter".into(), format!("--net={}", space("net")), format!("--mount={}", space("mnt"))];
        words.into_iter().chain(["--".into()]).collect()
    }

    /// The command, inside.
    #[must_use]
    pub fn wrap(&self, cmd: Cmd) -> Cmd {
        cmd.by(&self.prefix())
    }

    /// Trusts a CA for one address, as docker, podman and buildah do: by a file in `/etc/docker/certs.d`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn trust(&self, addr: SocketAddr, ca: &Path) -> anyhow::Result<()> {
        // The namespace's own root directory: nothing of this is written outside it.
        let dir = format!("/proc/{}/root/etc/docker/certs.d/{addr}", self.holder.pid());
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {dir}"))?;
        fs::copy(ca, format!("{dir}/ca.crt")).with_context(|| format!("cannot write {dir}/ca.crt"))?;
        Ok(())
    }

    /// Runs `task` on a thread in this network, under the calling thread's name; sockets and commands that it opens are
    /// in this network as well.
    ///
    /// # Errors
    /// When the network cannot be entered.
    ///
    /// # Panics
    /// When `task` does.
    pub fn within<T: Send>(&self, task: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = format!("/proc/{}/ns/net", self.holder.pid());
        let space = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let name = thread::current().name().unwrap_or("den").to_owned();
        thread::scope(|scope| {
            let inside = move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter")?;
                Ok(task())
            };
            let thread = thread::Builder::new().name(name).spawn_scoped(scope, inside).context("cannot start")?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_is_inside_is_not_outside() {
        if let Some(reason) = Den::why_not() {
            return crate::lab::skips::skip(&reason);
        }
        let den = Den::start().unwrap();
        let addr = den.address().unwrap();
        let listener = den.within(|| TcpListener::bind(addr).unwrap()).unwrap();
        den.within(|| TcpStream::connect(addr).unwrap()).unwrap();
        assert!(TcpListener::bind(addr).is_err(), "the address is outside, too");
        let file = den.wrap(Cmd::new("ls").arg("-A").arg("/etc/docker"));
        assert_eq!(file.run().unwrap(), "");
        den.trust(addr, Path::new("/etc/hostname")).unwrap();
        let outside = format!("/etc/docker/certs.d/{addr}");
        assert!(!Path::new(&outside).exists());
        den.wrap(Cmd::new("cat").arg(format!("{outside}/ca.crt"))).run().unwrap();
        drop(listener);
    }
}
