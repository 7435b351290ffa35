//! A configuration in a few lines, for `portcullis check` and the log at start.

use std::fmt::Write;
use std::time::Duration;

use super::units::format_duration;
use super::{Config, Kind, Site};

impl Config {
    /// What was resolved: a first line in general, then one for each listener, site and authenticator.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_summary(&mut text);
        text
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let workers = match self.workers {
            0 => "one worker for each core".to_owned(),
            n => counted(n, "worker"),
        };
        let (listeners, sites) = (counted(self.listeners.len(), "listener"), counted(self.sites.len(), "site"));
        writeln!(out, "{listeners}, {sites}, {}, {workers}", counted(self.rules.len(), "rule"))?;
        for listener in &self.listeners {
            match listener.tls.as_slice() {
                [] => write!(out, "  listen {} plain HTTP", listener.address)?,
                [one] => write!(out, "  listen {} TLS {}", listener.address, one.cert.display())?,
                several => write!(out, "  listen {} TLS {} certificates", listener.address, several.len())?,
            }
            if let Some(path) = &listener.client_ca {
                write!(out, ", clients of {}", path.display())?;
            }
            if !listener.proxy_protocol.is_empty() {
                let blocks: Vec<String> = listener.proxy_protocol.iter().map(ToString::to_string).collect();
                write!(out, ", PROXY protocol from {}", blocks.join(" "))?;
            }
            writeln!(out)?;
        }
        for site in &self.sites {
            writeln!(out, "  site {}", describe_site(site))?;
        }
        if let Some(htpasswd) = &self.auth.htpasswd {
            writeln!(out, "  auth htpasswd {}", htpasswd.display())?;
        }
        if let Some(backend) = &self.auth.backend {
            writeln!(out, "  auth backend {}{}", backend.origin, backend.path)?;
        }
        let (allow, deny) = (format_duration(self.verdicts.allow_ttl), format_duration(self.verdicts.deny_ttl));
        write!(out, "  verdicts allow {allow} deny {deny} capacity {}", self.verdicts.capacity)?;
        match self.verdicts.stale_if_error {
            Duration::ZERO => writeln!(out),
            stale => writeln!(out, " stale-if-error {}", format_duration(stale)),
        }
    }
}

fn describe_site(site: &Site) -> String {
    let hosts = if site.hosts.is_empty() { "(default)".to_owned() } else { site.hosts.join(" ") };
    let kind = match site.kind {
        Kind::Registry => "registry",
        Kind::Http => "http",
    };
    let upstreams: Vec<String> = site.upstreams.iter().map(ToString::to_string).collect();
    format!("{hosts} → {} {}", kind, upstreams.join(" "))
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
