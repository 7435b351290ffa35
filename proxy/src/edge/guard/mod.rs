//! The guard: eBPF programs that close the registry's port to everybody but the gate.
//!
//! Two rings stand today, one policy for both:
//!
//! * **xdp** drops packets for a protected port as they arrive on the interfaces that face outside, unless they come
//!   from an allowed source (a gate on another host).
//! * **connect**, on the root of the cgroup2 hierarchy, refuses connect(2) to a protected address for every process
//!   of the host, containers included, unless the gate has vouched for the socket ([`vouch`]).
//!
//! `--port N` means port N on the addresses of the network namespace in which the guard was switched on; its loopback
//! addresses and wildcards count only for sockets of that namespace, so that a container's own port N stays its own.
//! An address that two namespaces of the host both own counts as the guarded one's.
//!
//! The rings hold while their pins do, whatever becomes of the processes that made them: a dead gate leaves the port
//! closed. They do not stop root on this host, nor a process inside the registry's own container when its address is
//! protected with `--protect`, nor sources forged on a network segment shared with an allowed gate. Addresses and
//! interfaces that appear after `enforce` are guarded from the next `enforce` on.
//!
//! Exit codes: 0 done (`status`: enforced), 1 an error, 2 wrong usage, 3 no guard (`status`), 4 a part of the guard
//! does not hold (`status`).

use std::process::ExitCode;

mod allow;
mod cut;
mod enforce;
mod features;
mod frames;
mod host;
mod loader;
pub mod metrics;
mod netlink;
pub mod options;
mod pins;
mod plan;
mod policy;
mod probe;
mod rings;
mod standing;
mod status;
mod store;
mod table;
mod trial;
mod verify;
pub mod vouch;
mod watch;

use enforce::How;
pub use options::GuardArgs;
use options::GuardCommand;
use portcullis_ebpf::Mode;

/// Runs one `portcullis guard` command.
///
/// # Errors
/// When the kernel, the privileges or the options do not allow it; the message says what to do.
pub fn run(args: &GuardArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        GuardCommand::Plan(flags) => plan::plan(flags),
        GuardCommand::Audit(flags) => {
            let how = How { command: "audit", mode: Mode::Audit, trial: None };
            enforce::apply(flags.resolve()?.as_ref(), how)
        }
        GuardCommand::Enforce(flags) => {
            let how = How { command: "enforce", mode: Mode::Enforce, trial: flags.confirm_within };
            enforce::apply(flags.policy.resolve()?.as_ref(), how)
        }
        GuardCommand::Confirm(flags) => trial::confirm(&flags.resolve()?),
        GuardCommand::Status(flags) => status::status(flags),
        GuardCommand::Verify(flags) => verify::verify(flags),
        GuardCommand::Watch(flags) => watch::watch(flags),
        GuardCommand::Allow(args) => allow::allow(args),
        GuardCommand::Detach(flags) => enforce::detach(&flags.resolve()?),
        GuardCommand::Expire(flags) => trial::expire(&flags.resolve()?),
    }
}
