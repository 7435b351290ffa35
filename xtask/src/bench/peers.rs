//! The proxies under test: each from a configuration that is checked in, each shown to work before it is measured.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::bare::Moves;
use super::world::{CREDS, MANIFEST_TARGET, World, manifest};
use crate::lab::curl::{Answer, Curl};
use crate::lab::gate::{Gate, Serve};
use crate::lab::process::{Service, Usage, free_address, random};
use crate::workspace;

const COMMON: [(&str, &str); 4] = [
    ("nginx-common.conf", include_str!("../../../benches/peers/nginx-common.conf")),
    ("nginx-http.conf", include_str!("../../../benches/peers/nginx-http.conf")),
    ("nginx-tuned.conf", include_str!("../../../benches/peers/nginx-tuned.conf")),
    ("nginx-tls.conf", include_str!("../../../benches/peers/nginx-tls.conf")),
];

/// All load comes from one address, which is a peer's with very many connections.
const LIMITS: &str = "[limits]\nconnections = 20000\nconnections_per_peer = 0\n";

/// How long a gate has to let its clients go.
const FAREWELL: Duration = Duration::from_secs(20);

/// What a candidate is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Ours, with these flags beside those that every bench needs, and the text of a configuration file.
    Gate(Vec<String>, String),
    /// nginx with one of the checked-in configurations.
    Nginx(&'static str),
    /// HAProxy with one of them.
    Haproxy(&'static str),
    /// A relay of [`super::bare`].
    Bare(Moves),
    /// The relay of `benches/bare_tls.rs`.
    BareTls,
    /// No proxy at all.
    Direct,
}

/// The checked-in configurations.
pub(super) mod configurations {
    pub(in crate::bench) const NGINX_2014: &str = include_str!("../../../benches/peers/nginx-2014.conf");
    pub(in crate::bench) const NGINX_PLAIN: &str = include_str!("../../../benches/peers/nginx-plain.conf");
    pub(in crate::bench) const NGINX_AUTH: &str = include_str!("../../../benches/peers/nginx-auth.conf");
    pub(in crate::bench) const NGINX_CACHED: &str = include_str!("../../../benches/peers/nginx-cached.conf");
    pub(in crate::bench) const NGINX_BASIC: &str = include_str!("../../../benches/peers/nginx-basic.conf");
    pub(in crate::bench) const HAPROXY_PLAIN: &str = include_str!("../../../benches/peers/haproxy-plain.cfg");
    pub(in crate::bench) const HAPROXY_AUTH: &str = include_str!("../../../benches/peers/haproxy-auth.cfg");
}

/// A proxy to start.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) name: String,
    kind: Kind,
    /// Whether it must refuse whoever shows no credentials.
    login: bool,
    tls: bool,
    epoll: bool,
    htpasswd: Option<PathBuf>,
    backend: Option<SocketAddr>,
    /// Idle connections that an nginx keeps to what it stands before.
    kept: usize,
}

