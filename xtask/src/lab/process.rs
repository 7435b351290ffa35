//! Processes that stay: started, watched and, whatever happens to us, ended.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::cmd::{Cmd, end_group, prefixed, tail};
use super::interrupt;
use super::secrets;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// A process that is ended, with all that it started, when this is dropped, and by the kernel when we are killed.
#[derive(Debug)]
pub struct Service {
    name: String,
    shown: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts `cmd`; its output goes to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, cmd: Cmd, dir: &Path) -> anyhow::Result<Self> {
        let shown = cmd.shown();
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().context("cannot share the log")?;
        let mut command = dies_with_us(&cmd.into_command());
        command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("cannot start `{shown}`"))?;
        Ok(Self { name: name.to_owned(), shown, child, log })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.seek(SeekFrom::Start(0));
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until `ready` says so; the error shows what the process wrote.
    ///
    /// # Errors
    /// When the process ends or the time is up first.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = self.exited() {
                bail!("{} ended ({status}) before it was {what}: `{}`\n{}", self.name, self.shown, tail(&self.log()));
            }
            if ready() {
                return Ok(());
            }
            interrupt::check()?;
            if Instant::now() > end {
                let waited = START_DEADLINE.as_secs();
                bail!("{} was not {what} after {waited} s: `{}`\n{}", self.name, self.shown, tail(&self.log()));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends or the time is up first.
    pub fn wait_listening(&mut self, addr: SocketAddr) -> anyhow::Result<()> {
        self.wait_until(&format!("listening on {addr}"), || {
            TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()
        })
    }

    /// Asks it to end (SIGTERM), waits, and kills it when `grace` is over.
    ///
    /// # Errors
    /// When its exit status cannot be read.
    pub fn stop(mut self, grace: Duration) -> anyhow::Result<ExitStatus> {
        end_group(&mut self.child, grace);
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Kills it and all that it started (SIGKILL), and waits for its end.
    pub fn kill(&mut self) {
        end_group(&mut self.child, Duration::ZERO);
    }

    /// Its processor time and memory now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.pid())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        end_group(&mut self.child, Duration::ZERO);
        if self.name.starts_with("portcullis")
            && let Some(password) = secrets::leaked(&self.log())
        {
            // A panic while dropping could be swallowed by another one; this cannot.
            eprintln!("the password {password:?} stands in the output of `{}`:\n{}", self.shown, self.log());
            std::process::abort();
        }
    }
}

/// `setpriv` sets the parent-death signal between fork and exec; doing that here would take `unsafe`.
fn dies_with_us(command: &Command) -> Command {
    prefixed(command, &["setpriv", "--pdeathsig", "KILL", "--"])
}

type Order = (Command, Sender<io::Result<Child>>);

/// The parent-death signal comes when the *thread* that forked ends, and test threads end early.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, answered) = channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

/// A loopback port that nobody listens on, below the range that the kernel hands to outgoing connections.
///
/// # Errors
/// When none is found.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let port = 10_000 + u16::try_from(random() % 20_000)?;
        let free = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if !given.contains(&port) && free() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free port between 10000 and 30000")
}

/// A free port on 127.0.0.1 as an address.
///
/// # Errors
/// When none is found.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

/// A number that differs from run to run.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A directory of its own under the system's one for temporary files, gone when dropped.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(name: &str) -> anyhow::Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix(&format!("portcullis-{name}-")).tempdir();
    made.context("cannot create a temporary directory")
}

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all its threads, ended ones too, in seconds.
    pub cpu: f64,
    /// The part of it outside of the kernel.
    pub user: f64,
    /// Resident memory now, in bytes.
    pub rss: u64,
    /// The most it ever was, in bytes.
    pub peak_rss: u64,
}

impl Usage {
    /// Of one process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The name in parentheses may hold spaces; what follows it does not.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let status = read("status")?;
        let kilobytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self {
            cpu: (ticks(11) + ticks(12)) as f64 / second,
            user: ticks(11) as f64 / second,
            rss: kilobytes("VmRSS"),
            peak_rss: kilobytes("VmHWM"),
        })
    }

    /// Of a process and its children, added up.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of_tree(pid: u32) -> anyhow::Result<Self> {
        let mut sum = Self::of(pid)?;
        for child in children(pid) {
            if let Ok(usage) = Self::of(child) {
                sum.cpu += usage.cpu;
                sum.user += usage.user;
                sum.rss += usage.rss;
                sum.peak_rss += usage.peak_rss;
            }
        }
        Ok(sum)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// What a gate's descriptors lead to. It hides them from other processes of its user, so that takes root.
///
/// # Errors
/// When it is gone, or we are not root.
pub fn descriptors(pid: u32) -> anyhow::Result<Vec<PathBuf>> {
    let dir = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {dir}, which takes root"))?;
    Ok(entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect())
}

/// Whether we run as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as nobody, without groups; needs root.
#[must_use]
pub fn as_nobody(program: impl AsRef<OsStr>) -> Cmd {
    Cmd::new("setpriv").args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_dropped_service_is_gone_with_its_children() {
        let dir = scratch("process").unwrap();
        let cmd = Cmd::new("sh").args(["-c", "sleep 60 & echo $!; wait"]);
        let mut service = Service::start("sh", cmd, dir.path()).unwrap();
        let log = service.log.clone();
        service.wait_until("up", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'))).unwrap();
        let (parent, child) = (service.pid(), service.log().trim().parse::<u32>().unwrap());
        assert!(alive(parent) && alive(child));
        drop(service);
        let end = Instant::now() + Duration::from_secs(5);
        while alive(child) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!alive(parent) && !alive(child));
    }

    #[test]
    fn a_service_outlives_the_thread_that_started_it() {
        let dir = scratch("process").unwrap();
        let path = dir.path().to_owned();
        let start = move || Service::start("sleep", Cmd::new("sleep").arg("60"), &path).unwrap();
        let mut service = thread::spawn(start).join().unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(service.exited().is_none());
    }

    #[test]
    fn a_service_that_ends_at_once_shows_why() {
        let dir = scratch("process").unwrap();
        let cmd = Cmd::new("sh").args(["-c", "echo no such luck >&2; exit 4"]);
        let mut service = Service::start("luck", cmd, dir.path()).unwrap();
        let error = service.wait_listening(free_address().unwrap()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no such luck") && text.contains("exit status: 4"), "{text}");
    }

    #[test]
    fn processor_time_is_counted() {
        let dir = scratch("process").unwrap();
        let cmd = Cmd::new("sh").args(["-c", "while :; do :; done"]);
        let service = Service::start("busy", cmd, dir.path()).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while service.usage().unwrap().cpu < 0.1 {
            assert!(Instant::now() < end, "no processor time after 20 s");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(service.usage().unwrap().peak_rss > 100_000);
    }
}
