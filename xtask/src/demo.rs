//! `cargo xtask demo`: a real registry behind the gate and the guard, an image there and back, and the proof.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::lab::cmd::{Cmd, tail};
use crate::lab::curl::{Answer, Curl};
use crate::lab::gate::{Gate, Serve, add_user};
use crate::lab::packages::{self, Need};
use crate::lab::pki::Authority;
use crate::lab::process::{as_nobody, is_root, random, scratch};
use crate::lab::registry::Registry;
use crate::lab::skopeo::{Skopeo, Trust};
use crate::lab::ui::{Step, say, table};
use crate::lab::{image, interrupt};
use crate::{build_ebpf, workspace};

/// Options of `cargo xtask demo`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// End after the round trip instead of waiting for Ctrl-C
    #[arg(long)]
    pub once: bool,
    /// Leave the guard out (it needs root and eBPF)
    #[arg(long)]
    pub no_guard: bool,
    /// Use this program instead of building it
    #[arg(long, value_name = "FILE")]
    pub portcullis: Option<PathBuf>,
}

const NEEDS: [Need; 5] = [packages::REGISTRY, packages::SKOPEO, packages::OPENSSL, packages::CURL, packages::SETPRIV];
const LAYERS: [u64; 6] = [1, 70_000, 1 << 20, 4 << 20, 16 << 20, 40 << 20];
/// Followed by the process id of the demo.
const PINS: &str = "/sys/fs/bpf/portcullis-demo-";
const USER: &str = "alice";
const REPOSITORY: &str = "demo/app:1";

/// Runs the demo.
///
/// # Errors
/// When a step fails or a line of the table is not as it should be.
pub fn run(args: &Args) -> anyhow::Result<()> {
    announce(args)?;
    packages::ensure(&NEEDS)?;
    let program = match &args.portcullis {
        Some(program) => {
            fs::canonicalize(program).with_context(|| format!("--portcullis: cannot find {}", program.display()))?
        }
        None => build(args)?,
    };
    let mut stage = Stage::set(&program, args)?;
    stage.round_trip()?;
    let lines = stage.prove(args)?;
    let rows: Vec<Vec<String>> = lines.iter().map(Line::cells).collect();
    say("");
    say(table(&["", "request", "expected", "got"], &rows));
    let wrong = lines.iter().filter(|line| line.verdict == Verdict::Wrong).count();
    ensure!(wrong == 0, "{wrong} of {} lines are not as they should be", lines.len());
    stage.explain();
    if args.once {
        say("That was --once: everything is stopped and removed now.");
        return Ok(());
    }
    say("Ctrl-C stops and removes everything.");
    stage.wait()?;
    say("\nStopping: the gate, the registry, the guard's pins and all files of the demo.");
    Ok(())
}

fn announce(args: &Args) -> anyhow::Result<()> {
    say("Portcullis demo: a real docker-registry on loopback, behind a login, TLS and a closed port.");
    if args.no_guard {
        say("Without the guard (--no-guard): the registry's own port stays open to this host.");
    } else if !is_root() {
        bail!(
            "the guard loads eBPF programs and needs root: run `sudo env \"PATH=$PATH\" cargo xtask demo`, \
             or see the rest of the demo with `cargo xtask demo --no-guard`"
        );
    }
    Ok(())
}

fn build(args: &Args) -> anyhow::Result<PathBuf> {
    if !args.no_guard {
        build_ebpf::run(&build_ebpf::Args { install: true, ..Default::default() })?;
    }
    workspace::cargo()
        .args(["build", "--release", "--locked", "-p", "portcullis"])
        .log(workspace::log("demo-build")?)
        .step("cargo build --release")?;
    Ok(workspace::target().join("release/portcullis"))
}

/// All that runs during the demo. Fields are dropped from the top: the guard last, so that the port opens only when
/// the registry behind it is gone.
struct Stage {
    gate: Gate,
    registry: Registry,
    _guard: Option<Guard>,
    skopeo: Skopeo,
    creds: String,
    authority: Authority,
    dir: TempDir,
}

