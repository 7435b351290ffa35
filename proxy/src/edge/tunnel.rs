//! A connection whose protocol was changed (WebSocket): bytes go both ways, unread, until both sides have ended.

use std::pin::pin;

use futures_util::future::{Either, select};

use super::connection::{Client, Next};
use super::exchange::count_received;
use super::relay::{Body, Broken, Moved, Rest};
use super::stream::Stream;
use super::telemetry::Record;
use super::upstream::Connection;
use crate::forward;
use crate::http::{Framing, ResponseHead};

/// Relays the change of protocol and then everything else. `early` is what the client sent behind its request: it was held
/// back until the upstream agreed, since before that it would have been a request.
pub async fn run(
    client: &Client<'_>,
    mut up: Connection,
    answer: &ResponseHead<'_>,
    early: &mut Vec<u8>,
    record: &mut Record,
) -> Next {
    let (received, sent) = (Moved::default(), Moved::default());
    let mut head = Vec::with_capacity(512);
    forward::switched_head(answer, &mut head);
    let limit = client.worker.shared.config.limits.tunnel_timeout;
    client.stream.socket().expect_activity(limit);
    up.stream.socket().expect_activity(limit);
    let mut first = std::mem::take(&mut up.read);
    let result = {
        let mut down = pin!(one_way(client, &up.stream, &client.stream, &head, &mut first, &sent));
        let mut over = pin!(one_way(client, &client.stream, &up.stream, &[], early, &received));
        match select(down.as_mut(), over.as_mut()).await {
            // One side may end its half and go on listening.
            Either::Left((Ok(()), over)) => over.await,
            Either::Right((Ok(()), down)) => down.await,
            Either::Left((broken, _)) | Either::Right((broken, _)) => broken,
        }
    };
    record.received = received.total();
    count_received(client, &received);
    record.sent = sent.total();
    record.relay = client.worker.shared.counters.body(&sent, &client.stream);
    match result {
        Ok(()) => Next::Close,
        Err(_) if client.stream.socket().expired() || up.stream.socket().expired() => {
            record.error = Some("nothing moved through the tunnel for too long".to_owned());
            Next::Close
        }
        Err(broken) => {
            record.error = Some(broken.to_string());
            up.stream.socket().reset_on_close();
            Next::Abort
        }
    }
}

/// One direction, to its end and with it.
async fn one_way(
    client: &Client<'_>,
    from: &Stream,
    to: &Stream,
    head: &[u8],
    early: &mut Vec<u8>,
    moved: &Moved,
) -> Result<(), Broken> {
    let body = Body { from, to, framing: Framing::UntilClose, rechunk: false, most: u64::MAX, moved };
    to.write_all(head).await.map_err(Broken::Sink)?;
    to.write_all(early).await.map_err(Broken::Sink)?;
    moved.copied.set(early.len() as u64);
    early.clear();
    client.worker.mover.flow(&body, Rest::UntilClose, early).await?;
    to.finish_sending();
    Ok(())
}
