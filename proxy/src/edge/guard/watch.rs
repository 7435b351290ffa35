//! `guard watch`: what is dropped, as it happens.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use portcullis_ebpf::{Event, Ring, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::host::{self, interfaces};
use super::loader;
use super::netlink::Netlink;
use super::options::ReadFlags;
use super::pins::Pins;
use super::policy::ip;
use super::status::ABSENT;
use super::trial::since_boot;

/// How often a quiet watch looks whether it was told to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// `guard watch`, until a signal or until nobody reads any more.
pub(super) fn watch(args: &ReadFlags) -> anyhow::Result<ExitCode> {
    host::require_privileges("watch")?;
    let pins = Pins::at(&args.pin.resolve()?.dir);
    if !pins.dir().exists() || pins.newest()?.is_none() {
        eprintln!("portcullis: no guard is pinned in {}", pins.dir().display());
        return Ok(ExitCode::from(ABSENT));
    }
    let newest = pins.newest()?.unwrap_or_default();
    loader::policy(&pins, newest)?;
    let mut events = loader::events(&pins).context("cannot open the guard's events")?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("cannot catch signals")?;
    }
    let mut teller = Teller { json: args.json, names: HashMap::new(), suppressed: 0 };
    let mut out = io::stdout().lock();
    if !args.json {
        eprintln!("portcullis: watching; one reader takes each event, and Ctrl-C ends this");
        line(&mut out, ["time", "ring", "reason", "verdict", "source", "destination", "interface", "process"])?;
        out.flush()?;
    }
    while !ended.load(Ordering::Relaxed) {
        let mut told = false;
        while let Some(item) = events.next() {
            if let Some(event) = Event::from_bytes(&item) {
                if quietly(teller.tell(&mut out, &event))?.is_none() {
                    return Ok(ExitCode::SUCCESS);
                }
                told = true;
            }
        }
        if told && quietly(out.flush())?.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        match poll(&mut [PollFd::new(&events.as_fd(), PollFlags::IN)], Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
    }
    if teller.suppressed > 0 {
        eprintln!("portcullis: {} more were counted and not told, above the rate limit", teller.suppressed);
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` when nobody reads any more, which is the end of a pipe and no error.
fn quietly(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        result => result.map(Some),
    }
}

/// One line of the table; addresses that are longer than their column push the rest aside.
fn line(out: &mut impl Write, cells: [&str; 8]) -> io::Result<()> {
    let [time, ring, reason, verdict, source, destination, interface, process] = cells;
    let line = format!(
        "{time:<24}  {ring:<7}  {reason:<19}  {verdict:<7}  {source:<21}  {destination:<21}  {interface:<10}  {process}"
    );
    writeln!(out, "{}", line.trim_end())
}

struct Teller {
    json: bool,
    names: HashMap<u32, String>,
    suppressed: u64,
}

impl Teller {
    fn tell(&mut self, out: &mut impl Write, event: &Event) -> io::Result<()> {
        self.suppressed += event.suppressed;
        let time = jiff::Timestamp::try_from(wall_clock(event.time)).map(|time| format!("{time:.3}"));
        let time = time.unwrap_or_default();
        let interface = (event.ring != Ring::Connect && event.interface != 0).then(|| self.name(event.interface));
        let local = event.ring == Ring::Connect;
        let source = (!event.source.is_unspecified()).then(|| end(ip(&event.source), event.source_port));
        let destination = (event.port != 0).then(|| end(ip(&event.destination), event.port));
        let command: String = String::from_utf8_lossy(event.command()).chars().filter(|c| !c.is_control()).collect();
        if self.json {
            let line = json!({
                "time": time, "ring": event.ring.name(), "reason": event.reason.name(),
                "dropped": event.verdict == Verdict::Refused, "source": source, "destination": destination,
                "port": event.port, "interface": interface, "suppressed": event.suppressed,
                "pid": local.then_some(event.pid), "uid": local.then_some(event.uid),
                "command": local.then_some(&command),
            });
            return writeln!(out, "{line}");
        }
        if event.suppressed > 0 {
            writeln!(out, "{time}  … {} more were counted and not told, above the rate limit", event.suppressed)?;
        }
        let process = if local { format!("{command} (pid {}, uid {})", event.pid, event.uid) } else { "-".to_owned() };
        let [source, destination, interface] =
            [&source, &destination, &interface].map(|cell| cell.as_deref().unwrap_or("-"));
        let (ring, reason, verdict) = (event.ring.name(), event.reason.name(), event.verdict.name());
        line(out, [&time, ring, reason, verdict, source, destination, interface, &process])
    }

    /// Interfaces come and go: an unknown number is looked up anew.
    fn name(&mut self, index: u32) -> String {
        if !self.names.contains_key(&index) {
            let found = Netlink::open(None).and_then(|mut netlink| interfaces(&mut netlink)).unwrap_or_default();
            self.names.extend(found.into_iter().map(|interface| (interface.index, interface.name)));
        }
        self.names.entry(index).or_insert_with(|| format!("interface {index}")).clone()
    }
}

fn end(ip: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// The kernel counts since boot.
fn wall_clock(nanoseconds: u64) -> SystemTime {
    let ago = since_boot().saturating_sub(Duration::from_nanos(nanoseconds));
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}