impl Stage {
    fn set(program: &Path, args: &Args) -> anyhow::Result<Self> {
        let step = Step::begin("docker-registry on loopback");
        let dir = scratch("demo")?;
        let registry = Registry::start()?;
        step.done(&registry.addr().to_string());

        let step = Step::begin("CA, certificate and user");
        let authority = Authority::create(dir.path(), "Portcullis demo CA")?;
        let identity = authority.issue("gate", &["localhost", "127.0.0.1"])?;
        let trust = dir.path().join("trust");
        fs::create_dir(&trust).context("cannot create a directory")?;
        fs::copy(&authority.cert, trust.join("ca.crt")).context("cannot copy the CA")?;
        let password = format!("{:016x}", random());
        let htpasswd = add_user(program, dir.path(), USER, &password)?;
        step.done(USER);

        let port = registry.addr().port();
        let guard = if args.no_guard { None } else { Some(Guard::enforce(program, port)?) };

        let step = Step::begin("the gate, on TLS");
        let mut serve =
            Serve::new(program)?.tls(&identity).flag("--backend", registry.url()).flag("--htpasswd", &htpasswd);
        if let Some(guard) = &guard {
            serve = serve.flag("--pin", &guard.pin);
        }
        let gate = serve.start()?;
        step.done(&format!("https://{}", gate.addr()));
        let creds = format!("{USER}:{password}");
        let skopeo = Skopeo::new()?;
        Ok(Self { gate, registry, _guard: guard, skopeo, creds, authority, dir })
    }

    fn round_trip(&self) -> anyhow::Result<()> {
        let (there, back) = (self.dir.path().join("image"), self.dir.path().join("image-back"));
        let written = image::write(&there, &LAYERS, random())?;
        let megabytes = written.bytes as f64 / 1e6;
        let name = format!("{}/{REPOSITORY}", self.gate.addr());
        let trust = self.dir.path().join("trust");
        let trust = Trust::CertDir(&trust);

        let step = Step::begin(format!("push {} layers through the gate", LAYERS.len()));
        self.during(|| self.skopeo.push(&there, &name, Some(&self.creds), trust)?.ok())?;
        step.done(&format!("{megabytes:.1} MB"));
        let step = Step::begin("pull them back");
        self.during(|| self.skopeo.pull(&name, &back, Some(&self.creds), trust)?.ok())?;
        step.done(&format!("{megabytes:.1} MB"));
        let step = Step::begin("compare blob for blob");
        let same = image::compare(&there, &back)?;
        step.done(&format!("{} blobs, {} bytes, identical", same.blobs, same.bytes));
        Ok(())
    }

    /// A client's failure is often explained by what the gate wrote.
    fn during<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let result = work();
        interrupt::check()?;
        result.with_context(|| format!("the gate wrote:\n{}", tail(&self.gate.log())))
    }

    fn prove(&self, args: &Args) -> anyhow::Result<Vec<Line>> {
        let front = format!("https://{}/v2/", self.gate.addr());
        let straight = format!("{}/v2/", self.registry.url());
        let through = || Curl::get(&front).ca(&self.authority.cert);
        let wrong = format!("{USER}:not-the-password");
        let mut lines = vec![
            Line::status("GET /v2/ through the gate, no password", 401, &through().send()?, true),
            Line::status("… wrong password", 401, &through().user(&wrong).send()?, true),
            Line::status("… right password", 200, &through().user(&self.creds).send()?, false),
        ];
        let nobody = "straight to the registry's port, as nobody";
        let root = "straight to the registry's port, as root";
        if args.no_guard {
            lines.extend([Line::skipped(nobody), Line::skipped(root)]);
            return Ok(lines);
        }
        let quick = || Curl::get(&straight).timeout(Duration::from_secs(5));
        lines.push(Line::refused(nobody, &quick().send_by(as_nobody("curl"))?));
        lines.push(Line::refused(root, &quick().send()?));
        let again = through().user(&self.creds).send()?;
        lines.push(Line::status("… and the gate still reaches it", 200, &again, false));
        Ok(lines)
    }

    fn explain(&self) {
        let addr = self.gate.addr();
        let password = self.creds.split_once(':').map_or("", |(_, password)| password);
        let ca = self.authority.cert.display();
        say("Try it while the demo runs:");
        say(format!("  install -D -m 644 {ca} /etc/docker/certs.d/{addr}/ca.crt"));
        say(format!("  echo {password} | docker login --username {USER} --password-stdin {addr}"));
        say(format!("  curl --cacert {ca} --user {USER}:{password} https://{addr}/v2/_catalog"));
        say("");
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !interrupt::requested() {
            interrupt::sleep(Duration::from_millis(500));
            if !self.gate.is_running() {
                let after = begun.elapsed().as_secs();
                bail!("the gate ended by itself after {after} s:\n{}", self.gate.log());
            }
        }
        Ok(())
    }
}

