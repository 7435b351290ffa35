//! Where the gate listens, and with which certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Resolver;
use crate::config::error::{Fault, Place};
use crate::config::file::{self, File};
use crate::config::overrides;
use crate::config::{Cidr, Listener, TlsIdentity};

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);
const DEFAULT_PLAIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const DEFAULT_TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 443);

impl Resolver<'_> {
    /// `--listen` replaces the addresses of the file, `--tls-cert` its certificates; either keeps the other, so that
    /// moving a listener to another port cannot turn its TLS off.
    pub(super) fn listeners(&mut self, file: &File, allow_plaintext: bool) -> Vec<Listener> {
        let flags = self.flags;
        let identities = self.identities_outside_the_file();
        let addresses = overrides::LISTEN.look_up(&flags.listen, self.environment);
        let mut listeners = self.listeners_of_the_file(file);
        if addresses.is_empty() {
            replace_identities(&mut listeners, &identities);
        } else {
            let like = moved(listeners, identities.clone());
            listeners = addresses
                .iter()
                .filter_map(|given| Some((self.address(given)?, given.place.clone())))
                .map(|(address, place)| (Listener { address, ..like.clone() }, place))
                .collect();
        }
        if listeners.is_empty() && addresses.is_empty() && file.listen.is_empty() {
            let address = if identities.is_empty() { DEFAULT_PLAIN } else { DEFAULT_TLS };
            let listener = Listener { address, tls: identities, ..Listener::plain(address) };
            listeners.push((listener, Place::Nowhere));
        }
        self.check_listeners(&listeners, allow_plaintext);
        listeners.into_iter().map(|(listener, _)| listener).collect()
    }

    fn client_ca(&mut self, listen: &file::Listen) -> Option<std::path::PathBuf> {
        let given = self.given(listen.client_ca.as_ref()?, "listen.client_ca");
        Some(self.checked_path(&given))
    }

    /// Blocks of addresses.
    fn blocks(&mut self, list: &file::Strings) -> Vec<Cidr> {
        let mut blocks = Vec::new();
        for given in self.strings(list, "listen.proxy_protocol") {
            match given.text.parse() {
                Ok(block) => blocks.push(block),
                Err(problem) => self.fail(Fault::new(problem, "write a block such as \"10.0.0.0/8\""), &given.place),
            }
        }
        blocks
    }

    fn check_listeners(&mut self, listeners: &[(Listener, Place)], allow_plaintext: bool) {
        for (index, (listener, place)) in listeners.iter().enumerate() {
            let address = listener.address;
            if listeners.iter().take(index).any(|(earlier, _)| earlier.address == address) {
                self.fail(Fault::new(format!("{address} is listed twice"), "remove one of the two"), place);
            }
            if listener.client_ca.is_some() && listener.tls.is_empty() {
                let remedy = "add tls = [{ cert = \"FILE\", key = \"FILE\" }], or remove client_ca";
                self.fail(Fault::new(format!("{address} has client_ca but no TLS"), remedy), place);
            }
            if listener.exposes_credentials() && !allow_plaintext {
                self.warnings.push(format!(
                    "{place}the listener {address} is plain HTTP on an address that others reach, so it refuses every \
                     login; give it a certificate (--tls-cert, --tls-key), or --allow-plaintext-credentials where \
                     something in front of it ends TLS"
                ));
            }
        }
    }

    fn identities_outside_the_file(&mut self) -> Vec<TlsIdentity> {
        let certs = overrides::TLS_CERT.look_up(&self.flags.tls_cert, self.environment);
        let keys = overrides::TLS_KEY.look_up(&self.flags.tls_key, self.environment);
        if certs.len() != keys.len() {
            let (more, fewer, remedy) = if certs.len() > keys.len() {
                (&certs, &keys, "give each certificate its --tls-key, in the same order")
            } else {
                (&keys, &certs, "give each key its --tls-cert, in the same order")
            };
            if let Some(first) = more.get(fewer.len()) {
                let what = format!("{} certificates and {} keys do not pair up", certs.len(), keys.len());
                self.fail(Fault::new(what, remedy), &first.place);
            }
        }
        certs
            .iter()
            .zip(&keys)
            .map(|(cert, key)| TlsIdentity { cert: self.checked_path(cert), key: self.checked_path(key) })
            .collect()
    }

    fn listeners_of_the_file(&mut self, file: &File) -> Vec<(Listener, Place)> {
        let mut listeners = Vec::new();
        for entry in &file.listen {
            let listen = entry.get_ref();
            let tls = listen.tls.iter().filter_map(|tls| self.identity(tls)).collect();
            let client_ca = self.client_ca(listen);
            let proxy_protocol = self.blocks(&listen.proxy_protocol);
            let Some(address) = &listen.address else {
                let place = self.place(entry, "listen");
                self.missing.push(Fault::new("no address", "add address = \"0.0.0.0:443\"").at(&place));
                continue;
            };
            let given = self.given(address, "listen.address");
            if let Some(address) = self.address(&given) {
                let redirect = self.origin(&listen.redirect, "listen.redirect");
                listeners.push((Listener { address, tls, client_ca, proxy_protocol, redirect }, given.place));
            }
        }
        listeners
    }

    fn identity(&mut self, entry: &toml::Spanned<file::Tls>) -> Option<TlsIdentity> {
        let tls = entry.get_ref();
        let place = self.place(entry, "listen.tls");
        let (cert, key) = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => (cert, key),
            (cert, _) => {
                let (has, lacks) = match (cert, &tls.key) {
                    (Some(_), None) => ("a certificate without a key", "add key = \"FILE\" next to cert"),
                    (None, Some(_)) => ("a key without a certificate", "add cert = \"FILE\" next to key"),
                    _ => ("neither certificate nor key", "write { cert = \"FILE\", key = \"FILE\" }"),
                };
                self.missing.push(Fault::new(has, lacks).at(&place));
                return None;
            }
        };
        let cert = self.given(cert, "listen.tls.cert");
        let key = self.given(key, "listen.tls.key");
        Some(TlsIdentity { cert: self.checked_path(&cert), key: self.checked_path(&key) })
    }

    pub(super) fn admin(&mut self, file: &File, listeners: &[Listener]) -> Option<SocketAddr> {
        let given = self.one(&overrides::ADMIN, self.flags.admin.as_ref(), file.admin.as_ref(), "admin");
        let (address, place) = match given {
            None => (DEFAULT_ADMIN, Place::Nowhere),
            Some(given) if given.text == "off" => return None,
            Some(given) => (self.address(&given)?, given.place),
        };
        if listeners.iter().any(|listener| listener.address == address) {
            let problem = format!("the admin listener and a listener share {address}");
            self.fail(Fault::new(problem, "give --admin another port, or \"off\""), &place);
        }
        Some(address)
    }
}

