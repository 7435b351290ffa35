//! The server side of one listener: TLS 1.2 and 1.3, the certificate chosen by server name, HTTP/1.1 only.
//!
//! Sessions are resumed by tickets, whose keys the gate draws itself: rustls makes a new one every six hours and takes
//! tickets of the one before, so that a ticket lives for six to twelve hours and never beyond a restart. A renewed
//! certificate leaves the tickets alone; a changed `client_ca` ends them, since a ticket remembers its client's
//! certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::auth::certificate::not_after;
use crate::config::{Listener, TlsIdentity};
use crate::edge::files::{load_certificates, load_identity};

/// The server side of TLS for one listener, in its latest state.
#[derive(Debug)]
pub struct Server {
    identities: Vec<TlsIdentity>,
    client_ca: Option<PathBuf>,
    current: RwLock<Arc<Loaded>>,
}

/// What was read from the files.
#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// One for each identity.
    keys: Vec<Arc<CertifiedKey>>,
    roots: Roots,
}

/// The certificates of `client_ca`.
type Roots = Vec<CertificateDer<'static>>;

/// Until when a certificate of ours holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Its file.
    pub path: PathBuf,
    /// The last second since 1970.
    pub at: u64,
}

impl Server {
    /// Reads a listener's files; none for a listener without TLS.
    ///
    /// # Errors
    /// When one cannot be used; the text names the file and the remedy.
    pub fn load(listener: &Listener) -> Result<Option<Self>, String> {
        if listener.tls.is_empty() {
            return Ok(None);
        }
        let loaded = Loaded::read(&listener.tls, listener.client_ca.as_deref())?;
        let current = RwLock::new(Arc::new(loaded));
        Ok(Some(Self { identities: listener.tls.clone(), client_ca: listener.client_ca.clone(), current }))
    }

    /// What a new connection is to be served with.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded().config)
    }

    /// Whether clients are asked for certificates.
    pub fn knows_clients(&self) -> bool {
        self.client_ca.is_some()
    }

    /// The file of the authorities that clients are asked for.
    pub fn client_ca(&self) -> Option<&Path> {
        self.client_ca.as_deref()
    }

    /// Until when its certificates hold.
    pub fn expiries(&self) -> Vec<Expiry> {
        let loaded = self.loaded();
        let all = self.identities.iter().zip(&loaded.keys);
        all.filter_map(|(identity, key)| {
            Some(Expiry { path: identity.cert.clone(), at: not_after(key.cert.first()?)? })
        })
        .collect()
    }

    /// The files that it is made of.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let pairs = self.identities.iter().flat_map(|identity| [&identity.cert, &identity.key]);
        pairs.chain(&self.client_ca).map(PathBuf::as_path)
    }

    /// Reads the files again and takes those that can be used; in the place of each other one the last good one stays.
    /// Whether anything is new, and what is wrong.
    pub fn reload(&self) -> (bool, Vec<String>) {
        let before = self.loaded();
        let (fresh, errors) = before.again(&self.identities, self.client_ca.as_deref());
        let Some(fresh) = fresh else { return (false, errors) };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        (true, errors)
    }

    fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Loaded {
    fn new(keys: Vec<Arc<CertifiedKey>>, roots: Roots, client_ca: Option<&Path>) -> Result<Self, String> {
        Ok(Self { config: Arc::new(config(keys.clone(), client_ca, &roots)?), keys, roots })
    }

    fn read(identities: &[TlsIdentity], client_ca: Option<&Path>) -> Result<Self, String> {
        let keys = identities.iter().map(load_identity).collect::<Result<_, _>>()?;
        Self::new(keys, client_ca.map(load_certificates).transpose()?.unwrap_or_default(), client_ca)
    }

    fn again(&self, identities: &[TlsIdentity], client_ca: Option<&Path>) -> (Option<Self>, Vec<String>) {
        let mut errors = Vec::new();
        let keys = identities.iter().zip(&self.keys).map(|(identity, old)| match load_identity(identity) {
            Ok(key) if key.cert != old.cert => key,
            Ok(_) => Arc::clone(old),
            Err(error) => {
                errors.push(error);
                Arc::clone(old)
            }
        });
        let keys: Vec<_> = keys.collect();
        let roots = client_ca.map(|path| inspect_client_ca(path).and_then(|()| load_certificates(path)));
        let roots = roots.transpose().unwrap_or_else(|error| {
            errors.push(error);
            Some(self.roots.clone())
        });
        let roots = roots.unwrap_or_default();
        let same = roots == self.roots && keys.iter().zip(&self.keys).all(|(new, old)| Arc::ptr_eq(new, old));
        if same {
            return (None, errors);
        }
        match Self::new(keys, roots, client_ca) {
            Ok(fresh) => (Some(fresh.keeping_tickets_of(self)), errors),
            Err(error) => (None, vec![error]),
        }
    }

    fn keeping_tickets_of(mut self, before: &Self) -> Self {
        if self.roots == before.roots
            && let Some(config) = Arc::get_mut(&mut self.config)
        {
            config.ticketer = Arc::clone(&before.config.ticketer);
            config.session_storage = Arc::clone(&before.config.session_storage);
        }
        self
    }
}

fn config(
    keys: Vec<Arc<CertifiedKey>>,
    client_ca: Option<&Path>,
    roots: &[CertificateDer<'static>],
) -> Result<ServerConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let failed = |error: rustls::Error| format!("cannot set up TLS: {error}");
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&versions).map_err(failed)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(verifier(path, roots, provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName { keys }));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(failed)?;
    // For the kernel, where it encrypts; nothing else asks for them.
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Asks clients for a certificate, goes on without one, and ends the handshake at one that the roots do not vouch for.
fn verifier(
    path: &Path,
    roots: &[CertificateDer<'static>],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, String> {
    let store = root_store(path, roots)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).allow_unauthenticated();
    let built = builder.build().map_err(|error| format!("{}: {error}; name a PEM file of CAs", path.display()))?;
    Ok(built)
}

fn root_store(path: &Path, roots: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        let added = store.add(root.clone());
        added.map_err(|error| format!("{}: not a CA certificate ({error}); make it again", path.display()))?;
    }
    Ok(store)
}

/// Whether `serve` could check client certificates against this file.
///
/// # Errors
/// One line that names the file and the remedy.
pub fn inspect_client_ca(path: &Path) -> Result<(), String> {
    root_store(path, &load_certificates(path)?).map(drop)
}

/// Chooses the first certificate that is valid for the name asked for, else the first of all.
#[derive(Debug)]
struct ByName {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| {
            let name = ServerName::try_from(name).ok()?;
            self.keys.iter().find(|key| is_valid_for(key, &name))
        });
        named.or_else(|| self.keys.first()).map(Arc::clone)
    }
}

fn is_valid_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let Ok(end_entity) = key.end_entity_cert() else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(end_entity) else { return false };
    verify_server_name(&parsed, name).is_ok()
}
