//! `enforce --confirm-within`: a policy on trial, and the way back.
//!
//! Before anything changes, what stood before is written down next to the pins and a keeper process is started. It has
//! a session of its own, no terminal, and sits in the root cgroup, so that neither the end of an SSH session nor of the
//! enforcing process, at whatever moment, takes it along. When the time is over and nobody confirmed, it puts back the
//! programs of the former policy link by link, or removes the guard where there was none. The former policy stays
//! loaded and pinned during the trial: going back needs no compiler, no file and no decision.
//!
//! The keeper may be killed too. Where nothing was refused before, the programs in the kernel look at the clock and refuse
//! nothing any more once the time is over: no process is needed to open. Where a former policy refused, the one on trial
//! stays until the agent looks next, or until the next guard command that changes something (`confirm` included): each rolls
//! an overdue trial back first.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use portcullis_ebpf::{Header, Mode};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::host;
use super::loader;
use super::options::{DEFAULT_PIN, PinArg};
use super::pins::{Hook, Pins};
use super::rings;
use super::standing;
use super::store::Store;
use crate::config::units::format_duration;
use crate::edge::sys::bpf;

const LEN: usize = 4096;
/// How often the keeper looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(500);
/// Exit code of `confirm` when there is nothing to confirm.
const NOTHING: u8 = 3;

/// A trial that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// End of its time, on the clock since boot.
    pub(super) deadline: Duration,
    /// The policy on trial.
    pub(super) generation: u64,
    /// What stood before: its policy and its hooks.
    pub(super) former: Option<(u64, Vec<Hook>)>,
}

impl Trial {
    /// A trial that ends after `time`.
    pub(super) fn new(time: Duration, generation: u64, former: Option<(u64, Vec<Hook>)>) -> Self {
        Self { deadline: since_boot() + time, generation, former }
    }

    /// Reads the trial that is under way.
    pub(super) fn read(pins: &Pins) -> io::Result<Option<Self>> {
        let Some(store) = Store::<LEN>::open(&pins.trial())? else { return Ok(None) };
        let bytes = store.read()?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let value: Value = serde_json::from_slice(text).map_err(io::Error::other)?;
        Self::from_json(&value).map(Some).ok_or_else(|| io::Error::other("the record of the trial is broken"))
    }

    /// Writes it down and starts its keeper; nothing may have changed yet.
    pub(super) fn begin(&self, pins: &Pins) -> anyhow::Result<()> {
        let mut bytes = [0; LEN];
        let text = self.to_json().to_string();
        let room = bytes.get_mut(..text.len()).context("too many interfaces for the record of a trial")?;
        room.copy_from_slice(text.as_bytes());
        Store::<LEN>::make(&pins.trial())
            .and_then(|mut store| store.write(bytes))
            .context("cannot record the trial")?;
        start_keeper(pins).context("cannot start the process that would roll back")
    }

    /// How much time is left; `None` when it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        self.deadline.checked_sub(since_boot()).filter(|left| !left.is_zero())
    }

    fn to_json(&self) -> Value {
        let former = self.former.as_ref().map(|(generation, hooks)| {
            json!({"generation": generation, "hooks": hooks.iter().map(|hook| hook.pin()).collect::<Vec<_>>()})
        });
        json!({"deadline": self.deadline.as_millis() as u64, "generation": self.generation, "former": former})
    }

    fn from_json(value: &Value) -> Option<Self> {
        let former = match &value["former"] {
            Value::Null => None,
            former => {
                let hooks = former["hooks"].as_array()?.iter();
                let hooks: Option<Vec<Hook>> = hooks.map(|name| Hook::from_pin(name.as_str()?)).collect();
                Some((former["generation"].as_u64()?, hooks?))
            }
        };
        let deadline = Duration::from_millis(value["deadline"].as_u64()?);
        Some(Self { deadline, generation: value["generation"].as_u64()?, former })
    }

    /// Goes back to what stood before.
    fn roll_back(&self, pins: &Pins) -> anyhow::Result<()> {
        let Some((former, hooks)) = &self.former else {
            standing::change(pins, |standing| standing.mode = standing::ABSENT).ok();
            return pins.remove().context("cannot remove the guard");
        };
        let links = pins.links().context("cannot read the guard's links")?;
        let root = if hooks.iter().any(|hook| hook.is_on_cgroup()) { Some(host::cgroup_root()?) } else { None };
        for hook in hooks {
            let path = pins.generation(*former).join(hook.program());
            let program = bpf::open(&path).with_context(|| format!("the former policy has lost {}", hook.program()))?;
            match links.iter().find(|link| link.hook == *hook && link.is_attached()) {
                Some(link) => bpf::link_update(link.link.as_fd(), program.as_fd())?,
                None => rings::hang(pins, *hook, program.as_fd(), root.as_ref())?,
            }
        }
        let kept: BTreeSet<String> = hooks.iter().map(|hook| hook.pin()).collect();
        for link in links.iter().filter(|link| !kept.contains(&link.hook.pin())) {
            pins.remove_link(link.hook)?;
        }
        for number in pins.generations()?.into_iter().filter(|number| number != former) {
            pins.remove_generation(number)?;
        }
        standing::refresh(pins)?;
        forget(pins)?;
        Ok(())
    }
}

