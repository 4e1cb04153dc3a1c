//! TLS: the certificate, which may be replaced while the broker runs, and the handshake.

use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// TLS settings.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificate chain, PEM. When the file changes, new connections get the new one.
    pub certificate: PathBuf,
    /// Private key of the certificate, PEM.
    pub key: PathBuf,
    /// Refuse connections without encryption.
    pub required: bool,
    /// Run the handshake before the server sends `INFO`; clients must be configured for this.
    pub first: bool,
}

impl Tls {
    /// Reads the certificate.
    pub(super) fn acceptor(&self) -> Result<Acceptor, String> {
        let config = server_config(&self.certificate, &self.key)?;
        Ok(Acceptor { settings: self.clone(), acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

/// A server's TLS configuration from a certificate chain and its private key, both PEM. When the files
/// change, new connections get the new ones.
///
/// # Errors
/// A description of the problem, if the files cannot be read or do not belong together.
pub fn server_config(certificate: &Path, key: &Path) -> Result<rustls::ServerConfig, String> {
    let certificate = Certificate::open(certificate, key)?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(config.with_no_client_auth().with_cert_resolver(Arc::new(certificate)))
}

/// Runs the TLS handshake with new clients.
pub(super) struct Acceptor {
    pub(super) settings: Tls,
    pub(super) acceptor: TlsAcceptor,
}

impl Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.settings.fmt(f)
    }
}

/// A certificate and key in two files, reloaded when either changes.
#[derive(Debug)]
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<(Option<SystemTime>, Arc<CertifiedKey>)>,
}

impl Certificate {
    fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let changed = changed(certificate, key);
        let loaded = load(certificate, key)?;
        let current = Mutex::new((changed, loaded));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), current })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = changed(&self.certificate, &self.key);
        if changed != current.0 {
            match load(&self.certificate, &self.key) {
                Ok(loaded) => *current = (changed, loaded),
                // Perhaps only one file was replaced so far: the old pair is used until both match.
                Err(problem) => tracing::warn!(problem, "new certificate not usable yet"),
            }
        }
        current.1.clone()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// When either file last changed.
fn changed(certificate: &Path, key: &Path) -> Option<SystemTime> {
    let time = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time(certificate).max(time(key))
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, String> {
    let shown = |path: &Path, error: &dyn Display| format!("{}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| shown(certificate, &error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| shown(certificate, &error))?;
    if chain.is_empty() {
        return Err(format!("{}: no certificate", certificate.display()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| shown(key, &error))?;
    let signer = ring::sign::any_supported_type(&private).map_err(|error| format!("{}: {error}", key.display()))?;
    let pair = CertifiedKey::new(chain, signer);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Arc::new(pair)),
        Err(_) => Err(format!("{} is not the key of {}", key.display(), certificate.display())),
    }
}
