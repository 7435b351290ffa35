//! What is served, under which names, from which upstreams.

use std::net::IpAddr;

use toml::Spanned;

use super::Resolver;
use crate::config::error::{Fault, Place};
use crate::config::file::{self, File};
use crate::config::origin::{Origin, check_host};
use crate::config::overrides::{self, Given};
use crate::config::{Kind, Listener, Site};

const KINDS: [(&str, Kind); 2] = [("registry", Kind::Registry), ("http", Kind::Http)];

#[derive(Clone, Copy, PartialEq)]
enum Challenge {
    Basic,
    Token,
}

impl Resolver<'_> {
    /// `--backend` and `--kind` speak of the only site, or of the default site among several.
    pub(super) fn sites(&mut self, file: &File, listeners: &[Listener]) -> Vec<Site> {
        let backends = overrides::BACKEND.look_up(&self.flags.backend, self.environment);
        let kind = self.one(&overrides::KIND, self.flags.kind.as_ref(), None, "");
        let default = file.site.iter().position(|site| site.get_ref().hosts.is_none());
        let target = if file.site.len() == 1 { Some(0) } else { default };

        let mut sites: Vec<Site> = Vec::new();
        let mut default_seen = false;
        for (index, entry) in file.site.iter().enumerate() {
            let overridden = Some(index) == target;
            let backends = if overridden { backends.as_slice() } else { &[] };
            let site = self.site(entry, backends, kind.as_ref().filter(|_| overridden), listeners);
            let place = self.place(entry, "site");
            self.check_hosts(&site, &sites, &mut default_seen, &place);
            sites.push(site);
        }
        if sites.is_empty() {
            let kind = kind.and_then(|kind| self.choice(&kind, &KINDS)).unwrap_or(Kind::Registry);
            let upstreams = self.upstreams(&backends, listeners);
            if backends.is_empty() {
                let remedy = "name the registry: --backend http://127.0.0.1:5000, the variable BACKEND, or upstreams in \
                              [[site]]";
                self.missing.push(Fault::new("no upstream", remedy).at(&Place::Nowhere));
            }
            sites.push(Site { hosts: Vec::new(), upstreams, kind, public_url: None });
        } else if target.is_none() {
            for given in backends.first().into_iter().chain(&kind) {
                let problem = format!("the file has {} sites and none is the default one", file.site.len());
                let remedy = "set it in the file, or leave hosts out of the site that is meant";
                self.fail(Fault::new(problem, remedy), &given.place);
            }
        }
        sites
    }

    fn site(
        &mut self,
        entry: &Spanned<file::Site>,
        backends: &[Given],
        kind: Option<&Given>,
        listeners: &[Listener],
    ) -> Site {
        let site = entry.get_ref();
        let written = self.strings(&site.upstreams, "site.upstreams");
        let upstreams = if backends.is_empty() { written.as_slice() } else { backends };
        if upstreams.is_empty() {
            let place = self.place(entry, "site");
            self.missing.push(Fault::new("no upstream", "add upstreams = [\"http://127.0.0.1:5000\"]").at(&place));
        }
        let upstreams = self.upstreams(upstreams, listeners);
        let kind = kind.cloned().or_else(|| site.kind.as_ref().map(|kind| self.given(kind, "site.kind")));
        let kind = kind.and_then(|kind| self.choice(&kind, &KINDS)).unwrap_or(Kind::Registry);
        if let Some(challenge) = &site.challenge {
            let given = self.given(challenge, "site.challenge");
            let words = [("basic", Challenge::Basic), ("token", Challenge::Token)];
            if self.choice(&given, &words) == Some(Challenge::Token) {
                self.fail(Fault::not_built("\"token\"", "write \"basic\""), &given.place);
            }
        }
        Site {
            hosts: self.hosts(&site.hosts),
            upstreams,
            kind,
            public_url: self.origin(&site.public_url, "site.public_url"),
        }
    }

    fn upstreams(&mut self, given: &[Given], listeners: &[Listener]) -> Vec<Origin> {
        let mut origins: Vec<Origin> = Vec::new();
        for given in given {
            let fault = match Origin::parse(&given.text) {
                Ok(origin) if origins.contains(&origin) => {
                    Fault::new(format!("{origin} is listed twice"), "remove one of the two")
                }
                Ok(origin) if listeners.iter().any(|listener| reaches(&origin, listener)) => {
                    Fault::new(format!("{origin} is this gate's own listener"), "name the registry's address and port")
                }
                Ok(origin) => {
                    origins.push(origin);
                    continue;
                }
                Err(fault) => fault,
            };
            self.fail(fault, &given.place);
        }
        origins
    }

    fn hosts(&mut self, hosts: &file::Strings) -> Vec<String> {
        let mut names = Vec::new();
        if let Some(list) = hosts.as_ref().filter(|list| list.get_ref().is_empty()) {
            let place = self.place(list, "site.hosts");
            self.fail(Fault::new("the list is empty", "name a host, or leave hosts out for the default site"), &place);
        }
        for given in self.strings(hosts, "site.hosts") {
            match check_host(given.text.trim()) {
                Some(name) => names.push(name),
                None => {
                    let problem = format!("{:?} is not a host name", given.text);
                    let remedy =
                        "write the name alone, without scheme, port or *, for example \"registry.example.com\"";
                    self.fail(Fault::new(problem, remedy), &given.place);
                }
            }
        }
        names
    }

    fn check_hosts(&mut self, site: &Site, earlier: &[Site], default_seen: &mut bool, place: &Place) {
        for host in &site.hosts {
            if earlier.iter().any(|other| other.hosts.contains(host)) {
                self.fail(Fault::new(format!("{host} belongs to two sites"), "remove it from one of them"), place);
            }
        }
        if site.hosts.is_empty() && std::mem::replace(default_seen, true) {
            // Reported late: an unreadable `hosts` also leaves a site without names.
            self.missing.push(Fault::new("a second site without hosts", "give hosts to one of the two").at(place));
        }
    }

    /// An origin that clients are told.
    pub(super) fn origin(&mut self, url: &file::Maybe<String>, key: &str) -> Option<String> {
        let given = self.given(url.as_ref()?, key);
        match Origin::parse(&given.text) {
            Ok(origin) => Some(origin.to_string()),
            Err(fault) => {
                self.fail(fault, &given.place);
                None
            }
        }
    }

    /// The strings of a list, each with its place.
    pub(super) fn strings(&self, list: &file::Strings, key: &str) -> Vec<Given> {
        let items = list.as_ref().map(|list| list.get_ref().as_slice()).unwrap_or_default();
        items.iter().map(|item| self.given(item, key)).collect()
    }
}

/// Whether a connection to the origin would come back to this listener.
fn reaches(origin: &Origin, listener: &Listener) -> bool {
    let ip = match origin.host.as_str() {
        "localhost" => Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        _ => origin.ip(),
    };
    let own = listener.address.ip();
    origin.port == listener.address.port()
        && ip.is_some_and(|ip| ip == own || (own.is_unspecified() && (ip.is_loopback() || ip.is_unspecified())))
}
