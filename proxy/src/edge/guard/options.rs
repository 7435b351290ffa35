//! The options of `portcullis guard …`, and what they become together with `[guard]` of a configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand, ValueHint};

use crate::config::units::parse_duration;
use crate::config::{self, Guard, parse_protected};
use crate::edge::files;

pub use crate::config::{Cidr, XdpMode};

/// Where the guard is pinned unless told otherwise.
pub const DEFAULT_PIN: &str = "/sys/fs/bpf/portcullis";

/// Options of `portcullis guard …`.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: GuardCommand,
}

/// The commands of the guard.
#[derive(Debug, Subcommand)]
pub enum GuardCommand {
    /// Show what `enforce` would attach and drop; changes nothing (exit code 4: something stands in its way)
    Plan(PlanFlags),
    /// Attach and count what would be dropped; drop nothing
    Audit(PolicyFlags),
    /// Close the port, or change the policy of a guard that already does; returns when it holds
    ///
    /// Without --port, --protect and --config it enforces what `audit` has attached.
    Enforce(EnforceFlags),
    /// Keep what `enforce --confirm-within` put on trial
    Confirm(PinFlags),
    /// Enforce and stay: follow interfaces and addresses that come and go, put back what somebody takes away, and
    /// verify each minute
    Run(PolicyFlags),
    /// Say what the kernel enforces now (exit code 0: enforced, 3: no guard, 4: not all of it holds)
    Status(ReadFlags),
    /// Try every way in and the gate's own (exit code 0: all shut and the gate's open, 3: no guard, 4: not so)
    Verify(ReadFlags),
    /// Show what is dropped as it happens, until Ctrl-C
    Watch(ReadFlags),
    /// Change the sources that are let in from outside, at once and as a whole
    Allow(AllowArgs),
    /// Remove the guard: the port is open again
    Detach(PinFlags),
    /// Roll back a trial when its time is over; started by `enforce --confirm-within`
    #[command(hide = true)]
    Expire(PinFlags),
}

/// What to guard; shared by `plan`, `audit` and `enforce`.
#[derive(Debug, Clone, Default, Args)]
pub struct PolicyFlags {
    /// Protect this port on the addresses of this network namespace; repeatable
    #[arg(long = "port", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// Protect one address, a container's for example; repeatable
    #[arg(long = "protect", value_name = "ADDR:PORT", value_parser = parse_protected)]
    pub protect: Vec<SocketAddr>,
    /// Guard this interface; repeatable; `all` means every one but lo [default: those that face outside]
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// Let these sources in: the addresses of gates on other hosts; repeatable
    #[arg(long = "allow", value_name = "CIDR")]
    pub allow: Vec<Cidr>,
    /// Leave out the ring that stops this host's own processes
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_local: Option<bool>,
    /// How packets are intercepted: by the driver, by the kernel, or by the driver where it can [default: auto]
    #[arg(long, value_name = "MODE", value_parser = modes())]
    pub mode: Option<XdpMode>,
    /// Where the guard is pinned, and the file for what flags leave open.
    #[command(flatten)]
    pub pin: PinFlags,
}

/// Options of `portcullis guard plan`.
#[derive(Debug, Args)]
pub struct PlanFlags {
    /// What to guard.
    #[command(flatten)]
    pub policy: PolicyFlags,
    /// Print JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Options of `portcullis guard enforce`.
#[derive(Debug, Args)]
pub struct EnforceFlags {
    /// What to guard.
    #[command(flatten)]
    pub policy: PolicyFlags,
    /// Roll back to what was before unless `guard confirm` comes within this time (60s, 5m)
    #[arg(long, value_name = "TIME", value_parser = trial_time)]
    pub confirm_within: Option<Duration>,
}

/// Options of the commands that only look.
#[derive(Debug, Clone, Args)]
pub struct ReadFlags {
    /// Print JSON, for machines
    #[arg(long)]
    pub json: bool,
    /// Where the guard is pinned.
    #[command(flatten)]
    pub pin: PinFlags,
}

/// Options of `portcullis guard allow`.
#[derive(Debug, Args)]
pub struct AllowArgs {
    /// What to do with the list.
    #[command(subcommand)]
    pub change: AllowChange,
}

/// What becomes of the allow list.
#[derive(Debug, Subcommand)]
pub enum AllowChange {
    /// Let these sources in as well
    Add(AllowFlags),
    /// Let these sources in no more, and cut their connections
    Remove(AllowFlags),
    /// Let in exactly these sources; none at all: nobody from outside
    Replace(ReplaceFlags),
}

/// Options of `portcullis guard allow add` and `remove`.
#[derive(Debug, Args)]
pub struct AllowFlags {
    /// Blocks of addresses, or single ones
    #[arg(value_name = "CIDR", required = true)]
    pub blocks: Vec<Cidr>,
    /// Print JSON, for machines; where the guard is pinned.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Options of `portcullis guard allow replace`.
#[derive(Debug, Args)]
pub struct ReplaceFlags {
    /// Blocks of addresses, or single ones
    #[arg(value_name = "CIDR")]
    pub blocks: Vec<Cidr>,
    /// Print JSON, for machines; where the guard is pinned.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Where the guard is pinned, as the command line says it.
#[derive(Debug, Clone, Default, Args)]
pub struct PinFlags {
    /// The directory that keeps the guard alive, on a BPF file system [default: /sys/fs/bpf/portcullis]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub pin: Option<PathBuf>,
    /// Take what flags leave open from [guard] of this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// Where the guard is pinned.
#[derive(Debug, Clone)]
pub struct PinArg {
    /// The directory, on a BPF file system.
    pub dir: PathBuf,
}

/// What to guard and how, once flags and file are taken together.
#[derive(Debug, Clone)]
pub struct EnforceArgs {
    /// Ports protected on the addresses of this network namespace.
    pub ports: Vec<u16>,
    /// Addresses protected one by one.
    pub protect: Vec<SocketAddr>,
    /// Interfaces by name; `all`; empty: those that face outside.
    pub interfaces: Vec<String>,
    /// Sources that are let in from outside.
    pub allow: Vec<Cidr>,
    /// Without the connect ring.
    pub no_local: bool,
    /// How packets are intercepted.
    pub mode: XdpMode,
    /// Where the guard is pinned.
    pub pin: PinArg,
}

impl PinFlags {
    /// The flag, else the file, else the default.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong.
    pub fn resolve(&self) -> anyhow::Result<PinArg> {
        Ok(self.place(&self.file()?))
    }

