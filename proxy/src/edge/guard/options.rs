//! The options of `portcullis guard …`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

pub use crate::config::Cidr;

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
    /// Close the port, or change the policy of a guard that already does; returns when it holds
    Enforce(EnforceArgs),
    /// Enforce and stay: follow interfaces and addresses that come and go, put back what somebody takes away
    Run(EnforceArgs),
    /// Say what the kernel enforces now (exit code 0: enforced, 3: no guard, 4: not all of it holds)
    Status(StatusArgs),
    /// Remove the guard: the port is open again
    Detach(DetachArgs),
}

/// Options of `portcullis guard enforce`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true))]
pub struct EnforceArgs {
    /// Protect this port on the addresses of this network namespace
    #[arg(long = "port", value_name = "N", group = "what", value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// Protect one address, a container's for example
    #[arg(long = "protect", value_name = "ADDR:PORT", group = "what", value_parser = protected)]
    pub protect: Vec<SocketAddr>,
    /// Guard this interface; `all` means every one but lo [default: those that face outside]
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// Let these sources in: the addresses of gates on other hosts
    #[arg(long = "allow", value_name = "CIDR")]
    pub allow: Vec<Cidr>,
    /// Leave out the ring that stops this host's own processes
    #[arg(long)]
    pub no_local: bool,
    /// How packets are intercepted: by the driver, by the kernel, or by the driver where it can
    #[arg(long, value_enum, default_value_t)]
    pub mode: XdpMode,
    /// Where the guard is pinned
    #[command(flatten)]
    pub pin: PinArg,
}

/// Options of `portcullis guard status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Where the guard is pinned
    #[command(flatten)]
    pub pin: PinArg,
}

/// Options of `portcullis guard detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Where the guard is pinned
    #[command(flatten)]
    pub pin: PinArg,
}

/// Where the guard is pinned.
#[derive(Debug, Args)]
pub struct PinArg {
    /// The directory that keeps the guard alive, on a BPF file system
    #[arg(long = "pin", value_name = "DIR", default_value = DEFAULT_PIN)]
    pub dir: PathBuf,
}

/// How packets are intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Native where the driver takes it, else generic
    #[default]
    Auto,
    /// By the driver, before the kernel allocates anything
    Native,
    /// By the kernel, on any interface
    Generic,
}

fn protected(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not ADDR:PORT, as in 172.17.0.2:5000"))?;
    if address.port() == 0 {
        return Err("port 0 cannot be protected".to_owned());
    }
    if address.ip().is_unspecified() {
        return Err(format!("{} means every address: use --port {}", address.ip(), address.port()));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_and_slips_are_named() {
        assert_eq!("10.0.0.0/8".parse::<Cidr>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("192.0.2.7".parse::<Cidr>().unwrap().bits, 32);
        assert_eq!("::/0".parse::<Cidr>().unwrap().bits, 0);
        assert!("10.0.0.1/8".parse::<Cidr>().unwrap_err().contains("write 10.0.0.0/8"));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/x", "10.0.0/8", "fe80::/129"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_protected_address_names_one_address_and_one_port() {
        assert!(protected("[2001:db8::1]:5000").is_ok());
        assert_eq!(protected("[::ffff:192.0.2.1]:5000").unwrap().to_string(), "192.0.2.1:5000");
        assert!(protected("0.0.0.0:5000").unwrap_err().contains("--port 5000"));
        for wrong in ["5000", "localhost:5000", "192.0.2.1:0", "192.0.2.1"] {
            assert!(protected(wrong).is_err(), "{wrong}");
        }
    }
}