impl Candidate {
    pub(super) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            login: true,
            tls: false,
            epoll: false,
            htpasswd: None,
            backend: None,
            kept: 256,
        }
    }

    /// The gate as people run it, asking the auth service.
    pub(super) fn gate(name: &str) -> Self {
        Self::new(name, Kind::Gate(Vec::new(), String::new()))
    }

    pub(super) fn without_login(mut self) -> Self {
        self.login = false;
        self
    }

    pub(super) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Refuses io_uring to the gate.
    pub(super) fn on_epoll(mut self) -> Self {
        self.epoll = true;
        self
    }

    /// Checks passwords with this file instead of asking the auth service.
    pub(super) fn htpasswd(mut self, file: &Path) -> Self {
        self.htpasswd = Some(file.to_owned());
        self
    }

    /// Keeps so many idle connections to what it stands before, instead of 256.
    pub(super) fn keeping(mut self, connections: usize) -> Self {
        self.kept = connections;
        self
    }

    /// Stands before something else than the stub.
    pub(super) fn before(mut self, backend: SocketAddr) -> Self {
        self.backend = Some(backend);
        self
    }

    /// The same, unless it has been told where to stand.
    pub(super) fn or_before(mut self, backend: SocketAddr) -> Self {
        self.backend = self.backend.or(Some(backend));
        self
    }

    /// Starts it without a look at what it does.
    pub(super) fn start(&self, world: &World) -> anyhow::Result<Peer> {
        let home = world.dir.path().join(format!("peer-{:x}", random()));
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let addr = free_address()?;
        let (addr, process) = match &self.kind {
            Kind::Gate(flags, config) => {
                let gate = self.start_gate(world, &home, flags, config)?;
                (gate.addr(), Process::Gate(gate))
            }
            Kind::Nginx(text) => {
                let cmd = world.as_proxy().args(self.template(world, text, addr, "ssl").nginx(&home)?);
                (addr, started("nginx", cmd, &home, addr)?)
            }
            Kind::Haproxy(text) => {
                let file = self.template(world, text, addr, &self.haproxy_certificate(world, &home)?).haproxy(&home)?;
                let cmd = world.as_proxy().args(["haproxy", "-q", "-db", "-f"]).arg(file);
                (addr, started("haproxy", cmd, &home, addr)?)
            }
            Kind::Bare(moves) => {
                let exe = std::env::current_exe().context("cannot tell which program this is")?;
                let backend = self.backend.unwrap_or(world.registry);
                let cmd = world.as_proxy().arg(exe).args(["bare-relay", &addr.to_string(), &backend.to_string()]);
                let cmd = cmd.args(["--moves", moves.word()]);
                (addr, started("bare-relay", cmd, &home, addr)?)
            }
            Kind::BareTls => {
                let backend = self.backend.unwrap_or(world.registry);
                let cmd = world.as_proxy().arg(bare_tls()).args([addr.to_string(), backend.to_string()]);
                let cmd = cmd.args([&world.identity.cert, &world.identity.key]);
                (addr, started("bare-tls", cmd, &home, addr)?)
            }
            Kind::Direct => (self.backend.unwrap_or(world.registry), Process::None),
        };
        Ok(Peer { name: self.name.clone(), addr, tls: self.tls, process })
    }

    /// Starts it and makes sure that it does what it is measured for.
    pub(super) fn start_checked(&self, world: &World) -> anyhow::Result<Peer> {
        let peer = self.start(world)?;
        let answer = peer.ask(world, MANIFEST_TARGET, Some(CREDS))?;
        let Answer::Response { status, body, .. } = answer else { bail!("{}: {answer:?}", self.name) };
        ensure!(status == 200 && body == manifest(), "{} answers {status} with {body:?}", self.name);
        let stranger = peer.ask(world, MANIFEST_TARGET, None)?.status();
        let expected = if self.login { 401 } else { 200 };
        ensure!(stranger == Some(expected), "{} answers {stranger:?} to somebody without credentials", self.name);
        Ok(peer)
    }

    fn start_gate(&self, world: &World, home: &Path, flags: &[String], config: &str) -> anyhow::Result<Gate> {
        let program = if self.epoll { &world.on_epoll } else { &world.program };
        let mut serve = Serve::new(program)?
            .flag("--backend", format!("http://{}", self.backend.unwrap_or(world.registry)))
            .flag("--workers", world.cores.workers().to_string());
        if !flags.iter().any(|flag| flag == "--access-log") {
            serve = serve.flag("--access-log", "off");
        }
        serve = match &self.htpasswd {
            Some(file) => serve.flag("--htpasswd", file),
            None => serve.flag("--auth-backend", format!("http://{}", world.auth)),
        };
        for flag in flags {
            serve = serve.switch(flag);
        }
        let file = home.join("portcullis.toml");
        fs::write(&file, format!("{config}{LIMITS}")).with_context(|| format!("cannot write {}", file.display()))?;
        serve = serve.flag("--config", file);
        if self.tls {
            serve = serve.tls(&world.identity);
        }
        serve.start()
    }

    fn template(&self, world: &World, text: &str, addr: SocketAddr, tls: &str) -> Template {
        let tls_listen = if self.tls { format!(" {tls}") } else { String::new() };
        let tls_lines = match (&self.kind, self.tls) {
            (_, false) => "",
            (Kind::Haproxy(_), true) => {
                "ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
                 ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256"
            }
            (_, true) => "include nginx-tls.conf;",
        };
        let htpasswd = self.htpasswd.as_deref().unwrap_or(Path::new("/dev/null"));
        Template::new(text, addr, &world.cores.workers().to_string())
            .with("TLS-LISTEN", &tls_listen)
            .with("TLS", tls_lines)
            .with("BACKEND", &self.backend.unwrap_or(world.registry).to_string())
            .with("KEPT", &self.kept.to_string())
            .with("AUTH", &world.auth.to_string())
            .with("HTPASSWD", &htpasswd.display().to_string())
            .with("CERT", &world.identity.cert.display().to_string())
            .with("KEY", &world.identity.key.display().to_string())
    }

    /// HAProxy wants certificate and key in one file.
    fn haproxy_certificate(&self, world: &World, home: &Path) -> anyhow::Result<String> {
        let read = |file: &Path| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
        let both = read(&world.identity.cert)? + &read(&world.identity.key)?;
        let file = home.join("both.pem");
        fs::write(&file, both).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(format!("ssl crt {}", file.display()))
    }
}

