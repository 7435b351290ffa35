//! Debian packages: which are missing, and how they come without starting a service that nobody asked for.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};

use super::cmd::{Cmd, which};
use super::process::is_root;
use super::ui::say;
use crate::workspace;

/// A program that is needed, and where Debian and Ubuntu keep it.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// The program's name.
    pub program: &'static str,
    /// The package that brings it.
    pub package: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// The systemd units that the package would start.
    pub units: &'static [&'static str],
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, why, units: &[] }
}

/// The real registry behind the gate.
pub const REGISTRY: Need =
    Need { units: &["docker-registry.service"], ..need("docker-registry", "docker-registry", "the real registry") };
/// The client that pushes and pulls.
pub const SKOPEO: Need = need("skopeo", "skopeo", "pushes and pulls images");
/// The CA and the certificates.
pub const OPENSSL: Need = need("openssl", "openssl", "makes the CA and the certificate");
/// Single requests.
pub const CURL: Need = need("curl", "curl", "asks the gate and the registry");
/// Ends what we started when we are killed, and asks as nobody.
pub const SETPRIV: Need = need("setpriv", "util-linux", "ends what we started when we are killed");
/// The C compiler and linker that Rust's crates ask for.
pub const CC: Need = need("cc", "build-essential", "compiles and links");
/// Peers of the tests that are scripts: a WebSocket, a service that never ends.
pub const PYTHON: Need = need("python3", "python3", "runs the tests' peers that are scripts");
/// TLS by GnuTLS, as wget and apt have it.
pub const GNUTLS: Need = need("gnutls-cli", "gnutls-bin", "a client with another TLS library");
/// TLS by NSS, as Firefox has it.
pub const TSTCLNT: Need = need("tstclnt", "libnss3-tools", "a client with another TLS library");
/// NSS's store of certificates.
pub const CERTUTIL: Need = need("certutil", "libnss3-tools", "tells NSS whom to trust");
/// TLS by Java, which many build tools push with. Too large to be installed for one test.
pub const JAVAC: Need = need("javac", "openjdk-17-jdk-headless", "a client with another TLS library");
/// Looks at a TLS server from outside.
pub const TESTSSL: Need = need("testssl", "testssl.sh", "looks at the gate's TLS from outside");
/// Read what the compiler's counters wrote; the number is that of the compiler's LLVM.
pub const LLVM: Need = need("llvm-profdata-22", "llvm-22", "reads the counters of coverage and of profiles");
/// Turns the clock of one process.
pub const FAKETIME: Need = need("faketime", "faketime", "turns the clock of one process");
/// A peer of the benches.
pub const NGINX: Need = Need { units: &["nginx.service"], ..need("nginx", "nginx-light", "the peer of the benches") };
/// Makes load.
pub const WRK: Need = need("wrk", "wrk", "makes load for the benches");
/// The packet filter next to the guard.
pub const NFT: Need = need("nft", "nftables", "the guard's peer in the benches");
/// Sets what network interfaces offload.
pub const ETHTOOL: Need = need("ethtool", "ethtool", "prepares the cable that the guard is measured on");
/// Keeps programs on processors of their own.
pub const TASKSET: Need = need("taskset", "util-linux", "keeps programs on processors of their own");
/// The loopback interface of an own network namespace.
pub const IP: Need = need("ip", "iproute2", "sets up a network namespace");

/// docker's daemon.
pub const DOCKERD: Need = Need {
    units: &["docker.socket", "docker.service"],
    ..need("dockerd", "docker.io", "docker: pushes and pulls in a namespace of its own")
};
/// docker's client, where [`DOCKERD`]'s package does not bring it along.
pub const DOCKER: Need = need("docker", "docker-cli", "docker's client");
/// The daemon beneath docker, and a client of registries itself.
pub const CONTAINERD: Need =
    Need { units: &["containerd.service"], ..need("containerd", "containerd", "containerd: pushes and pulls") };
/// containerd's client.
pub const CTR: Need = need("ctr", "containerd", "containerd's client");
/// A client without a daemon.
pub const PODMAN: Need = Need {
    units: &["podman.socket", "podman.service", "podman-restart.service", "podman-auto-update.timer"],
    ..need("podman", "podman", "podman: pushes and pulls")
};
/// Another.
pub const BUILDAH: Need = need("buildah", "buildah", "buildah: pushes and pulls");
/// Runs something in a namespace of its own, or in somebody else's.
pub const UNSHARE: Need = need("unshare", "util-linux", "makes namespaces");
/// A balancer that speaks the PROXY protocol.
pub const HAPROXY: Need =
    Need { units: &["haproxy.service"], ..need("haproxy", "haproxy", "a balancer that speaks the PROXY protocol") };
