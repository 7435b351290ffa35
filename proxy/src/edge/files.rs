//! The files that a configuration names: read, and refused with one line that says what to do.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys};

use super::sandbox;
use super::tls::server::inspect_client_ca;
use crate::auth::Htpasswd;
use crate::auth::htpasswd::LineError;
use crate::config::{Config, TlsIdentity};

/// More than any configuration, certificate chain or password file; less than a device file that never ends.
const MAX_FILE: u64 = 64 << 20;

/// Reads every file that the configuration names; one line for each that `serve` could not use.
#[must_use]
pub fn inspect_files(config: &Config) -> Vec<String> {
    let mut errors = Vec::new();
    let mut seen: Vec<&TlsIdentity> = Vec::new();
    for identity in config.listeners.iter().flat_map(|listener| &listener.tls) {
        if seen.contains(&identity) {
            continue;
        }
        seen.push(identity);
        if let Err(error) = load_identity(identity) {
            errors.push(error);
        }
    }
    let mut authorities: Vec<&Path> = Vec::new();
    for path in config.listeners.iter().filter_map(|listener| listener.client_ca.as_deref()) {
        if !authorities.contains(&path) {
            authorities.push(path);
            errors.extend(inspect_client_ca(path).err());
        }
    }
    if let Some(path) = &config.auth.htpasswd {
        match read_text(path) {
            Err(error) => errors.push(error),
            Ok(text) => errors.extend(inspect_htpasswd(path, &text)),
        }
    }
    errors
}

fn inspect_htpasswd(path: &Path, text: &str) -> Vec<String> {
    let errors = Htpasswd::parse(text).err().unwrap_or_default();
    let line = |error: &LineError| format!("{}:{}: {}", path.display(), error.line, error.reason);
    errors.iter().map(line).collect()
}

/// Loads an htpasswd file.
///
/// # Errors
/// One line that names the file, and the first line of it that is wrong.
pub fn load_htpasswd(path: &Path) -> Result<Htpasswd, String> {
    let text = read_text(path)?;
    Htpasswd::parse(&text).map_err(|_| {
        let errors = inspect_htpasswd(path, &text);
        let more = match errors.len() {
            0 | 1 => String::new(),
            n => format!(" (and {} more; `portcullis check` lists them all)", n - 1),
        };
        format!("{}{more}", errors.first().map_or("", String::as_str))
    })
}

/// Loads all certificates of a PEM file; at least one.
///
/// # Errors
/// One line that names the file and what to do.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, path) = (read(path)?, path.display());
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{path}: {}; write the certificates as PEM again", pem_problem(&error)))?;
    if certificates.is_empty() {
        return Err(format!("{path}: no certificate in it; name a PEM file with -----BEGIN CERTIFICATE-----"));
    }
    Ok(certificates)
}

/// Loads a certificate chain and its key, and checks that they belong together.
///
/// # Errors
/// One line that names the file and what to do.
pub fn load_identity(identity: &TlsIdentity) -> Result<Arc<CertifiedKey>, String> {
    let (cert, key) = (identity.cert.display(), identity.key.display());
    let chain = load_certificates(&identity.cert)?;
    let pem = zeroize::Zeroizing::new(read(&identity.key)?);
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        _ if holds(&pem, b"ENCRYPTED") => {
            format!("{key}: the key is encrypted; decrypt it with: openssl pkey -in {key} -out KEY")
        }
        pem::Error::NoItemsFound => {
            format!("{key}: no private key in it; name a PEM file with -----BEGIN PRIVATE KEY-----")
        }
        error => format!("{key}: {}; write the key as PEM again", pem_problem(&error)),
    })?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, secret, &provider).map(Arc::new).map_err(|error| match error {
        TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            format!(
                "{key}: does not match the certificate {cert}; name the key that the certificate \
                 was made with, own certificate first in the chain"
            )
        }
        TlsError::InvalidCertificate(_) => {
            format!("{cert}: the first certificate cannot be read ({error}); make it again (X.509 version 3)")
        }
        error => format!(
            "{key}: the key cannot be used ({error}); use an ECDSA P-256, Ed25519 or RSA \
             (2048 bits or more) key"
        ),
    })
}

/// Reads a text file.
///
/// # Errors
/// One line that names the file, the system's reason and what to do.
pub fn read_text(path: &Path) -> Result<String, String> {
    String::from_utf8(read(path)?).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("{}:{line}: not UTF-8 text; save the file as UTF-8", path.display())
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "let the user that runs portcullis read it",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "check the file",
        };
        let remedy = sandbox::remedy(path).unwrap_or_else(|| remedy.to_owned());
        format!("{}: {}; {remedy}", path.display(), system_reason(&error))
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    // A vector that grows would leave copies behind, and the file may be a key.
    let size = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_FILE));
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64);
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{}: larger than {} MiB; name another file", path.display(), MAX_FILE >> 20));
    }
    Ok(bytes)
}

/// `No such file or directory` without Rust's `(os error 2)`.
pub fn system_reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "cut off: the -----END line is missing".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line is broken".to_owned(),
        pem::Error::Base64Decode(_) => "damaged between -----BEGIN and -----END".to_owned(),
        other => format!("not readable as PEM ({other})"),
    }
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}
