//! The auth subrequest: what nginx calls `auth_request`, asked of a service that answers with a status.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::upstream::{Connection, NoResponse, Pool, response_head};
use crate::auth::Principal;
use crate::balance::idle::Need;
use crate::forward::{Downstream, assertions};
use crate::http::chunked::Decoder;
use crate::http::fields::tokens;
use crate::http::{Framing, RequestHead, head};
use crate::verdict::{Answer, Fields, Identity};

/// The largest reply that is read; a login service has no more to say.
const REPLY_BYTES: u64 = 64 * 1024;

/// One question to the auth backend.
#[derive(Debug)]
pub struct Subrequest<'r> {
    /// The path to ask on.
    pub path: &'r str,
    /// The client's request.
    pub head: &'r RequestHead<'r>,
    /// Its target as everybody sees it.
    pub target: &'r str,
    /// The client's connection.
    pub from: &'r Downstream<'r>,
    /// The name in Basic credentials; it becomes the principal if the backend says yes.
    pub user: Option<String>,
}

/// An answer, and how long its sender lets it be remembered.
type Asked = (Answer, Option<Duration>);

/// Asks, and turns the reply into an answer. Whatever is not a clear word is [`Answer::Unavailable`].
pub async fn ask(pool: &Pool, request: &Subrequest<'_>, within: Duration) -> Asked {
    let wire = write(request, &pool.service().authority);
    match monoio::time::timeout(within, exchange(pool, &wire, request.from.told)).await {
        Ok(Ok(reply)) => judge(&reply, request.user.as_deref()),
        Ok(Err(why)) => (Answer::Unavailable { why }, None),
        Err(_) => (Answer::Unavailable { why: "the auth backend did not answer in time" }, None),
    }
}

/// A GET without a body: the authoriser is never shown a part of something, as if it were the whole.
fn write(request: &Subrequest<'_>, authority: &str) -> Zeroizing<Vec<u8>> {
    // In one piece: a vector that grows leaves a copy of the credentials behind.
    let credentials = request.head.authorization.map_or(0, <[u8]>::len);
    let mut out = Zeroizing::new(Vec::with_capacity(1024 + credentials + request.target.len()));
    // Writing into a Vec does not fail.
    let _ = write!(*out, "GET {} HTTP/1.1\r\nHost: {authority}\r\n", request.path);
    if let Some(value) = request.head.authorization {
        out.extend_from_slice(b"Authorization: ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    let _ = write!(*out, "X-Original-URI: {}\r\nX-Original-Method: {}\r\n", request.target, request.head.method);
    assertions(request.from, &mut out);
    out.extend_from_slice(b"\r\n");
    out
}

/// The part of a reply that means something.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    challenge: Option<String>,
    retry_after: Option<u32>,
    lifetime: Option<Duration>,
    /// Those that the configuration names.
    fields: Fields,
}

/// A kept connection may have been closed just now: a question may be asked twice, so it is tried again on a new one.
async fn exchange(pool: &Pool, wire: &[u8], told: &[String]) -> Result<Reply, &'static str> {
    const UNREACHABLE: &str = "the auth backend cannot be reached";
    let mut connection = pool.get(Need::Any).await.map_err(|_| UNREACHABLE)?;
    if connection.reused {
        match attempt(&mut connection, wire, told).await {
            Ok((reply, keep)) => return Ok(finish(pool, connection, reply, keep)),
            Err(Failed::Silent) => connection = pool.connect().await.map_err(|_| UNREACHABLE)?,
            Err(Failed::Final(why)) => return Err(why),
        }
    }
    match attempt(&mut connection, wire, told).await {
        Ok((reply, keep)) => Ok(finish(pool, connection, reply, keep)),
        Err(Failed::Silent) => Err("the auth backend closed the connection without an answer"),
        Err(Failed::Final(why)) => Err(why),
    }
}

fn finish(pool: &Pool, connection: Connection, reply: Reply, keep: bool) -> Reply {
    if keep {
        pool.put(connection);
    }
    reply
}