/// Passes an address on from one balancer to the other.
pub const KEEPALIVED: Need = Need {
    units: &["keepalived.service"],
    ..need("keepalived", "keepalived", "moves an address between two balancers")
};
/// Reads rules and metrics as Prometheus does.
pub const PROMTOOL: Need = Need {
    units: &["prometheus.service"],
    ..need("promtool", "prometheus", "reads alert rules and metrics as Prometheus does")
};
/// Starts the containers of an example.
pub const COMPOSE: Need = need("docker-compose", "docker-compose", "starts the example of several containers");
/// A browser, without a window.
pub const CHROMIUM: Need = need("chromium", "chromium", "a browser that reads the status page");
/// Reads requests as another independent server does.
pub const NODE: Need = need("node", "nodejs", "another server that reads what the gate sends");
/// Judges units.
pub const SYSTEMD_ANALYZE: Need = need("systemd-analyze", "systemd", "judges what the systemd units give away");
/// Builds the Debian package.
pub const DPKG_DEB: Need = need("dpkg-deb", "dpkg", "builds the Debian package");
/// Compresses manual pages.
pub const GZIP: Need = need("gzip", "gzip", "compresses manual pages");
/// Archives.
pub const TAR: Need = need("tar", "tar", "writes the image's layer");
/// Virtual machines.
pub const QEMU: Need = need("qemu-system-x86_64", "qemu-system-x86", "boots other kernels");
/// All the programs of a small machine in one, without shared libraries.
pub const BUSYBOX: Need = need("busybox", "busybox-static", "is the user space of the virtual machines");

/// Those of `needs` whose program is not on this machine.
#[must_use]
pub fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().copied().filter(|need| which(need.program).is_none()).collect()
}

/// Installs what is missing, or says how to.
///
/// # Errors
/// When something is missing and we are not root, this is no Debian, or apt fails.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|need| need.package).collect();
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    if which("apt-get").is_none() {
        let programs: Vec<&str> = missing.iter().map(|need| need.program).collect();
        bail!("these programs are missing, and there is no apt-get here to install them: {}", programs.join(" "));
    }
    if !is_root() {
        bail!("some programs are missing; install them and try again:\n    {}", apt_line(&list));
    }
    say("Debian packages to install:");
    for need in &missing {
        say(format!("  {:<16} {}", need.package, need.why));
    }
    let held: Vec<HeldUnit> =
        missing.iter().flat_map(|need| need.units).filter_map(|unit| HeldUnit::hold(unit)).collect();
    apt(&["update"]).step("apt-get update")?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(&packages);
    apt(&install).step(&format!("apt-get install {list}"))?;
    drop(held);
    let absent: Vec<&str> = self::missing(needs).iter().map(|need| need.program).collect();
    if !absent.is_empty() {
        bail!("installed {list}, but these programs are still missing: {}", absent.join(" "));
    }
    Ok(())
}

/// The one line that a person without root has to run.
#[must_use]
pub fn apt_line(packages: &str) -> String {
    format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}")
}

/// An apt-get command that asks nothing and waits for another that runs.
#[must_use]
pub fn apt(args: &[&str]) -> Cmd {
    let log = workspace::log("apt-get").ok();
    let cmd = Cmd::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_MODE", "l")
        // sysvinit: in the single-user runlevel a package starts no service. systemd is held by `HeldUnit`.
        .env("RUNLEVEL", "1")
        .env("PREVLEVEL", "N")
        .uninterruptible();
    match log {
        Some(log) => cmd.log(log),
        None => cmd,
    }
}

/// A unit that its package may install but neither start nor enable, because the project runs its own.
#[derive(Debug)]
struct HeldUnit(&'static str);

impl HeldUnit {
    fn hold(unit: &'static str) -> Option<Self> {
        let systemd_runs = Path::new("/run/systemd/system").exists();
        let known = Cmd::new("systemctl").args(["cat", unit]).run().is_ok();
        if !systemd_runs || known {
            return None;
        }
        let masked = Cmd::new("systemctl").args(["mask", "--runtime", unit]).run().context("cannot hold a unit");
        match masked {
            Ok(_) => Some(Self(unit)),
            Err(error) => {
                say(format!("  {unit} may be started by its package: {error:#}"));
                None
            }
        }
    }
}

impl Drop for HeldUnit {
    fn drop(&mut self) {
        let _ = Cmd::new("systemctl").args(["unmask", "--runtime", self.0]).output();
        let _ = Cmd::new("systemctl").args(["disable", "--now", self.0]).output();
        say(format!("  {} is installed, but neither started nor enabled", self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_missing() {
        let absent = need("no-such-program-here", "no-such-package", "nothing");
        let names: Vec<&str> = missing(&[need("sh", "dash", "shell"), absent]).iter().map(|n| n.program).collect();
        assert_eq!(names, ["no-such-program-here"]);
    }

    #[test]
    fn the_line_for_people_without_root_is_complete() {
        let line = "sudo apt-get update && sudo apt-get install -y --no-install-recommends skopeo curl";
        assert_eq!(apt_line("skopeo curl"), line);
    }
}
