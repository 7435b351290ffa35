//! Changing the protocol of a connection (RFC 9110 §7.8): who may ask, and when the answer is a yes.
//!
//! What follows a change goes both ways unread, so a protocol that carries requests of its own would carry them past
//! every check: `h2c` did that to a number of proxies. Those are never asked for; the request goes on without the wish,
//! which every server has to be able to answer.

use super::fields::{Field, names_token};
use super::head::{RequestHead, ResponseHead, Version};

/// Protocols that bring HTTP again, in the clear or below TLS.
const BRING_HTTP: [&str; 6] = ["h2c", "h2", "h3", "http", "tls", "ssl"];

impl<'b> RequestHead<'b> {
    /// The one protocol that this request may change its connection to; `None` where the wish is not passed on.
    ///
    /// Only a GET of HTTP/1.1 without a body can have one: behind a body nobody could say where the new protocol begins.
    pub fn switches_to(&self) -> Option<&'b str> {
        let plain = self.method == "GET" && self.version == Version::Http11 && self.framing.is_empty();
        if !(plain && self.upgrade && self.keep_alive && !self.expects_continue) {
            return None;
        }
        let protocol = only(&self.fields)?;
        let name = protocol.split('/').next().unwrap_or(protocol);
        (!BRING_HTTP.iter().any(|known| known.eq_ignore_ascii_case(name))).then_some(protocol)
    }
}

impl ResponseHead<'_> {
    /// Whether this is the change to `protocol` that was asked for.
    pub fn switched_to(&self, protocol: &str) -> bool {
        let named = self.fields.iter().any(|field| field.is("connection") && names_token(field.value, "upgrade"));
        let is_it = only(&self.fields).is_some_and(|answer| answer.eq_ignore_ascii_case(protocol));
        self.status == 101 && self.version == Version::Http11 && named && is_it
    }
}

/// The protocol of the one `Upgrade` field, which names one protocol.
fn only<'b>(fields: &[Field<'b>]) -> Option<&'b str> {
    let mut lines = fields.iter().filter(|field| field.is("upgrade"));
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let protocol = std::str::from_utf8(line.value).ok()?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
    (!protocol.is_empty() && protocol.bytes().all(token)).then_some(protocol)
}

#[cfg(test)]
mod tests {
    use crate::http::head::{self, Limits};

    const LIMITS: Limits = Limits { head_bytes: 4096, target_bytes: 256, fields: 50 };

    #[test]
    fn only_a_plain_get_for_one_harmless_protocol_passes() {
        let wish = |line: &str, fields: &str| {
            let text = format!("{line}\r\nHost: a\r\n{fields}\r\n");
            let head = head::request(text.as_bytes(), &LIMITS).expect(&text);
            head.switches_to().map(str::to_owned)
        };
        let get = "GET /chat HTTP/1.1";
        for (fields, protocol) in [
            ("Connection: Upgrade\r\nUpgrade: websocket\r\n", "websocket"),
            ("Connection: keep-alive, upgrade\r\nupgrade: WebSocket\r\n", "WebSocket"),
            ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n", "SPDY/3.1"),
        ] {
            assert_eq!(wish(get, fields).as_deref(), Some(protocol), "{fields}");
        }
        for (line, fields) in [
            ("POST /chat HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            ("GET /chat HTTP/1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n"),
            (get, "Connection: Upgrade, close\r\nUpgrade: websocket\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n"),
            (get, "Upgrade: websocket\r\n"),
            (get, "Connection: Upgrade\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade:\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: H2C/1\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n"),
            (get, "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"),
        ] {
            assert_eq!(wish(line, fields), None, "{line} {fields}");
        }
    }

    #[test]
    fn only_a_101_to_the_protocol_asked_for_is_a_yes() {
        let yes = |text: &str| head::response(text.as_bytes(), "GET").expect(text).switched_to("websocket");
        assert!(yes("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"));
        for no in [
            "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.0 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Go\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
        ] {
            assert!(!yes(no), "{no}");
        }
    }
}
