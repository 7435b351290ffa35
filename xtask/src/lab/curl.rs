//! One request by curl: what a person would type, and TLS without a TLS library in here.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::cmd::Cmd;

const COULD_NOT_CONNECT: i32 = 7;
const TIMED_OUT: i32 = 28;
const MARK: &str = "\n--portcullis-status-";

/// A request to make.
#[derive(Debug)]
pub struct Curl<'a> {
    url: &'a str,
    ca: Option<&'a Path>,
    user: Option<&'a str>,
    timeout: Duration,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// There was a response.
    Response {
        /// Its status.
        status: u16,
        /// Its head, as it came.
        head: String,
        /// Its body.
        body: String,
    },
    /// The connection was not made: refused, or not allowed.
    Refused,
    /// Nothing came in time.
    TimedOut,
}

impl Answer {
    /// The status, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Response { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The value of a field, by its name in any case.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let Self::Response { head, .. } = self else {
            return None;
        };
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl<'a> Curl<'a> {
    /// A GET.
    #[must_use]
    pub fn get(url: &'a str) -> Self {
        Self { url, ca: None, user: None, timeout: Duration::from_secs(20) }
    }

    /// Trusts the CA of this file and no other.
    #[must_use]
    pub fn ca(mut self, ca: &'a Path) -> Self {
        self.ca = Some(ca);
        self
    }

    /// Sends `NAME:PASSWORD`.
    #[must_use]
    pub fn user(mut self, user: &'a str) -> Self {
        self.user = Some(user);
        self
    }

    /// How long all of it may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends it from this process.
    ///
    /// # Errors
    /// When curl cannot be started or ends in a way that is neither an answer nor a refusal.
    pub fn send(self) -> anyhow::Result<Answer> {
        self.send_by(Cmd::new("curl"))
    }

    /// Sends it with a prepared curl command (as another user, say).
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_by(self, curl: Cmd) -> anyhow::Result<Answer> {
        let mut cmd = curl
            .args(["--silent", "--show-error", "--include", "--noproxy", "*", "--http1.1"])
            .args(["--write-out", &format!("{MARK}%{{http_code}}")])
            .args(["--max-time", &self.timeout.as_secs_f64().to_string()]);
        if let Some(ca) = self.ca {
            cmd = cmd.arg("--cacert").arg(ca);
        }
        if let Some(user) = self.user {
            // By way of standard input, so that no process list shows it.
            let quoted = user.replace('\\', "\\\\").replace('"', "\\\"");
            cmd = cmd.args(["--config", "-"]).input(format!("user = \"{quoted}\"\n"));
        }
        let output = cmd.arg(self.url).output()?;
        match output.status.code() {
            Some(0) => {}
            Some(COULD_NOT_CONNECT) => return Ok(Answer::Refused),
            Some(TIMED_OUT) => return Ok(Answer::TimedOut),
            _ => bail!("`{}` failed ({}): {}", output.shown, output.status, output.everything().trim()),
        }
        let text = output.text();
        let (response, status) = text.rsplit_once(MARK).context("curl gave no status")?;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
        let status = status.trim().parse().context("curl gave no status")?;
        Ok(Answer::Response { status, head: head.to_owned(), body: body.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::hello::{Reply, Stub};
    use crate::lab::process::free_address;

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let stub = Stub::start(|request| {
            let authorization = request.field("authorization").unwrap_or("none").to_owned();
            Reply::text(203, authorization).with("X-Seen", "yes")
        })
        .unwrap();
        let url = format!("{}/x", stub.url());
        let answer = Curl::get(&url).user("a:b\"c\\d").send().unwrap();
        assert_eq!((answer.status(), answer.field("x-seen")), (Some(203), Some("yes")));
        let Answer::Response { body, .. } = answer else { panic!("no response") };
        assert_eq!(body, "Basic YTpiImNcZA==");
        let closed = format!("http://{}/", free_address().unwrap());
        assert_eq!(Curl::get(&closed).send().unwrap(), Answer::Refused);
    }
}
