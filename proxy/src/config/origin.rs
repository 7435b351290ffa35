//! Origins: scheme, host and port of an upstream, an authentication backend or a public address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::Fault;

/// Where requests are sent: scheme, host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// `https` when set, `http` otherwise.
    pub tls: bool,
    /// A lower-case name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port; the scheme's own (80, 443) when the URL names none.
    pub port: u16,
}

impl Origin {
    /// Reads `http://HOST[:PORT]` or `https://HOST[:PORT]`; a lone `/` at the end is accepted.
    ///
    /// # Errors
    /// When the text is anything else; the remedy shows the right form.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        match Self::parse_with_path(text)? {
            (origin, None | Some("/")) => Ok(origin),
            (origin, Some(path)) => {
                Err(Fault::new(format!("{text:?} has a path ({path})"), format!("write \"{origin}\"")))
            }
        }
    }

    /// Reads an origin and the path after it, `None` when there is none.
    ///
    /// # Errors
    /// When scheme, host, port or path cannot be used, or when there is user info, a query or a fragment.
    pub fn parse_with_path(text: &str) -> Result<(Self, Option<&str>), Fault> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(no_scheme(text));
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(Fault::new(format!("the scheme {scheme:?} is unknown"), "use http:// or https://")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') {
            // The text is not repeated: it may hold a password.
            return Err(Fault::new("the URL holds a user name or a password", "remove the part up to and with the @"));
        }
        let (host, port) = split_authority(authority).ok_or_else(|| bad_host(text))?;
        let host = check_host(host).ok_or_else(|| bad_host(text))?;
        let port = match port {
            None => default_port(tls),
            Some(digits) => parse_port(digits).ok_or_else(|| {
                Fault::new(format!("{digits:?} is not a port"), "give a number from 1 to 65535 after the colon")
            })?,
        };
        if tail.contains(['?', '#']) {
            return Err(Fault::new(format!("{text:?} has a query or a fragment"), "remove the part from ? or # on"));
        }
        if !tail.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b)) {
            return Err(Fault::new(format!("the path {tail:?} holds characters that a URL may not"), "remove them"));
        }
        Ok((Self { tls, host, port }, Some(tail).filter(|tail| !tail.is_empty())))
    }

    /// The value of a `Host` field: the port only where it is not the scheme's own, IPv6 in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }

    /// The host as an address, when it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// A host of a URL or a `Host` field in lower case and without brackets; `None` when it is not one.
pub(crate) fn check_host(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(|address| address.to_string());
    }
    let host = host.to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(&host);
    if name.len() > 253 || !name.split('.').all(label) {
        return None;
    }
    // Resolvers read `127.1`, `0x7f.1` and `2130706433` as addresses, each in its own way.
    let last = name.rsplit('.').next().unwrap_or(name);
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    (!numeric || host.parse::<Ipv4Addr>().is_ok()).then_some(host)
}

fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    let after_host = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(after_host);
    if port.is_empty() { Some((host, None)) } else { Some((host, Some(port.strip_prefix(':')?))) }
}

fn parse_port(digits: &str) -> Option<u16> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|port| *port != 0)
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn no_scheme(text: &str) -> Fault {
    if text.is_empty() {
        return Fault::new("the URL is empty", "write it as \"http://127.0.0.1:5000\"");
    }
    if text.contains('@') {
        return Fault::new("the URL has no scheme", "write it as \"http://127.0.0.1:5000\", without a user name");
    }
    Fault::new(format!("{text:?} has no scheme"), format!("write \"http://{}\"", text.trim_start_matches('/')))
}

fn bad_host(text: &str) -> Fault {
    Fault::new(
        format!("{text:?} has no host that can be used"),
        "write a name, an IPv4 address or an [IPv6 address] after ://, for example \"http://127.0.0.1:5000\"",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_origins() {
        for (text, url, authority, port) in [
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000", "127.0.0.1:5000", 5000),
            ("http://Registry:5000/", "http://registry:5000", "registry:5000", 5000),
            ("HTTP://registry", "http://registry", "registry", 80),
            ("http://registry:80", "http://registry", "registry", 80),
            ("https://registry.example.com", "https://registry.example.com", "registry.example.com", 443),
            ("https://registry:80", "https://registry:80", "registry:80", 80),
            ("http://[::1]:5000", "http://[::1]:5000", "[::1]:5000", 5000),
            ("http://[0:0::1]", "http://[::1]", "[::1]", 80),
            ("http://my_registry.local.", "http://my_registry.local.", "my_registry.local.", 80),
            (" http://a ", "http://a", "a", 80),
        ] {
            let origin = Origin::parse(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
            assert_eq!((origin.to_string().as_str(), origin.authority().as_str()), (url, authority), "{text}");
            assert_eq!(origin.port, port, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_origin() {
        for (text, problem, remedy) in [
            ("127.0.0.1:5000", "has no scheme", "write \"http://127.0.0.1:5000\""),
            ("localhost:5000", "has no scheme", "write \"http://localhost:5000\""),
            ("//registry", "has no scheme", "write \"http://registry\""),
            ("", "is empty", "http://"),
            ("ftp://registry", "\"ftp\" is unknown", "http://"),
            ("unix:///run/registry.sock", "\"unix\" is unknown", "http://"),
            ("http://", "no host", "://"),
            ("http://:5000", "no host", "://"),
            ("http://a b", "no host", "://"),
            ("http://::1", "no host", "://"),
            ("http://[::1", "no host", "://"),
            ("http://[::1]5000", "no host", "://"),
            ("http://[127.0.0.1]", "no host", "://"),
            ("http://127.1:5000", "no host", "://"),
            ("http://0x7f.0x1", "no host", "://"),
            ("http://2130706433", "no host", "://"),
            ("http://-a", "no host", "://"),
            ("http://a..b", "no host", "://"),
            ("http://registr\u{fc}", "no host", "://"),
            ("http://a:", "is not a port", "1 to 65535"),
            ("http://a:0", "is not a port", "1 to 65535"),
            ("http://a:65536", "is not a port", "1 to 65535"),
            ("http://a:+80", "is not a port", "1 to 65535"),
            ("http://a:80:80", "is not a port", "1 to 65535"),
            ("http://a/v2", "has a path (/v2)", "write \"http://a\""),
            ("http://a?x", "query", "remove"),
            ("http://a/#x", "query or a fragment", "remove"),
        ] {
            let fault = Origin::parse(text).expect_err(text);
            assert!(fault.problem.contains(problem) && fault.remedy.contains(remedy), "{text}: {fault:?}");
        }
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in ["http://bob:hunter2@registry", "bob:hunter2@registry:5000"] {
            let fault = Origin::parse(text).expect_err(text);
            assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
        }
    }

    #[test]
    fn keeps_a_path_where_one_is_allowed() {
        for (text, path) in [("http://a", None), ("http://a/", Some("/")), ("http://a/auth/x", Some("/auth/x"))] {
            assert_eq!(Origin::parse_with_path(text).map(|(_, path)| path), Ok(path), "{text}");
        }
        for text in ["http://a/x y", "http://a/\u{e9}", "http://a/\r\nX: y", "http://a/\""] {
            assert!(Origin::parse_with_path(text).is_err(), "{text}");
        }
    }
}
