//! The command line: names, flags and help texts, nothing else.
//!
//! Values stay text here. They are checked by [`crate::config::resolve`], together with the environment and the file,
//! so that every error is reported at once and in one form.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::config::Overrides;
use crate::edge::explain::ExplainArgs;
use crate::edge::guard::GuardArgs;
use crate::edge::revoke::{ReloadArgs, RevokeArgs};
use crate::edge::user::UserArgs;
use crate::manual::{CompletionsArgs, ManArgs};

/// A hardened gate for private Docker/OCI registries
///
/// The gate asks for a login on every request, over TLS, before anything reaches the registry; the guard closes the
/// registry's own port in the kernel, so that there is no way round the gate.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  portcullis user add --htpasswd users.htpasswd alice
  portcullis serve --htpasswd users.htpasswd --backend http://127.0.0.1:5000
  portcullis serve --config /etc/portcullis/portcullis.toml
  portcullis guard enforce --port 5000";

/// The commands of `portcullis`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gate
    ///
    /// Listens, asks everybody for a login, and passes on what the rules allow. Whatever is wrong with the configuration is said
    /// at once, with file, line and key, and nothing is started. Under systemd it says when it is ready, reloads and stops.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Check the configuration that `serve` would run with, without opening a socket
    ///
    /// Takes the same flags and variables as `serve`, reads certificates, keys and the htpasswd file, and reports
    /// every error at once. Exit code 0: valid; 1: not.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Explain what the gate would answer to a user's request, and why
    Explain(ExplainArgs),
    /// Run the small stand-alone Basic auth service
    ///
    /// Answers every path with 200 "User authenticated successfully" when the request carries a right user name and
    /// password, else with 401 and a challenge. For nginx auth_request, or for --auth-backend of a gate elsewhere. A changed
    /// file is taken within a second.
    #[command(after_help = AUTH_SERVICE_EXAMPLES)]
    AuthService(AuthServiceArgs),
    /// Add, remove, list and verify the users of an htpasswd file
    User(UserArgs),
    /// Make a running gate forget what it remembers of a user, or of everybody
    ///
    /// After a password was changed or an account closed: from now on the gate asks again, whatever time its verdicts had
    /// left. Transfers that are under way go on. A gate takes this from its own machine only; where there are several gates,
    /// tell each.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
    /// Have a running gate read its configuration again
    ///
    /// As SIGHUP does, and says what changed. Connections go on, and each next request is served by the new configuration.
    /// A configuration that is not valid changes nothing: every error is printed, and the exit code is 1.
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(ReloadArgs),
    /// Close the registry's port in the kernel (eBPF)
    Guard(GuardArgs),
    /// Print the completions of a shell: `portcullis completions bash`
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write the manual pages: one for each command, and portcullis.toml(5)
    Man(ManArgs),
}

const SERVE_EXAMPLES: &str = "\
A flag beats its variable, which beats the file. An empty variable counts as not set.

Signals:
  SIGTERM, SIGINT  finish what runs, then end; a second one ends at once
  SIGHUP           read the configuration again, as `portcullis reload` does
  SIGUSR1          open the access log again, after logrotate has moved it

Exit code 0: told to stop; 1: it could not start, or a worker failed; 2: wrong usage.

Examples:
  portcullis serve --htpasswd users.htpasswd --backend http://127.0.0.1:5000
  portcullis serve --config /etc/portcullis/portcullis.toml
  AUTH_BACKEND=http://auth:8000 BACKEND=http://registry:5000 portcullis serve --listen 0.0.0.0:80";

const CHECK_EXAMPLES: &str = "\
Examples:
  portcullis check --config /etc/portcullis/portcullis.toml
  portcullis check --reference";

const AUTH_SERVICE_EXAMPLES: &str = "\
Example:
  portcullis auth-service --htpasswd users.htpasswd --listen 127.0.0.1:8000";

const REVOKE_EXAMPLES: &str = "\
--user reaches logins that name the user, in any capitals; where logins are tokens, use --all.

Examples:
  portcullis revoke --user alice
  portcullis revoke --all --admin 127.0.0.1:9180";

const COMPLETIONS_EXAMPLES: &str = "\
Example:
  portcullis completions bash >/etc/bash_completion.d/portcullis";

const RELOAD_EXAMPLES: &str = "\
The gate reads the file, the flags and the variables that it was started with. Changes of workers, user, admin, ktls, \
guard and the hash limits need a restart, and are named.

Example:
  portcullis reload --admin 127.0.0.1:9180";