/// Where [`super::build_yardstick`] puts the relay that does nothing but TLS.
pub(super) fn bare_tls() -> PathBuf {
    workspace::target().join("release/examples/bare-tls")
}

fn started(name: &str, cmd: crate::lab::cmd::Cmd, home: &Path, addr: SocketAddr) -> anyhow::Result<Process> {
    let mut service = Service::start(name, cmd, home)?;
    service.wait_listening(addr)?;
    Ok(Process::Other(service))
}

/// A configuration with `@NAME@`s in it.
#[derive(Debug)]
pub(super) struct Template {
    text: String,
    values: Vec<(&'static str, String)>,
}

impl Template {
    pub(super) fn new(text: &str, addr: SocketAddr, workers: &str) -> Self {
        let text = text.replace("@LISTEN@", "@LISTEN@@TLS-LISTEN@");
        let values = vec![("LISTEN", addr.to_string()), ("WORKERS", workers.to_owned())];
        Self { text, values }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.values.push((name, value.to_owned()));
        self
    }

    fn fill(&self, text: &str) -> String {
        let filled =
            self.values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value));
        filled.replace("@TLS-LISTEN@", "")
    }

    /// Writes it and what it includes to `home`; the words of the command that runs it.
    pub(super) fn nginx(mut self, home: &Path) -> anyhow::Result<Vec<String>> {
        let dir = home.display().to_string();
        self.values.push(("DIR", dir.clone()));
        fs::create_dir_all(home).with_context(|| format!("cannot create {dir}"))?;
        for (name, text) in COMMON.into_iter().chain([("nginx.conf", self.text.as_str())]) {
            fs::write(home.join(name), self.fill(text)).with_context(|| format!("cannot write {dir}/{name}"))?;
        }
        Ok(["nginx", "-p", &dir, "-c", "nginx.conf", "-e", "stderr"].map(String::from).to_vec())
    }

    fn haproxy(self, home: &Path) -> anyhow::Result<PathBuf> {
        let file = home.join("haproxy.cfg");
        fs::write(&file, self.fill(&self.text)).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

/// A proxy that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) addr: SocketAddr,
    pub(super) tls: bool,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Gate(Gate),
    Other(Service),
    None,
}

impl Peer {
    fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Gate(gate) => Some(gate.pid()),
            Process::Other(service) => Some(service.pid()),
            Process::None => None,
        }
    }

    /// It and its children.
    pub(super) fn pids(&self) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let lists = tasks(pid).into_iter().filter_map(|task| fs::read_to_string(task.join("children")).ok());
        let children = lists.collect::<String>();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([pid]).collect()
    }

    /// Processor time and memory of it and its children.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let Some(pid) = self.pid() else { return Ok(Usage::default()) };
        let mut usage = Usage::of_tree(pid)?;
        // User and system time together, as the scheduler has it: to the nanosecond instead of the tick. Threads that
        // have ended are not in it, and no peer has any that matter.
        let runs = self.pids().into_iter().flat_map(tasks).filter_map(|task| {
            let text = fs::read_to_string(task.join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        });
        let exact = runs.sum::<f64>() / 1e9;
        if exact > 0.0 {
            usage.cpu = exact;
        }
        Ok(usage)
    }

    /// Bytes that it and its children have written to files so far, as the kernel counts them.
    pub(super) fn written(&self) -> f64 {
        let written = self.pids().into_iter().filter_map(|pid| {
            let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
            io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse::<f64>().ok()
        });
        written.sum()
    }

    /// Tells a gate to end and waits until it has.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        if let Process::Gate(gate) = self.process {
            let status = gate.stop(FAREWELL)?;
            ensure!(status.success(), "{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Whether there is a process to be measured.
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.process, Process::None)
    }

    pub(super) fn url(&self, target: &str) -> String {
        format!("{}://{}{target}", if self.tls { "https" } else { "http" }, self.addr)
    }

    pub(super) fn ask(&self, world: &World, target: &str, user: Option<&str>) -> anyhow::Result<Answer> {
        let url = self.url(target);
        let curl = Curl::get(&url).ca(&world.ca);
        match user {
            Some(user) => curl.user(user).send(),
            None => curl.send(),
        }
    }
}

/// The directories of a process' threads.
fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
