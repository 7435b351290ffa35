//! Clients as one shape: a body goes in at their standard input, or comes out at their standard output. Those that speak
//! no HTTP are told the request as they would be by a person.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;

use anyhow::{Context as _, bail, ensure};

use super::content::{self, Summing};
use super::{CREDS, Suite};
use crate::support::cmd::Cmd;
use crate::support::http::basic;
use crate::support::root;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    Up,
    Down,
}

/// With whom, and by which suite.
pub(super) struct Terms<'r> {
    pub(super) addr: SocketAddr,
    pub(super) ca: &'r Path,
    pub(super) suite: &'static Suite,
    /// For what a client has to keep.
    pub(super) dir: &'r Path,
}

pub(super) struct Client {
    pub(super) name: &'static str,
    /// Speaks TLS only.
    raw: bool,
    /// The most that it can download in a reasonable time.
    pub(super) most: u64,
    before: fn(&Terms<'_>) -> anyhow::Result<()>,
    command: fn(&Terms<'_>, Way, u64) -> Cmd,
}

const fn nothing(_: &Terms<'_>) -> anyhow::Result<()> {
    Ok(())
}

pub(super) const CURL: Client = Client { name: "curl", raw: false, most: u64::MAX, before: nothing, command: curl };
pub(super) const S_CLIENT: Client =
    Client { name: "s_client", raw: true, most: u64::MAX, before: nothing, command: s_client };
pub(super) const PYTHON: Client =
    Client { name: "python", raw: false, most: u64::MAX, before: openssl_file, command: python };
/// Its command writes what it receives byte by byte.
pub(super) const GNUTLS: Client =
    Client { name: "gnutls", raw: true, most: 1_000_003, before: nothing, command: gnutls };
pub(super) const NSS: Client = Client { name: "nss", raw: true, most: u64::MAX, before: nss_database, command: nss };
pub(super) const JAVA: Client = Client { name: "java", raw: false, most: u64::MAX, before: compile, command: java };

impl Client {
    /// What it takes to run it.
    pub(super) fn prepare(&self, terms: &Terms<'_>) -> anyhow::Result<()> {
        (self.before)(terms)
    }

    /// Moves a body; what arrived adds up to what this gives.
    pub(super) fn run(&self, terms: &Terms<'_>, way: Way, size: u64) -> anyhow::Result<String> {
        let mut running = Running::start((self.command)(terms, way, size))?;
        let mut input = running.input.take().context("no standard input")?;
        let raw = self.raw;
        // Written beside the reading: an answer may begin before all is sent. A raw client's input stays open until it has
        // the answer, for it takes its end as the end of the conversation.
        let writer = thread::spawn(move || -> std::io::Result<Option<ChildStdin>> {
            if raw {
                input.write_all(request(way, size).as_bytes())?;
            }
            if way == Way::Up {
                content::write(&mut input, size)?;
            }
            input.flush()?;
            Ok(raw.then_some(input))
        });
        let got = if raw { running.answer() } else { running.everything() };
        let written = writer.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()));
        let got = got.map_err(|error| anyhow::anyhow!("{error:#}\n{}", running.last_words()))?;
        drop(written.context("cannot write to it")?);
        if !raw {
            running.succeeded()?;
        }
        Ok(got)
    }
}

/// A request as a person would type it.
pub(super) fn request(way: Way, size: u64) -> String {
    let (method, target, fields) = match way {
        Way::Down => ("GET", content::blob(size), String::new()),
        Way::Up => {
            let fields = format!("Content-Length: {size}\r\nContent-Type: application/octet-stream\r\n");
            ("PATCH", content::UPLOAD.to_owned(), fields)
        }
    };
    let login = basic(CREDS);
    format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {login}\r\n{fields}Connection: close\r\n\r\n"
    )
}

/// A client at work; gone when dropped.
pub(super) struct Running {
    child: Child,
    pub(super) input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    errors: tempfile::NamedTempFile,
    shown: String,
}