/// The guard's programs in the kernel; dropping this takes them out again.
struct Guard {
    program: PathBuf,
    pin: PathBuf,
}

impl Guard {
    fn enforce(program: &Path, port: u16) -> anyhow::Result<Self> {
        let step = Step::begin(format!("the guard, closing port {port}"));
        detach_orphans(program);
        let pin = PathBuf::from(format!("{PINS}{}", std::process::id()));
        // Before the command: what it pinned before it failed has to go as well.
        let guard = Self { program: program.to_owned(), pin };
        let mut cmd = Cmd::new(program).args(["guard", "enforce", "--port", &port.to_string()]);
        cmd = cmd.arg("--pin").arg(&guard.pin).uninterruptible();
        cmd.run().context("the guard cannot be switched on here; `cargo xtask demo --no-guard` shows the rest")?;
        step.done(&guard.pin.display().to_string());
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.pin.exists() {
            return;
        }
        if let Err(error) = detach(&self.program, &self.pin) {
            say(format!("could not remove the guard's pins: {error:#}"));
        }
    }
}

fn detach(program: &Path, pin: &Path) -> anyhow::Result<String> {
    Cmd::new(program).args(["guard", "detach", "--pin"]).arg(pin).uninterruptible().run()
}

/// A demo that was killed leaves its port closed, as a guard should; nobody is behind that port any more.
fn detach_orphans(program: &Path) {
    let entries = fs::read_dir(Path::new(PINS).parent().unwrap_or(Path::new("/"))).into_iter().flatten().flatten();
    for pin in entries.map(|entry| entry.path()) {
        let text = pin.to_string_lossy();
        let owner = text.strip_prefix(PINS).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = detach(program, &pin);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    Wrong,
    Skipped,
}

/// A line of the proof.
#[derive(Debug)]
struct Line {
    what: &'static str,
    expected: String,
    got: String,
    verdict: Verdict,
}

impl Line {
    fn new(what: &'static str, expected: &str, got: String, right: bool) -> Self {
        let verdict = if right { Verdict::Right } else { Verdict::Wrong };
        Self { what, expected: expected.into(), got, verdict }
    }

    fn status(what: &'static str, status: u16, answer: &Answer, challenged: bool) -> Self {
        let challenge = answer.field("www-authenticate");
        let mut got = match answer {
            Answer::Response { status, .. } => status.to_string(),
            other => format!("{other:?}").to_lowercase(),
        };
        if let Some(challenge) = challenge {
            got = format!("{got}, {challenge}");
        }
        let right = answer.status() == Some(status) && challenge.is_some() == challenged;
        let with = if challenged { " with a challenge" } else { "" };
        Self::new(what, &format!("{status}{with}"), got, right)
    }

    fn refused(what: &'static str, answer: &Answer) -> Self {
        let (got, right) = match answer {
            Answer::Refused => ("refused".to_owned(), true),
            Answer::TimedOut => ("dropped".to_owned(), true),
            Answer::Response { status, .. } => (format!("{status}: the port is open"), false),
        };
        Self::new(what, "refused", got, right)
    }

    fn skipped(what: &'static str) -> Self {
        let mut line = Self::new(what, "refused", "skipped: --no-guard".into(), true);
        line.verdict = Verdict::Skipped;
        line
    }

    fn cells(&self) -> Vec<String> {
        let mark = match self.verdict {
            Verdict::Right => "✓",
            Verdict::Wrong => "✗",
            Verdict::Skipped => "-",
        };
        vec![mark.into(), self.what.into(), self.expected.clone(), self.got.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(head: &str, status: u16) -> Answer {
        Answer::Response { status, head: head.into(), body: String::new() }
    }

    #[test]
    fn a_401_without_a_challenge_is_wrong() {
        let with = answer("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", 401);
        let without = answer("HTTP/1.1 401 Unauthorized", 401);
        assert_eq!(Line::status("x", 401, &with, true).verdict, Verdict::Right);
        assert_eq!(Line::status("x", 401, &without, true).verdict, Verdict::Wrong);
        assert_eq!(Line::status("x", 200, &with, false).verdict, Verdict::Wrong);
    }

    #[test]
    fn an_open_port_is_wrong() {
        assert_eq!(Line::refused("x", &answer("HTTP/1.1 200 OK", 200)).verdict, Verdict::Wrong);
        assert_eq!(Line::refused("x", &Answer::Refused).verdict, Verdict::Right);
    }
}