/// What the listeners of the file have in common, for the addresses that replace theirs: all their certificates, and what
/// they say of peers as far as they agree on it.
fn moved(listeners: Vec<(Listener, Place)>, identities: Vec<TlsIdentity>) -> Listener {
    let serving = || listeners.iter().map(|(listener, _)| listener).filter(|listener| listener.redirect.is_none());
    let mut like = Listener { tls: identities, ..Listener::plain(DEFAULT_PLAIN) };
    if let Some(first) = serving().next() {
        if serving().all(|listener| listener.client_ca == first.client_ca) {
            like.client_ca.clone_from(&first.client_ca);
        }
        if serving().all(|listener| listener.proxy_protocol == first.proxy_protocol) {
            like.proxy_protocol.clone_from(&first.proxy_protocol);
        }
    }
    if like.tls.is_empty() {
        for identity in listeners.into_iter().flat_map(|(listener, _)| listener.tls) {
            if !like.tls.contains(&identity) {
                like.tls.push(identity);
            }
        }
    }
    like
}

/// Certificates of the command line go to the listeners that have TLS; when none has, to all of them.
fn replace_identities(listeners: &mut [(Listener, Place)], identities: &[TlsIdentity]) {
    if identities.is_empty() {
        return;
    }
    let some_have_tls = listeners.iter().any(|(listener, _)| !listener.tls.is_empty());
    for (listener, _) in listeners {
        if !some_have_tls || !listener.tls.is_empty() {
            listener.tls = identities.to_vec();
        }
    }
}
