//! The gate itself, started the way a person would.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;

use super::cmd::Cmd;
use super::den::Den;
use super::pki::Identity;
use super::process::{Service, Usage, free_address, scratch};

/// A command line of `portcullis serve` in the making.
#[derive(Debug)]
pub struct Serve {
    cmd: Cmd,
    addr: SocketAddr,
    admin: String,
}

impl Serve {
    /// `portcullis serve` on a free loopback port, without the admin listener and with none of our environment.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new(program: &Path) -> anyhow::Result<Self> {
        let addr = free_address()?;
        let mut cmd = Cmd::new(program);
        for (name, _) in std::env::vars_os() {
            let known = name.to_string_lossy();
            if known.starts_with("PORTCULLIS_") || ["BACKEND", "AUTH_BACKEND", "KIND"].contains(&known.as_ref()) {
                cmd = cmd.env_remove(&name);
            }
        }
        Ok(Self { cmd: cmd.arg("serve"), addr, admin: "off".to_owned() })
    }

    /// Starts the admin listener, too.
    #[must_use]
    pub fn admin(mut self, addr: SocketAddr) -> Self {
        self.admin = addr.to_string();
        self
    }

    /// Adds a flag with its value.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.cmd = self.cmd.arg(name).arg(value);
        self
    }

    /// Adds a flag without a value.
    #[must_use]
    pub fn switch(mut self, name: &str) -> Self {
        self.cmd = self.cmd.arg(name);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.cmd = self.cmd.env(name, value);
        self
    }

    /// Serves TLS with this certificate.
    #[must_use]
    pub fn tls(self, identity: &Identity) -> Self {
        self.flag("--tls-cert", &identity.cert).flag("--tls-key", &identity.key)
    }

    /// Listens on this address instead.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    /// Runs inside a den; the thread that starts it has to be inside its network, too.
    #[must_use]
    pub fn within(mut self, den: &Den) -> Self {
        self.cmd = den.wrap(self.cmd);
        self
    }

    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends first; the error shows what it wrote.
    pub fn start(self) -> anyhow::Result<Gate> {
        let dir = scratch("gate")?;
        let cmd = self.cmd.args(["--listen", &self.addr.to_string(), "--admin", &self.admin]);
        let mut service = Service::start("portcullis-serve", cmd, dir.path())?;
        service.wait_listening(self.addr)?;
        Ok(Gate { service, addr: self.addr, _dir: dir })
    }
}

/// A gate that runs until this is dropped.
#[derive(Debug)]
pub struct Gate {
    service: Service,
    addr: SocketAddr,
    _dir: TempDir,
}

impl Gate {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// Waits until it has written `text`, for five seconds at the most: lines are written after the answer is out.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.log().contains(text) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Its processor time and memory now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        self.service.usage()
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.service.exited().is_none()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Asks it to drain and end.
    ///
    /// # Errors
    /// When its exit status cannot be read.
    pub fn stop(self, grace: Duration) -> anyhow::Result<ExitStatus> {
        self.service.stop(grace)
    }
}

/// The stand-alone auth service.
#[derive(Debug)]
pub struct AuthService {
    addr: SocketAddr,
    service: Service,
    _dir: TempDir,
}

impl AuthService {
    /// Starts `portcullis auth-service` over an htpasswd file on a free loopback port.
    ///
    /// # Errors
    /// When it ends first; the error shows what it wrote.
    pub fn start(program: &Path, htpasswd: &Path) -> anyhow::Result<Self> {
        let dir = scratch("auth-service")?;
        let addr = free_address()?;
        let cmd = Cmd::new(program).args(["auth-service", "--listen", &addr.to_string(), "--htpasswd"]).arg(htpasswd);
        let mut service = Service::start("portcullis-auth-service", cmd, dir.path())?;
        service.wait_listening(addr)?;
        Ok(Self { addr, service, _dir: dir })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Kills it (SIGKILL), and waits for its end.
    pub fn kill(&mut self) {
        self.service.kill();
    }

    /// Its URL, as the gate's `--auth-backend` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

/// Makes an htpasswd file with one user by `portcullis user add`, the password on standard input.
///
/// # Errors
/// When the command fails.
pub fn add_user(program: &Path, dir: &Path, name: &str, password: &str) -> anyhow::Result<PathBuf> {
    let file = dir.join("users.htpasswd");
    Cmd::new(program)
        .args(["user", "add", "--htpasswd"])
        .arg(&file)
        .arg(name)
        .input(format!("{password}\n"))
        .run()
        .with_context(|| format!("cannot add the user {name}"))?;
    Ok(file)
}
