//! `portcullis auth-service`: the small stand-alone Basic auth service of the 2014 recipe. Any path, any method: 200 for a
//! good login, 401 with a challenge for everything else.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use zeroize::Zeroizing;

use super::doors::{bind_problem, patiently};
use super::hashing::Hashers;
use super::listener::accept_all;
use super::passwords::Passwords;
use super::sandbox::{self, Places};
use super::stream::{recv_some, send_all};
use super::sys::driver::Driver;
use super::sys::privilege::{hide_memory, raise_file_limit};
use super::sys::socket::{self, Socket};
use super::telemetry::say;
use super::watch::{Watch, Watched};
use crate::auth::{challenge, credentials};
use crate::config::Limits as Configured;
use crate::forward::connection_field;
use crate::http::RequestHead;
use crate::http::head::{self, Limits};
use crate::limit::MinimumRate;

/// What the service of 2014 said, word for word: scripts look for it.
const WELCOME: &str = "User authenticated successfully";

struct Service {
    htpasswd: Arc<Passwords>,
    hashers: Hashers,
    challenge: String,
    limits: Limits,
    configured: Configured,
}

/// Serves until it is stopped.
///
/// # Errors
/// When the file cannot be used or the address not be bound.
pub fn run(htpasswd: &Path, listen: SocketAddr, realm: &str) -> anyhow::Result<ExitCode> {
    challenge::check_realm(realm).map_err(|problem| anyhow!("the realm {problem}"))?;
    let places = Places::default().reading(htpasswd);
    let htpasswd = Arc::new(Passwords::load(htpasswd).map_err(anyhow::Error::msg)?);
    hide_memory().context("cannot keep this process's memory to itself")?;
    raise_file_limit();
    let fd = patiently(|| socket::bound(listen, false))
        .and_then(|fd| socket::start_listening(&fd).map(|()| fd))
        .map_err(|error| anyhow!("cannot listen on {listen}: {}", bind_problem(&error)))?;
    sandbox::enter(places)?.iter().for_each(|line| say(&format!("auth-service: {line}")));
    let configured = Configured::default();
    let hashers = Hashers::new(configured.hash_threads, configured.hash_queue);
    hashers.start().context("cannot start the password helpers")?;
    htpasswd.keep_fresh().context("cannot start a thread for the file of users")?;
    let limits =
        Limits { head_bytes: configured.head_bytes, target_bytes: configured.target_bytes, fields: configured.fields };
    let service = Rc::new(Service { htpasswd, hashers, challenge: challenge::basic(realm), limits, configured });
    let mut driver = Driver::build().context("cannot start the event loop")?;
    say(&format!("auth-service: listening on http://{listen}"));
    driver.block_on(accept(service, fd))?;
    Ok(ExitCode::SUCCESS)
}

async fn accept(service: Rc<Service>, fd: std::os::fd::OwnedFd) -> anyhow::Result<()> {
    let watch = Watch::new(MinimumRate { bytes_per_second: 0, window: 10_000 });
    monoio::spawn(Rc::clone(&watch).run());
    let listener = Socket::new(fd)?;
    accept_all(&listener, |fd, _| {
        if let Ok(socket) = Socket::new(fd) {
            let (service, socket) = (Rc::clone(&service), watch.add(socket));
            monoio::spawn(async move { while service.answer(&socket).await {} });
        }
    })
    .await;
    Ok(())
}

impl Service {
    /// Answers one request; whether another may follow.
    async fn answer(&self, socket: &Watched) -> bool {
        socket.expect_within(self.configured.idle_timeout);
        let mut read = Zeroizing::new(Vec::with_capacity(4096));
        let mut seen = 0;
        let len = loop {
            if !read.is_empty() {
                match head::end(&read, seen, &self.limits) {
                    Ok(Some(len)) => break len,
                    Ok(None) => {}
                    Err(reject) => return self.reply(socket, reject.status(), None).await,
                }
            }
            seen = read.len();
            if !matches!(recv_some(socket, &mut read, 4096).await, Ok(1..)) {
                return false;
            }
        };
        match head::request(&read[..len], &self.limits) {
            Ok(head) => {
                let status = self.judge(&head).await;
                // A body, or a request sent ahead, is not worth reading: only a bare request keeps the connection.
                let keep = head.keep_alive && head.framing.is_empty() && len == read.len();
                self.reply(socket, status, keep.then_some(&head)).await
            }
            Err(reject) => self.reply(socket, reject.status(), None).await,
        }
    }

    async fn judge(&self, head: &RequestHead<'_>) -> u16 {
        let Some(Ok(basic)) = head.authorization.map(credentials::parse) else { return 401 };
        let file = self.htpasswd.current();
        match self.hashers.run(move || file.verify(&basic.user, basic.password.expose())).await {
            Ok(true) => 200,
            Ok(false) => 401,
            Err(_) => 503,
        }
    }

    async fn reply(&self, socket: &Watched, status: u16, keep: Option<&RequestHead<'_>>) -> bool {
        let (reason, body) = match status {
            200 => ("OK", WELCOME),
            401 => ("Unauthorized", "Authentication required"),
            503 => ("Service Unavailable", "Too many logins at once"),
            _ => ("Bad Request", "This is not a request that can be answered"),
        };
        let mut out = Vec::with_capacity(256);
        // Writing into a Vec does not fail.
        let _ =
            write!(out, "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
        match status {
            401 => {
                let _ = write!(out, "WWW-Authenticate: {}\r\n", self.challenge);
            }
            503 => out.extend_from_slice(b"Retry-After: 1\r\n"),
            _ => {}
        }
        let version = keep.map_or(crate::http::Version::Http11, |head| head.version);
        connection_field(keep.is_some(), version, &mut out);
        out.extend_from_slice(b"\r\n");
        let head_only = keep.is_some_and(|head| head.method == "HEAD");
        if !head_only {
            out.extend_from_slice(body.as_bytes());
        }
        send_all(socket, &out).await.is_ok() && keep.is_some()
    }
}
