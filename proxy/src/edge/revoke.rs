//! `portcullis revoke` and `portcullis reload`, both ends of them: the commands, and what the admin listener does about them.
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
use super::reload::Control;
use crate::auth::principal::check_principal;

const HEADER: &str = "X-Portcullis-Admin";
const PATIENCE: Duration = Duration::from_secs(5);

/// A reload reads files, looks names up and tries upstreams.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

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
    let answer = post(args.admin, "revoke", &target, PATIENCE)
        .map_err(|error| anyhow!("{}: {}", args.admin, problem(&error)))?;
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

/// Flags of `reload`.
#[derive(Debug, Clone, Args)]
pub struct ReloadArgs {
    /// The admin listener of the gate
    #[arg(long, value_name = "ADDR", default_value_t = admin::DEFAULT)]
    pub admin: SocketAddr,
}

/// Has a running gate read its configuration again.
///
/// # Errors
/// Everything that is wrong with the configuration, which then stays as it was; or that no gate is there.
pub fn run_reload(args: &ReloadArgs) -> Result<ExitCode, Vec<String>> {
    let at = args.admin;
    let answer = post(at, "reload", "/reload", RELOAD_PATIENCE);
    let answer = answer.map_err(|error| vec![format!("{at}: {}", problem(&error))])?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.split(' ').nth(1) {
        Some("200") => {
            let _ = io::stdout().lock().write_all(body.as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        Some("409") => Err(body.lines().map(str::to_owned).collect()),
        Some("404" | "405") => {
            Err(vec![format!("{at}: no gate that knows `reload`; name its admin listener with --admin")])
        }
        Some(status) if !body.is_empty() => Err(vec![format!("{at}: the gate refuses ({status}): {}", body.trim())]),
        _ => Err(vec![format!("{at}: no gate's admin listener; name it with --admin")]),
    }
}

fn post(admin: SocketAddr, word: &str, target: &str, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let fields = format!("Host: {admin}\r\n{HEADER}: {word}\r\nContent-Length: 0\r\nConnection: close\r\n");
    write!(stream, "POST {target} HTTP/1.1\r\n{fields}\r\n")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
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

/// What the admin listener answers: a status and a text.
pub type Answer = (&'static str, String);

/// Does what is asked, and says so. `local`: it was asked from this machine.
pub fn obey(request: &Request<'_>, local: bool, control: &Control) -> Answer {
    match request.target.split_once('?').unwrap_or((request.target, "")) {
        ("/reload", "") => request.permit("reload", local).map_or_else(|answer| answer, |()| reload(control)),
        ("/drain", "") => request.permit("drain", local).map_or_else(|answer| answer, |()| drain(control)),
        ("/revoke", whom) if !whom.is_empty() => {
            request.permit("revoke", local).map_or_else(|answer| answer, |()| forget(whom, &control.current().gate))
        }
        _ => ("404 Not Found", "only POST /revoke?user=NAME, /revoke?all, /reload and /drain\n".to_owned()),
    }
}

fn reload(control: &Control) -> Answer {
    let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
    match control.reload() {
        Ok(lines) => ("200 OK", text(lines)),
        Err(errors) => ("409 Conflict", text(errors)),
    }
}

fn drain(control: &Control) -> Answer {
    let text = if control.drain() { "draining\n" } else { "draining already\n" };
    ("200 OK", text.to_owned())
}

impl Request<'_> {
    /// Whether it comes from somebody who may ask for `word`; else the answer.
    fn permit(&self, word: &str, local: bool) -> Result<(), Answer> {
        let why = if !local {
            "only from the machine that the gate runs on".to_owned()
        } else if self.word != Some(word) {
            format!("send it with {HEADER}: {word}")
        } else if !self.host.is_some_and(is_address) {
            "call the admin listener by its address, not by a name".to_owned()
        } else {
            return Ok(());
        };
        Err(("403 Forbidden", why + "\n"))
    }
}

fn forget(whom: &str, gate: &Gate) -> Answer {
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