/// Flags of `serve` and `check`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// The configuration file (TOML) [variable: PORTCULLIS_CONFIG]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Where to listen; repeatable. Default 127.0.0.1:8080, or 0.0.0.0:443 with a certificate [variable:
    /// PORTCULLIS_LISTEN]
    ///
    /// Replaces the addresses of the file; their certificates stay unless --tls-cert replaces them.
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,

    /// The certificate chain (PEM), own certificate first; repeatable, each with its --tls-key [variable:
    /// PORTCULLIS_TLS_CERT]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tls_cert: Vec<String>,

    /// The private key (PEM) of the certificate at the same position [variable: PORTCULLIS_TLS_KEY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tls_key: Vec<String>,

    /// The registry, or another service with --kind http; repeatable [variable: BACKEND]
    ///
    /// For the only site of the file, or its default site among several.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub backend: Vec<String>,

    /// What the backend is: "registry" (only the OCI protocol passes) or "http". Default registry [variable: KIND]
    #[arg(long, value_name = "registry|http")]
    pub kind: Option<String>,

    /// A service that checks logins, asked like nginx auth_request; without a path: /auth [variable: AUTH_BACKEND]
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub auth_backend: Option<String>,

    /// A file of users and password hashes (see `portcullis user`) [variable: PORTCULLIS_HTPASSWD]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub htpasswd: Option<String>,

    /// Worker threads; 0: one for each core. Default 0 [variable: PORTCULLIS_WORKERS]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,

    /// The admin listener, or "off". Default 127.0.0.1:9180 [variable: PORTCULLIS_ADMIN]
    #[arg(long, value_name = "ADDR|off")]
    pub admin: Option<String>,

    /// The access log: a file, "-" for standard output, or "off". Default - [variable: PORTCULLIS_ACCESS_LOG]
    #[arg(long, value_name = "FILE|-|off", value_hint = ValueHint::FilePath, allow_hyphen_values = true)]
    pub access_log: Option<String>,

    /// Accept passwords over plain HTTP on addresses that others reach [variable:
    /// PORTCULLIS_ALLOW_PLAINTEXT_CREDENTIALS]
    ///
    /// Only where something in front of the gate ends TLS.
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_plaintext_credentials: Option<String>,

    /// The directory of the guard's pins, when it is not the default one [variable: PORTCULLIS_PIN]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub pin: Option<String>,

    /// TLS in the kernel: "auto", "off" or "require". Default auto [variable: PORTCULLIS_KTLS]
    #[arg(long, value_name = "auto|off|require")]
    pub ktls: Option<String>,

    /// Start beside a gate that runs on the same addresses, to take over from it: stop that one when this one is ready
    ///
    /// No connection is lost: the old gate hands all new ones over, and finishes those it has. The admin listener comes
    /// over when the old gate has ended.
    #[arg(long)]
    pub take_over: bool,
}

impl ServeArgs {
    /// The flags as the configuration takes them.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        let flags = self.clone();
        Overrides {
            listen: flags.listen,
            tls_cert: flags.tls_cert,
            tls_key: flags.tls_key,
            backend: flags.backend,
            kind: flags.kind,
            auth_backend: flags.auth_backend,
            htpasswd: flags.htpasswd,
            workers: flags.workers,
            admin: flags.admin,
            access_log: flags.access_log,
            allow_plaintext_credentials: flags.allow_plaintext_credentials,
            pin: flags.pin,
            ktls: flags.ktls,
        }
    }
}

/// Flags of `check`.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// Print a file with every key, its default and what it means, all commented out; check nothing
    #[arg(long, exclusive = true)]
    pub reference: bool,

    /// Those of `serve`
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `auth-service`.
#[derive(Debug, Clone, Args)]
pub struct AuthServiceArgs {
    /// The file of users and password hashes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub htpasswd: PathBuf,

    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// The realm of the challenge
    #[arg(long, value_name = "REALM", default_value = "Registry", value_parser = realm)]
    pub realm: String,
}

fn realm(text: &str) -> Result<String, String> {
    if crate::config::is_realm(text) {
        Ok(text.to_owned())
    } else {
        Err("use plain ASCII without \" and \\".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_the_configuration() {
        let words = "portcullis serve --listen a --listen b --backend c --access-log - --allow-plaintext-credentials";
        let cli = Cli::try_parse_from(words.split(' ')).map_err(|error| error.to_string());
        let Ok(Cli { command: Command::Serve(args) }) = cli else {
            unreachable!("{cli:?}");
        };
        let flags = args.overrides();
        assert_eq!((flags.listen.len(), flags.backend.len()), (2, 1));
        assert_eq!(flags.access_log.as_deref(), Some("-"));
        assert_eq!(flags.allow_plaintext_credentials.as_deref(), Some("true"));
    }
}
