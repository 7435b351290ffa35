//! The cryptography under TLS: aws-lc-rs, but for AES-GCM on the x86 processors where ring's is faster.
//!
//! Bytes that this process encrypts cost more in AES-GCM than in all else. Processors with VAES but without AVX-512 (AMD Zen 3,
//! and Intel's since Alder Lake) can do two blocks in one instruction; ring does, aws-lc 0.47 does that with AVX-512
//! only, and takes 0.25 s for a GB where ring takes 0.13. Everything else is aws-lc's everywhere: keys, certificates, the exchange
//! of keys (with X25519MLKEM768, which ring lacks), tickets and ChaCha20-Poly1305. rustls means providers to be put together like
//! this (`rustls::crypto::CryptoProvider`, "Using non-default cipher suites").
//!
//! To be removed when aws-lc has that code: <https://github.com/aws/aws-lc/pull/2934>.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
use rustls::{CipherSuite, SupportedCipherSuite};

/// What servers and clients of ours stand on.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(made_for(has_vaes_without_avx512()))
}

fn made_for(vaes_without_avx512: bool) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if vaes_without_avx512 {
        provider.cipher_suites.iter_mut().for_each(take_from_ring);
    }
    provider
}

/// Leaves alone what is not AES-GCM.
fn take_from_ring(suite: &mut SupportedCipherSuite) {
    let is_chacha = matches!(
        suite.suite(),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    );
    let same = ring::ALL_CIPHER_SUITES.iter().find(|other| other.suite() == suite.suite());
    if let (false, Some(same)) = (is_chacha, same) {
        *suite = *same;
    }
}

#[cfg(target_arch = "x86_64")]
fn has_vaes_without_avx512() -> bool {
    is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_vaes_without_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};
    use xtask::lab::pki::{Authority, Key};

    use super::*;

    /// More than a record holds, so that there are several.
    const TEXT: &[u8] = &[b'p'; 40_000];

    #[test]
    fn the_suites_are_the_same_in_the_same_order() {
        let suites = |provider: &CryptoProvider| -> Vec<CipherSuite> {
            provider.cipher_suites.iter().map(SupportedCipherSuite::suite).collect()
        };
        let default = aws_lc_rs::default_provider();
        for made in [made_for(false), made_for(true)] {
            assert_eq!(suites(&made), suites(&default));
            assert_eq!(made.kx_groups.len(), default.kx_groups.len());
        }
    }

    #[test]
    fn ring_has_aes_gcm_and_nothing_else() {
        let is_of = |suite: &SupportedCipherSuite, all: &[SupportedCipherSuite]| {
            all.iter().any(|other| match (suite, other) {
                (SupportedCipherSuite::Tls13(one), SupportedCipherSuite::Tls13(other)) => std::ptr::eq(*one, *other),
                (SupportedCipherSuite::Tls12(one), SupportedCipherSuite::Tls12(other)) => std::ptr::eq(*one, *other),
                _ => false,
            })
        };
        let suites = made_for(true).cipher_suites;
        let (rings, others): (Vec<&SupportedCipherSuite>, Vec<&SupportedCipherSuite>) =
            suites.iter().partition(|suite| is_of(suite, ring::ALL_CIPHER_SUITES));
        assert_eq!((rings.len(), others.len()), (6, 3));
        assert!(rings.iter().all(|suite| format!("{:?}", suite.suite()).contains("AES_")), "{rings:?}");
        assert!(others.iter().all(|suite| is_of(suite, aws_lc_rs::ALL_CIPHER_SUITES)), "{others:?}");
        assert!(made_for(false).cipher_suites.iter().all(|suite| is_of(suite, aws_lc_rs::ALL_CIPHER_SUITES)));
    }

    /// Each suite of the one kind with each of the other: a handshake, bytes both ways, and a session taken up again.
    #[test]
    fn both_kinds_understand_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(dir.path(), "ca").unwrap();
        for key in [Key::P256, Key::Rsa2048] {
            let identity = ca.issue_as(&format!("{key:?}"), &["localhost"], key, 1).unwrap();
            let mut tried = 0;
            for (ours, theirs) in [(true, false), (false, true), (true, true)] {
                let chain = certificates(&identity.cert);
                let secret = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
                let server = ServerConfig::builder_with_provider(Arc::new(made_for(ours)));
                let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
                let server = Arc::new(server.with_single_cert(chain, secret).unwrap());
                for suite in made_for(theirs).cipher_suites {
                    let provider = CryptoProvider { cipher_suites: vec![suite], ..made_for(theirs) };
                    let client = ClientConfig::builder_with_provider(Arc::new(provider));
                    let version: &[_] =
                        if suite.tls13().is_some() { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS12] };
                    let client = client.with_protocol_versions(version).unwrap();
                    let client = client.with_root_certificates(roots(&ca)).with_no_client_auth();
                    tried += usize::from(speaks(&server, &Arc::new(client), suite));
                }
            }
            // All of TLS 1.3, and of TLS 1.2 those for this kind of key.
            assert_eq!(tried, 3 * (3 + 3), "{key:?}");
        }
    }

    /// Whether they agree on the suite; if so, they understand each other.
    fn speaks(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>, suite: SupportedCipherSuite) -> bool {
        for resumed in [false, true] {
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
            let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
            while client.is_handshaking() || server.is_handshaking() {
                if pass(&mut client, &mut server).and_then(|()| pass(&mut server, &mut client)).is_err() {
                    return false;
                }
            }
            assert_eq!(server.negotiated_cipher_suite().unwrap().suite(), suite.suite());
            let kind = server.handshake_kind().unwrap();
            assert_eq!(kind == rustls::HandshakeKind::Resumed, resumed, "{suite:?}");
            assert_eq!(carried(&mut client, &mut server), TEXT, "{suite:?}");
            assert_eq!(carried(&mut server, &mut client), TEXT, "{suite:?}");
        }
        true
    }

    fn pass<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Result<(), rustls::Error> {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut left = wire.as_slice();
        while !left.is_empty() {
            to.read_tls(&mut left).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    fn carried<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) -> Vec<u8> {
        use std::io::{ErrorKind, Read, Write};
        let mut got = Vec::new();
        for piece in TEXT.chunks(16_000) {
            from.writer().write_all(piece).unwrap();
            pass(from, to).unwrap();
            let end = to.reader().read_to_end(&mut got).unwrap_err();
            assert_eq!(end.kind(), ErrorKind::WouldBlock);
        }
        got
    }

    fn roots(ca: &Authority) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&ca.cert).remove(0)).unwrap();
        roots
    }

    fn certificates(path: &std::path::Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
    }
}