    fn place(&self, file: &Guard) -> PinArg {
        let given = self.pin.as_deref().or(file.pin.as_deref());
        PinArg { dir: given.unwrap_or(Path::new(DEFAULT_PIN)).to_path_buf() }
    }

    fn file(&self) -> anyhow::Result<Guard> {
        let Some(path) = &self.config else { return Ok(Guard::default()) };
        let text = files::read_text(path).map_err(anyhow::Error::msg)?;
        config::guard(path, &text).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            anyhow!(lines.join("; "))
        })
    }
}

impl PolicyFlags {
    /// Flags win, key by key; `None` when neither they nor a file say what to protect.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong, or options are given that apply to nothing.
    pub fn resolve(&self) -> anyhow::Result<Result<EnforceArgs, PinArg>> {
        let file = self.pin.file()?;
        let pin = self.pin.place(&file);
        let flags = !self.ports.is_empty() || !self.protect.is_empty();
        let (ports, protect) = if flags { (&self.ports, &self.protect) } else { (&file.ports, &file.protect) };
        if ports.is_empty() && protect.is_empty() {
            let others = !self.interfaces.is_empty()
                || !self.allow.is_empty()
                || self.no_local.is_some()
                || self.mode.is_some()
                || self.pin.config.is_some();
            return if others { Err(nothing_to_protect()) } else { Ok(Err(pin)) };
        }
        Ok(Ok(EnforceArgs {
            ports: ports.clone(),
            protect: protect.clone(),
            interfaces: if self.interfaces.is_empty() { file.interfaces } else { self.interfaces.clone() },
            allow: if self.allow.is_empty() { file.allow } else { self.allow.clone() },
            no_local: self.no_local.unwrap_or(file.no_local),
            mode: self.mode.unwrap_or(file.mode),
            pin,
        }))
    }

    /// The same where something must be protected.
    ///
    /// # Errors
    /// Also when nothing is said to be protected.
    pub fn require(&self) -> anyhow::Result<EnforceArgs> {
        match self.resolve()? {
            Ok(args) => Ok(args),
            Err(_) => bail!(nothing_to_protect()),
        }
    }
}

fn nothing_to_protect() -> anyhow::Error {
    anyhow!(
        "nothing is said to be protected: give --port N or --protect ADDR:PORT, or --config FILE with `port` in [guard]"
    )
}

fn modes() -> impl clap::builder::TypedValueParser<Value = XdpMode> {
    PossibleValuesParser::new(["auto", "native", "generic"]).map(|word| match word.as_str() {
        "native" => XdpMode::Native,
        "generic" => XdpMode::Generic,
        _ => XdpMode::Auto,
    })
}

fn trial_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    if range.contains(&time) { Ok(time) } else { Err("choose from 1s to 24h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.toml");
        let text = "[guard]\nport = 5000\nallow = [\"10.0.0.0/8\"]\nno_local = true\npin = \"/sys/fs/bpf/x\"\n";
        std::fs::write(&path, text).unwrap();
        let pin = PinFlags { pin: None, config: Some(path) };
        let from_file = PolicyFlags { pin: pin.clone(), ..PolicyFlags::default() }.require().unwrap();
        assert_eq!((from_file.ports, from_file.no_local), (vec![5000], true));
        assert_eq!(from_file.pin.dir, Path::new("/sys/fs/bpf/x"));

        let protect = vec!["172.17.0.2:80".parse().unwrap()];
        let pin = PinFlags { pin: Some("/p".into()), ..pin };
        let flags = PolicyFlags { protect, no_local: Some(false), pin, ..PolicyFlags::default() };
        let both = flags.require().unwrap();
        assert_eq!((both.ports.len(), both.protect.len(), both.no_local), (0, 1, false));
        assert_eq!((both.allow.len(), both.pin.dir), (1, PathBuf::from("/p")));
    }

    #[test]
    fn options_that_apply_to_nothing_are_an_error() {
        let nothing = PolicyFlags::default();
        assert!(nothing.resolve().unwrap().is_err());
        assert!(nothing.require().unwrap_err().to_string().contains("--port N"));
        let alone = PolicyFlags { no_local: Some(true), ..PolicyFlags::default() };
        assert!(alone.resolve().is_err());
    }

    #[test]
    fn a_trial_lasts_a_second_to_a_day() {
        assert_eq!(trial_time("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["0s", "60", "25h", ""] {
            assert!(trial_time(wrong).is_err(), "{wrong}");
        }
    }
}