/// Rolls back a trial whose time is over; to be called under the lock, before anything else is changed. Says whether
/// there is still one that runs.
pub(super) fn settle(pins: &Pins) -> anyhow::Result<Option<Trial>> {
    let Some(trial) = Trial::read(pins).context("cannot read the record of the trial")? else { return Ok(None) };
    if trial.left().is_some() {
        return Ok(Some(trial));
    }
    trial.roll_back(pins)?;
    Ok(None)
}

/// Removes the record: what holds now stays.
pub(super) fn forget(pins: &Pins) -> io::Result<()> {
    match std::fs::remove_file(pins.trial()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `guard confirm`.
pub(super) fn confirm(pin: &PinArg) -> anyhow::Result<ExitCode> {
    host::require_privileges("confirm")?;
    let pins = Pins::at(&pin.dir);
    let show = pins.dir().display();
    if !pins.dir().exists() {
        eprintln!("portcullis: nothing to confirm: no guard is pinned in {show}");
        return Ok(ExitCode::from(NOTHING));
    }
    let _lock = pins.lock()?;
    let Some(trial) = Trial::read(&pins).context("cannot read the record of the trial")? else {
        eprintln!("portcullis: nothing to confirm: the guard in {show} is not on trial");
        return Ok(ExitCode::from(NOTHING));
    };
    if trial.left().is_none() {
        trial.roll_back(&pins)?;
        bail!("too late: the time to confirm was over, and the guard has been rolled back");
    }
    let header = loader::header(&pins, trial.generation).context("cannot read the policy on trial")?;
    let header = Header { mode: Mode::Enforce, confirm_by: 0, ..header };
    loader::set_header(&pins, &header).context("cannot confirm the policy")?;
    forget(&pins).context("cannot remove the record of the trial")?;
    for number in pins.generations()?.into_iter().filter(|number| *number != trial.generation) {
        pins.remove_generation(number).context("cannot remove the former policy")?;
    }
    writeln!(io::stdout().lock(), "confirmed: policy {} stays", trial.generation)?;
    Ok(ExitCode::SUCCESS)
}

/// What the keeper does, from its start to its end.
pub(super) fn expire(pin: &PinArg) -> anyhow::Result<ExitCode> {
    rustix::process::setsid().context("cannot leave the caller's session")?;
    leave_cgroup();
    let pins = Pins::at(&pin.dir);
    let Some(trial) = Trial::read(&pins)? else { return Ok(ExitCode::SUCCESS) };
    // Whoever enforces waits for this line; nobody reads on afterwards.
    writeln!(io::stdout().lock(), "ready")?;
    loop {
        match Trial::read(&pins) {
            Ok(Some(now)) if now == trial => {}
            // Confirmed, detached, or a later trial, which has a keeper of its own.
            _ => return Ok(ExitCode::SUCCESS),
        }
        match trial.left() {
            Some(left) => thread::sleep(left.min(LOOK)),
            None => match pins.lock() {
                Ok(_lock) => {
                    if settle(&pins).is_ok() {
                        return Ok(ExitCode::SUCCESS);
                    }
                    thread::sleep(LOOK);
                }
                Err(_) => thread::sleep(LOOK / 10),
            },
        }
    }
}

/// A session's processes may be killed by its cgroup when it ends; the root has no such end.
fn leave_cgroup() {
    if let Ok(root) = host::cgroup_mount() {
        std::fs::write(root.join("cgroup.procs"), "0").ok();
    }
}

fn start_keeper(pins: &Pins) -> io::Result<()> {
    let mut keeper = Command::new("/proc/self/exe")
        .args(["guard", "expire", "--pin"])
        .arg(pins.dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = keeper.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line == "ready\n" { Ok(()) } else { Err(io::Error::other("it ended at once")) }
}

/// What to tell whoever has just begun a trial.
pub(super) fn announce(time: Duration, pins: &Pins, former: bool) -> String {
    let place = if pins.dir() == std::path::Path::new(DEFAULT_PIN) {
        String::new()
    } else {
        format!(" --pin {}", pins.dir().display())
    };
    let back = if former { "the former policy comes back" } else { "the guard goes" };
    format!("  trial    `portcullis guard confirm{place}` within {} keeps it; otherwise {back}", format_duration(time))
}

/// The time since boot, suspended time included.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_as_it_was_written() {
        for former in [None, Some((7, vec![Hook::Xdp(2), Hook::Connect4, Hook::Connect6]))] {
            let trial = Trial { deadline: Duration::from_millis(1234), generation: 8, former };
            assert_eq!(Trial::from_json(&trial.to_json()), Some(trial));
        }
        assert_eq!(Trial::from_json(&json!({"generation": 1})), None);
    }
}