enum Failed {
    /// Not one byte came back.
    Silent,
    Final(&'static str),
}

async fn attempt(connection: &mut Connection, wire: &[u8], told: &[String]) -> Result<(Reply, bool), Failed> {
    connection.stream.write_all(wire).await.map_err(|_| Failed::Silent)?;
    let len = response_head(&connection.stream, &mut connection.read).await.map_err(|error| match error {
        NoResponse::Lost { silent: true, .. } => Failed::Silent,
        NoResponse::Invalid(_) => Failed::Final("the auth backend's answer is not valid HTTP"),
        NoResponse::Lost { .. } | NoResponse::TimedOut => Failed::Final("the auth backend broke off its answer"),
    })?;
    let (reply, framing, keep) = {
        let head = head::response(&connection.read[..len], "GET")
            .map_err(|_| Failed::Final("the auth backend's answer is not valid HTTP"))?;
        (understand(&head, told), head.framing, head.keep_alive)
    };
    connection.read.drain(..len);
    discard_body(connection, framing).await.map_err(Failed::Final)?;
    Ok((reply, keep))
}

fn understand(head: &head::ResponseHead<'_>, told: &[String]) -> Reply {
    let text = |name| head.field(name).and_then(|value| std::str::from_utf8(value).ok());
    Reply {
        status: head.status,
        challenge: text("www-authenticate").map(str::to_owned),
        retry_after: text("retry-after").and_then(|value| value.parse().ok()),
        lifetime: head.field("cache-control").and_then(lifetime),
        fields: told.iter().filter_map(|name| Some((name.clone(), head.field(name)?.to_vec()))).collect(),
    }
}

/// `no-store` and `max-age` of a `Cache-Control` (RFC 9111 §5.2.2); the gate remembers no longer than either says.
fn lifetime(value: &[u8]) -> Option<Duration> {
    let mut asked = None;
    for token in tokens(value) {
        let token = token.to_ascii_lowercase();
        if matches!(token.as_slice(), b"no-store" | b"no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some(seconds) = token.strip_prefix(b"max-age=") {
            // A number that cannot be read is stale at once (RFC 9111 §4.2.1).
            let seconds = std::str::from_utf8(seconds).ok().and_then(|s| s.parse().ok()).unwrap_or(0);
            asked = Some(Duration::from_secs(seconds));
        }
    }
    asked
}

/// Reads past the reply's body, so that the connection can be used again.
async fn discard_body(connection: &mut Connection, framing: Framing) -> Result<(), &'static str> {
    const LARGE: &str = "the auth backend's answer is larger than 64 KiB";
    const BROKEN: &str = "the auth backend broke off its answer";
    let (mut total, mut decoder) = (0_u64, Decoder::new());
    let mut left = match framing {
        Framing::None => return Ok(()),
        Framing::Length(length) if length > REPLY_BYTES => return Err(LARGE),
        Framing::Length(length) => length,
        Framing::Chunked | Framing::UntilClose => u64::MAX,
    };
    loop {
        let ours = if framing == Framing::Chunked {
            let mut at = 0;
            while at < connection.read.len() && !decoder.is_done() {
                at += decoder.decode(&connection.read[at..]).map_err(|_| BROKEN)?.consumed;
            }
            at
        } else {
            connection.read.len().min(usize::try_from(left).unwrap_or(usize::MAX))
        };
        connection.read.drain(..ours);
        total += ours as u64;
        left -= ours as u64;
        if total > REPLY_BYTES {
            return Err(LARGE);
        }
        if left == 0 || decoder.is_done() {
            return Ok(());
        }
        if connection.stream.read(&mut connection.read, 16 * 1024).await.map_err(|_| BROKEN)? == 0 {
            return if framing == Framing::UntilClose { Ok(()) } else { Err(BROKEN) };
        }
    }
}

/// The whole table: 2xx, 401, 403, 429, and everything else.
fn judge(reply: &Reply, user: Option<&str>) -> Asked {
    let answer = match reply.status {
        200..=299 => {
            let principal = user.map_or(Principal::Anonymous, Principal::user);
            Answer::Known(Arc::new(Identity { principal, fields: reply.fields.clone() }))
        }
        401 => Answer::Unknown { challenge: reply.challenge.as_deref().map(Into::into) },
        403 => Answer::Forbidden,
        429 => Answer::Throttled { retry_after: reply.retry_after.unwrap_or(5) },
        _ => Answer::Unavailable { why: "the auth backend answered with an unexpected status" },
    };
    (answer, reply.lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clear_words_are_answers() {
        let judged = |status| judge(&Reply { status, ..Reply::default() }, Some("alice")).0;
        assert_eq!(judged(200), Answer::Known(Principal::user("alice").into()));
        assert_eq!(judged(204), Answer::Known(Principal::user("alice").into()));
        assert_eq!(judged(401), Answer::Unknown { challenge: None });
        assert_eq!(judged(403), Answer::Forbidden);
        assert_eq!(judged(429), Answer::Throttled { retry_after: 5 });
        for status in [100, 199, 300, 302, 307, 400, 402, 404, 407, 418, 500, 502, 503, 599] {
            assert!(matches!(judged(status), Answer::Unavailable { .. }), "{status}");
        }
    }

    #[test]
    fn lifetimes_are_obeyed() {
        for (value, seconds) in [
            ("no-store", Some(0)),
            ("private, max-age=60", Some(60)),
            ("max-age=60, no-store", Some(0)),
            ("public, Max-Age=7", Some(7)),
            ("max-age=x", Some(0)),
            ("public", None),
        ] {
            assert_eq!(lifetime(value.as_bytes()), seconds.map(Duration::from_secs), "{value}");
        }
    }
}
