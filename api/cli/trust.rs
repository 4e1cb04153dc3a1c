//! The certificates that our own commands trust with `--api-ca`.
//!
//! The file holds certificate authorities, or the server's own certificate. The latter is what `openssl req -x509`
//! makes: it calls itself an authority and names no host, which the standard check refuses. So a server is trusted if
//! it presents a certificate from the file and proves that it has the key.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// Trusts what the system trusts, and the certificates of a file.
pub(crate) fn trusting(path: &Path) -> anyhow::Result<ClientConfig> {
    let read = CertificateDer::pem_file_iter(path).with_context(|| format!("read {}", path.display()))?;
    let given = read.collect::<Result<Vec<_>, _>>().with_context(|| format!("read {}", path.display()))?;
    ensure!(!given.is_empty(), "{} contains no PEM certificate", path.display());
    let provider = Arc::new(ring::default_provider());
    let others = Verifier::new_with_extra_roots(given.iter().cloned(), provider.clone());
    let others = others.with_context(|| format!("{} is not a certificate", path.display()))?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(Given { given, others });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Given {
    given: Vec<CertificateDer<'static>>,
    others: Verifier,
}

impl ServerCertVerifier for Given {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.given.contains(shown) {
            return Ok(ServerCertVerified::assertion());
        }
        self.others.verify_server_cert(shown, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.others.verify_tls12_signature(message, shown, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.others.verify_tls13_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
    }
}
