//! The client side: whom an `https://` upstream has to be.

use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use rustls::client::UnbufferedClientConnection;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;

use crate::edge::files::load_certificates;

/// Whom an `https://` upstream has to be.
#[derive(Debug, Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The client side of TLS for upstreams: TLS 1.2 and 1.3, the server's certificate checked against these roots, or the
/// system's.
///
/// # Errors
/// When there are no roots to check against; the text names the file and the remedy.
pub fn client_config(roots: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    if let Some(path) = roots {
        let pem = load_certificates(path).map_err(anyhow::Error::msg)?;
        for certificate in pem {
            store.add(certificate).map_err(|error| anyhow!("{}: not a root certificate: {error}", path.display()))?;
        }
    } else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            bail!("this system has no root certificates: install ca-certificates, or name a file in upstream_ca");
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Trust {
    /// A fresh connection, its handshake not begun.
    pub(super) fn connection(&self) -> Result<UnbufferedClientConnection, rustls::Error> {
        UnbufferedClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }

    /// Trusts the server of this host name or address.
    ///
    /// # Errors
    /// When no certificate could be valid for the name.
    pub fn new(config: &Arc<ClientConfig>, host: &str) -> anyhow::Result<Self> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| anyhow!("{host} cannot stand in a certificate"))?;
        Ok(Self { config: Arc::clone(config), name })
    }
}