impl Running {
    pub(super) fn start(cmd: Cmd) -> anyhow::Result<Self> {
        let shown = cmd.shown();
        let errors = tempfile::NamedTempFile::new()?;
        let mut command = cmd.into_command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.reopen()?);
        let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let output = BufReader::with_capacity(1 << 16, child.stdout.take().context("no standard output")?);
        Ok(Self { input: child.stdin.take(), child, output, errors, shown })
    }

    /// The answer, of which only a body is written.
    fn everything(&mut self) -> anyhow::Result<String> {
        let mut sum = Sink::default();
        std::io::copy(&mut self.output, &mut sum)?;
        Ok(sum.finish())
    }

    /// The answer, found behind what a client says of itself.
    pub(super) fn answer(&mut self) -> anyhow::Result<String> {
        self.answer_with(|_| Ok(()))
    }

    /// The same; `meanwhile` is told how many bytes of the body are there.
    pub(super) fn answer_with(
        &mut self,
        mut meanwhile: impl FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<String> {
        let length = self.head()?;
        let (mut sum, mut there, mut piece) = (Sink::default(), 0, vec![0; 1 << 16]);
        while there < length {
            let most = usize::try_from((length - there).min(piece.len() as u64))?;
            let read = self.output.read(&mut piece[..most])?;
            ensure!(read > 0, "the body ends at {there} of {length} bytes");
            sum.write_all(&piece[..read])?;
            there += read as u64;
            meanwhile(there)?;
        }
        Ok(sum.finish())
    }

    /// Reads to the end of the answer's head: the length of the body.
    fn head(&mut self) -> anyhow::Result<u64> {
        let (mut begun, mut length, mut line) = (false, None, Vec::new());
        loop {
            line.clear();
            ensure!(self.output.read_until(b'\n', &mut line)? > 0, "no answer");
            let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
            if let Some(at) = text.find("http/1.1 ") {
                ensure!(text[at + 9..].starts_with("20"), "{}", text.trim());
                begun = true;
            }
            if let Some(value) = text.strip_prefix("content-length: ").filter(|_| begun) {
                length = Some(value.trim().parse()?);
            }
            if begun && line == b"\r\n" {
                return length.context("no Content-Length");
            }
        }
    }

    fn succeeded(&mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("`{}` ended with {status}: {}", self.shown, self.last_words());
        }
        Ok(())
    }

    /// What it wrote to its standard error.
    pub(super) fn last_words(&self) -> String {
        std::fs::read_to_string(self.errors.path()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A download is summed up; the answer to an upload is a sum by itself, which the store has made.
#[derive(Default)]
struct Sink {
    sum: Summing,
    start: Vec<u8>,
}

impl Sink {
    fn finish(self) -> String {
        let text = String::from_utf8(self.start).unwrap_or_default();
        let is_sum = text.len() < 100 && text.split_once(' ').is_some_and(|(_, hash)| hash.len() == 64);
        if is_sum { text } else { self.sum.finish() }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.start.len() < 100 {
            self.start.extend_from_slice(&bytes[..bytes.len().min(100)]);
        }
        self.sum.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn curl(terms: &Terms<'_>, way: Way, size: u64) -> Cmd {
    let target = if way == Way::Down { content::blob(size) } else { content::UPLOAD.to_owned() };
    let cmd = Cmd::new("curl").args(["--silent", "--show-error", "--fail", "--http1.1", "--cacert"]).arg(terms.ca);
    let cmd = if terms.suite.tls13 {
        cmd.args(["--tlsv1.3", "--tls13-ciphers", terms.suite.openssl])
    } else {
        cmd.args(["--tlsv1.2", "--tls-max", "1.2", "--ciphers", terms.suite.openssl])
    };
    let cmd = cmd.arg("--header").secret_arg(format!("Authorization: {}", basic(CREDS)));
    // A body of unknown length: in chunks.
    let up = ["--request", "PATCH", "--header", "Content-Type: application/octet-stream", "--upload-file", "-"];
    let cmd = if way == Way::Up { cmd.args(up) } else { cmd };
    cmd.arg(format!("https://localhost:{}{target}", terms.addr.port()))
}

fn s_client(terms: &Terms<'_>, _: Way, _: u64) -> Cmd {
    openssl(terms).arg("-quiet")
}

/// With a check of the certificate that ends a conversation with anybody else.
pub(super) fn openssl(terms: &Terms<'_>) -> Cmd {
    let cmd = Cmd::new("openssl").args(["s_client", "-connect", &terms.addr.to_string(), "-CAfile"]).arg(terms.ca);
    let cmd = cmd.args(["-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost"]);
    if terms.suite.tls13 {
        cmd.args(["-tls1_3", "-ciphersuites", terms.suite.openssl])
    } else {
        cmd.args(["-tls1_2", "-cipher", terms.suite.openssl])
    }
}

fn python(terms: &Terms<'_>, way: Way, size: u64) -> Cmd {
    let version = if terms.suite.tls13 { "TLSv1_3" } else { "TLSv1_2" };
    let script = root().join("tests/peers/transfer.py");
    let cmd = Cmd::new("python3").env("OPENSSL_CONF", terms.dir.join("openssl.cnf")).arg(script);
    program(cmd.env("SUITE", terms.suite.openssl), terms, version, terms.suite.openssl, way, size)
}

/// Python cannot choose among the suites of TLS 1.3, but OpenSSL beneath it reads a file.
fn openssl_file(terms: &Terms<'_>) -> anyhow::Result<()> {
    let text = "openssl_conf = all\nconfig_diagnostics = 1\n[all]\nssl_conf = tls\n[tls]\nsystem_default = default\n\
                [default]\nCiphersuites = $ENV::SUITE\n";
    Ok(std::fs::write(terms.dir.join("openssl.cnf"), text)?)
}

fn java(terms: &Terms<'_>, way: Way, size: u64) -> Cmd {
    let version = if terms.suite.tls13 { "TLSv1.3" } else { "TLSv1.2" };
    let cmd = Cmd::new("java").args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"]).arg(terms.dir).arg("Transfer");
    program(cmd, terms, version, terms.suite.iana, way, size)
}

fn compile(terms: &Terms<'_>) -> anyhow::Result<()> {
    let source = root().join("tests/peers/Transfer.java");
    Cmd::new("javac").arg("-d").arg(terms.dir).arg(source).run().map(drop)
}

/// The arguments of our own clients; a download has no size.
fn program(cmd: Cmd, terms: &Terms<'_>, version: &str, suite: &str, way: Way, size: u64) -> Cmd {
    let (target, size) = if way == Way::Down { (content::blob(size), 0) } else { (content::UPLOAD.to_owned(), size) };
    let cmd = cmd.arg(terms.addr.port().to_string()).arg(terms.ca).args([version, suite, &target]);
    cmd.arg(size.to_string()).secret_arg(basic(CREDS))
}

/// What it has to say of itself goes to the null device.
fn gnutls(terms: &Terms<'_>, _: Way, _: u64) -> Cmd {
    let version = if terms.suite.tls13 { "TLS1.3" } else { "TLS1.2" };
    let priority = format!("NORMAL:-VERS-ALL:+VERS-{version}:-CIPHER-ALL:+{}", terms.suite.gnutls);
    let cmd = Cmd::new("gnutls-cli").args(["--logfile", "/dev/null", "--priority", &priority, "--x509cafile"]);
    cmd.arg(terms.ca).args(["--port", &terms.addr.port().to_string(), "localhost"])
}

fn nss_database(terms: &Terms<'_>) -> anyhow::Result<()> {
    let database = format!("sql:{}", terms.dir.display());
    Cmd::new("certutil").args(["-N", "--empty-password", "-d", &database]).run()?;
    Cmd::new("certutil").args(["-A", "-n", "ca", "-t", "C,,", "-d", &database, "-i"]).arg(terms.ca).run().map(drop)
}

fn nss(terms: &Terms<'_>, _: Way, _: u64) -> Cmd {
    let version = if terms.suite.tls13 { "tls1.3:tls1.3" } else { "tls1.2:tls1.2" };
    let database = format!("sql:{}", terms.dir.display());
    let cmd =
        Cmd::new("tstclnt").args(["-4", "-h", "localhost", "-p", &terms.addr.port().to_string(), "-d", &database]);
    cmd.args(["-V", version, "-c", &format!(":{:04X}", terms.suite.number)])
}
