//! What a request asks for: which site, and for a registry which endpoint, accesses and target.

use std::time::Instant;

use super::gate::Ask;
use super::worker::Site;
use crate::config::Kind;
use crate::forward::Downstream;
use crate::http::{Reject, RequestHead};
use crate::registry::access::Access;
use crate::registry::endpoint::{Endpoint, classify};
use crate::registry::media::forbidden_upload_type;
use crate::reply::Failure;

/// A request whose meaning is settled.
#[derive(Debug)]
pub struct Plan {
    /// The number of the site.
    pub site: usize,
    kind: Kind,
    /// The one string that policy, cache key, authenticator and upstream see.
    pub target: String,
    /// The same without a cross-repository mount, for a principal who may not pull from the other repository.
    pub target_without_mount: Option<String>,
    accesses: Vec<Access>,
    /// The API root, where clients find out how to log in.
    pub is_base: bool,
    /// The kind of endpoint, in a word.
    pub endpoint: &'static str,
    /// The content of a blob.
    pub is_blob: bool,
    /// A manifest on its way to the registry, which will keep it in memory.
    pub is_manifest_upload: bool,
    /// Answer in the registry's own language.
    pub oci: bool,
}

impl Plan {
    /// Finds out what a request asks for.
    ///
    /// # Errors
    /// With whether the answer is to be in OCI JSON.
    pub fn make(sites: &[Site], head: &RequestHead<'_>) -> Result<Self, (Failure, bool)> {
        let Some(site) = site_of(sites, head.host) else { return Err((Failure::NoSite, false)) };
        let kind = sites[site].kind;
        if kind == Kind::Http {
            let (target, accesses) = (head.target.to_owned(), Vec::new());
            let (is_base, is_blob) = (false, false);
            let (endpoint, target_without_mount, oci) = ("http", None, false);
            let is_manifest_upload = false;
            return Ok(Self {
                site,
                kind,
                target,
                target_without_mount,
                accesses,
                is_base,
                endpoint,
                is_blob,
                is_manifest_upload,
                oci,
            });
        }
        if head.upgrade {
            let reject = Reject::Malformed("Connection names a field other than close, keep-alive or TE");
            return Err((Failure::Reject(reject), true));
        }
        let classified = classify(head.method, head.target).map_err(|unknown| (Failure::Unknown(unknown), true))?;
        let mut types = head.fields.iter().filter(|field| field.is("content-type"));
        if classified.endpoint.is_upload() && types.any(|field| forbidden_upload_type(field.value)) {
            return Err((Failure::FormUpload, true));
        }
        let target_without_mount = classified.mount.is_some().then(|| classified.target_without_mount());
        Ok(Self {
            site,
            kind,
            target_without_mount,
            endpoint: classified.endpoint.as_str(),
            is_base: classified.endpoint == Endpoint::Base,
            is_blob: head.method == "GET" && matches!(classified.endpoint, Endpoint::Blob { .. }),
            is_manifest_upload: head.method == "PUT" && matches!(classified.endpoint, Endpoint::Manifest { .. }),
            target: classified.target,
            accesses: classified.access,
            oci: true,
        })
    }

    /// The site that was asked for.
    pub fn site<'s>(&self, sites: &'s [Site]) -> &'s Site {
        &sites[self.site]
    }

    /// What the endpoint needs; `plain` leaves the mount and what it needs out.
    pub fn accesses(&self, plain: bool) -> &[Access] {
        if plain && self.target_without_mount.is_some() { &self.accesses[..1] } else { &self.accesses }
    }

    /// The same for the log, in the notation of registry tokens; nothing where no access is needed.
    pub fn scope(&self, plain: bool) -> Option<String> {
        let accesses: Vec<String> = self.accesses(plain).iter().map(Access::to_string).collect();
        (!accesses.is_empty()).then(|| accesses.join(" "))
    }

    /// The question to the gate; `plain` leaves the mount and what it needs out.
    pub fn ask<'r>(&'r self, head: &'r RequestHead<'r>, from: &'r Downstream<'r>, plain: bool, at: Instant) -> Ask<'r> {
        let target = match &self.target_without_mount {
            Some(target) if plain => target,
            _ => &self.target,
        };
        Ask { site: self.site, kind: self.kind, head, target, accesses: self.accesses(plain), from, at }
    }
}

/// The site that names the host, else the one that names none.
fn site_of(sites: &[Site], host: Option<&str>) -> Option<usize> {
    let name = host.map(without_port).unwrap_or_default();
    let named = sites.iter().position(|site| site.hosts.iter().any(|own| own.eq_ignore_ascii_case(name)));
    named.or_else(|| sites.iter().position(|site| site.hosts.is_empty()))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(hosts: &[&str], kind: Kind) -> Site {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Site { hosts, kind, public_url: None, upstreams: Vec::new() }
    }

    #[test]
    fn a_site_is_found_by_its_name_in_any_case_and_with_any_port() {
        let sites = [site(&["r.example"], Kind::Registry), site(&["[::1]", "web"], Kind::Http)];
        for (host, found) in [
            (Some("r.example"), Some(0)),
            (Some("R.Example:5000"), Some(0)),
            (Some("web:80"), Some(1)),
            (Some("[::1]"), Some(1)),
            (Some("[::1]:8080"), Some(1)),
            (Some("r.example.evil"), None),
            (None, None),
        ] {
            assert_eq!(site_of(&sites, host), found, "{host:?}");
        }
        let sites = [site(&["r.example"], Kind::Registry), site(&[], Kind::Http)];
        assert_eq!(site_of(&sites, Some("other")), Some(1));
        assert_eq!(site_of(&sites, None), Some(1));
    }
}
