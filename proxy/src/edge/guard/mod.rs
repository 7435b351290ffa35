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
//! A policy is never edited in place. A new one is a new generation of maps and programs, filled and checked while the
//! old one works, then put in its place link by link (`enforce`), so that each packet meets the old one or the new one
//! whole. `allow` is that with another list, `--confirm-within` is that with the way back kept open, and only the step
//! from `audit` to `enforce` writes into a policy: its mode.
//!
//! `verify` has the kernel run the programs as they are attached, knocks from an unprivileged thread, and goes the gate's
//! own way. Its result is a record next to the pins, which the gate's metrics read (`metrics`).
//!
//! Exit codes: 0 done (`status`: enforced; `verify`: all shut and the gate's way open), 1 an error, 2 wrong usage,
//! 3 no guard (`confirm`: nothing to confirm), 4 not so (`status`: a part of the guard does not hold, or it only audits;
//! `verify`: a way is open, or the gate's is not; `plan`: something stands in the way).

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
mod run;
mod standing;
mod status;
mod store;
mod table;
mod trial;
mod verify;
pub mod vouch;
mod watch;
mod wire;

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
        GuardCommand::Run(flags) => run::run(&flags.require()?, verify::each_minute()),
        GuardCommand::Confirm(flags) => trial::confirm(&flags.resolve()?),
        GuardCommand::Status(flags) => status::status(flags),
        GuardCommand::Verify(flags) => verify::verify(flags),
        GuardCommand::Watch(flags) => watch::watch(flags),
        GuardCommand::Allow(args) => allow::allow(args),
        GuardCommand::Detach(flags) => enforce::detach(&flags.resolve()?),
        GuardCommand::Expire(flags) => trial::expire(&flags.resolve()?),
    }
}
