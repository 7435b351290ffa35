//! The guard: eBPF programs that close the registry's port to everybody but the gate.
//!
//! Three rings, one policy for all:
//!
//! * **xdp** drops packets for a protected port as they arrive on the interfaces that face outside, unless they come
//!   from an allowed source (a gate on another host).
//! * **connect**, on the root of the cgroup2 hierarchy, refuses connect(2) to a protected address for every process
//!   of the host, containers included, unless the gate has vouched for the socket ([`vouch`]).
//! * **ingress**, on the same root, drops segments for a protected port before their socket sees them, whatever way
//!   they came: tunnels, interfaces that appeared a moment ago, other network namespaces. It lets go what came over
//!   lo, which the connect ring has judged, and connections of vouched sockets of this host.
//!
//! `--port N` means port N on the addresses of the network namespace in which the guard was switched on; its loopback
//! addresses and wildcards count only for sockets of that namespace, so that a container's own port N stays its own.
//! An address that two namespaces of the host both own counts as the guarded one's.
//!
//! The rings hold while their pins do, whatever becomes of the processes that made them: a dead gate leaves the port
//! closed. They do not stop root on this host, nor a process inside the registry's own container when its address is
//! protected with `--protect`, nor sources forged on a network segment shared with an allowed gate. Addresses and
//! interfaces that appear after `enforce` are followed by the agent that stays (`guard run`), else from the next
//! `enforce` on.
//!
//! Exit codes: 0 done (`status`: enforced), 1 an error, 2 wrong usage, 3 no guard (`status`), 4 a part of the guard
//! does not hold (`status`).

use std::process::ExitCode;

mod cut;
mod enforce;
mod host;
mod loader;
mod netlink;
pub mod options;
mod pins;
mod policy;
mod rings;
mod run;
mod status;
pub mod vouch;

pub use options::GuardArgs;
use options::GuardCommand;

/// Runs one `portcullis guard` command.
///
/// # Errors
/// When the kernel, the privileges or the options do not allow it; the message says what to do.
pub fn run(args: &GuardArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        GuardCommand::Enforce(args) => enforce::enforce(args),
        GuardCommand::Run(args) => run::run(args, |_, _| {}),
        GuardCommand::Status(args) => status::status(args),
        GuardCommand::Detach(args) => enforce::detach(args),
    }
}
