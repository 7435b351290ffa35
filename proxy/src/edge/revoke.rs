//! `portcullis revoke`, both ends of it: the command, and what the admin listener does about it.
//!
//! Any page in a browser of this machine can send a plain POST to the admin listener. It cannot add a field of its own
//! without being allowed to, and we never allow it; nor can it, having rebound its own name to us, send a Host that is an
//! address.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;

use super::admin;
use super::gate::Gate;
use crate::auth::principal::check_principal;

const HEADER: &str = "X-Portcullis-Admin";
const PATIENCE: Duration = Duration::from_secs(5);

/// Flags of `revoke`.
#[derive(Debug, Clone, Args)]
pub struct RevokeArgs {
    /// Forget what is remembered of this user's logins
    #[arg(long, value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub user: Option<String>,

    /// Forget everything that is remembered
    #[arg(long)]
    pub all: bool,

    /// The admin listener of the gate
    #[arg(long, value_name = "ADDR", default_value_t = admin::DEFAULT)]
    pub admin: SocketAddr,
}

/// Tells a running gate.
///
/// # Errors
/// When the name cannot be a user's, nobody listens there, or the gate refuses.
pub fn run(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    let (target, whom) = match &args.user {
        Some(user) => {
            check_principal(user).map_err(|problem| anyhow!("the user name {problem}"))?;
            (format!("/revoke?user={}", encode(user)), format!("of {user}"))
        }
        None => ("/revoke?all".to_owned(), "of everybody".to_owned()),
    };
    let answer = post(args.admin, &target).map_err(|error| anyhow!("{}: {}", args.admin, problem(&error)))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.split(' ').nth(1) {
        Some("200") => {
            writeln!(io::stdout().lock(), "forgotten: what the gate remembered {whom}")?;
            Ok(ExitCode::SUCCESS)
        }
        Some("404" | "405") => {
            bail!("{}: no gate that knows `revoke`; name its admin listener with --admin", args.admin)
        }
        Some(status) if !body.is_empty() => bail!("{}: the gate refuses ({status}): {}", args.admin, body.trim()),
        _ => bail!("{}: no gate's admin listener; name it with --admin", args.admin),
    }
}

fn post(admin: SocketAddr, target: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let fields = format!("Host: {admin}\r\n{HEADER}: revoke\r\nContent-Length: 0\r\nConnection: close\r\n");
    write!(stream, "POST {target} HTTP/1.1\r\n{fields}\r\n")?;
    let mut answer = Vec::new();
    stream.take(8192).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there: is the gate running, and is this its admin listener (--admin)?".to_owned()
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "no answer; name the admin listener with --admin".to_owned()
        }
        _ => error.to_string(),
    }
}

/// A POST to the admin listener.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'h> {
    target: &'h str,
    host: Option<&'h str>,
    word: Option<&'h str>,
}

impl<'h> Request<'h> {
    /// Reads it, if it is one.
    pub fn read(head: &'h [u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.split("\r\n");
        let target = lines.next()?.strip_prefix("POST ")?.split(' ').next()?;
        Some(Self::with(target, lines))
    }

    fn with(target: &'h str, lines: impl Iterator<Item = &'h str>) -> Self {
        let mut request = Self { target, host: None, word: None };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("host") {
                request.host = Some(value.trim());
            } else if name.eq_ignore_ascii_case(HEADER) {
                request.word = Some(value.trim());
            }
        }
        request
    }
}

/// Whether a head names this machine by an address, as no page that has rebound its own name can.
pub fn calls_an_address(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    Request::with("", text.split("\r\n").skip(1)).host.is_some_and(is_address)
}

/// Does what is asked, and says so: a status and a text. `local`: it was asked from this machine.
pub fn obey(request: &Request<'_>, local: bool, gate: &Gate) -> (&'static str, String) {
    const FORBIDDEN: &str = "403 Forbidden";
    let Some(whom) = request.target.strip_prefix("/revoke").and_then(|rest| rest.strip_prefix('?')) else {
        return ("404 Not Found", "only POST /revoke?user=NAME and POST /revoke?all\n".to_owned());
    };
    if !local {
        return (FORBIDDEN, "only from the machine that the gate runs on\n".to_owned());
    }
    if request.word != Some("revoke") {
        return (FORBIDDEN, format!("send it with {HEADER}: revoke\n"));
    }
    if !request.host.is_some_and(is_address) {
        return (FORBIDDEN, "call the admin listener by its address, not by a name\n".to_owned());
    }
    if whom == "all" {
        gate.forget();
        return ("200 OK", "revoked: all\n".to_owned());
    }
    match whom.strip_prefix("user=").and_then(decode) {
        Some(user) if check_principal(&user).is_ok() => {
            gate.forget_user(&user);
            ("200 OK", format!("revoked: {user}\n"))
        }
        _ => ("400 Bad Request", "this is no user name\n".to_owned()),
    }
}

fn is_address(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().starts_with("localhost:")
        || host.parse::<SocketAddr>().is_ok()
        || host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

/// Every byte that is no letter, digit, `-`, `.`, `_` or `~` as `%XX`.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn decode(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
            }
            b'&' | b'=' | b'+' => return None,
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_through_as_they_are() {
        for name in ["alice", "a b", "zoë", "x@y.example", "100%", "a&b=c+d", "-.~_/?#"] {
            assert_eq!(decode(&encode(name)).as_deref(), Some(name));
            assert!(!encode(name).contains([' ', '&', '?', '#']), "{name}");
        }
        for wrong in ["%", "%4", "%zz", "%ff", "a&all", "a=b", "a+b"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_name_that_was_rebound_is_no_address() {
        for host in ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "::1", "[::1]", "localhost", "LOCALHOST:9180"] {
            assert!(is_address(host), "{host}");
        }
        for host in ["evil.example", "evil.example:9180", "localhost.evil.example", "", "127.0.0.1.evil.example:80"] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn requests_are_read() {
        let read = |text: &'static str| Request::read(text.as_bytes());
        assert_eq!(read("GET /revoke?all HTTP/1.1\r\nHost: a\r\n\r\n"), None);
        let request = read("POST /revoke?all HTTP/1.1\r\nhost: 127.0.0.1\r\nx-portcullis-admin:  revoke\r\n\r\n");
        let expected = Request { target: "/revoke?all", host: Some("127.0.0.1"), word: Some("revoke") };
        assert_eq!(request, Some(expected));
    }
}
