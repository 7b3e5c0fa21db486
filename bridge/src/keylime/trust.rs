//! Whom the bridge believes to be registrar or verifier.
//!
//! Invariant: only certificates of the configured CA file are trusted, each service with its own; the system's roots are never
//! consulted and nothing can switch verification off.

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// A CA file that cannot be used
#[derive(Debug, Error)]
pub enum TrustError {
    /// Not readable, or not PEM
    #[error(
        "{path}: cannot be read as PEM certificates ({source}); give the CA certificate of the Keylime service, e.g. cv_ca/cacert.crt"
    )]
    Unreadable {
        /// The file
        path: PathBuf,
        /// What the reader said
        source: rustls_pki_types::pem::Error,
    },
    /// PEM without a certificate in it
    #[error(
        "{path}: holds no certificate; give the CA certificate of the Keylime service, e.g. cv_ca/cacert.crt"
    )]
    Empty {
        /// The file
        path: PathBuf,
    },
    /// A certificate that cannot be a trust anchor, or TLS settings that the library refuses
    #[error("{path}: cannot serve as trust anchor ({source})")]
    Unfit {
        /// The file
        path: PathBuf,
        /// What rustls said
        source: rustls::Error,
    },
}

/// A TLS client configuration that trusts the certificates of one file and nothing else
///
/// # Errors
/// When the file cannot be read or holds nothing that can be trusted.
pub fn trust_from_ca_file(path: &Path) -> Result<ClientConfig, TrustError> {
    let unreadable = |source| TrustError::Unreadable { path: path.to_owned(), source };
    let unfit = |source| TrustError::Unfit { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?).map_err(unfit)?;
    }
    if roots.is_empty() {
        return Err(TrustError::Empty { path: path.to_owned() });
    }
    client_config(roots).map_err(unfit)
}

/// For plain HTTP, where there is no TLS to configure: without it the HTTP library would look for trust of its own
pub(super) fn trust_nobody() -> Result<ClientConfig, rustls::Error> {
    client_config(RootCertStore::empty())
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        // never a client certificate: it would make the bridge an administrator of Keylime
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_foreign_ca_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "not a certificate").unwrap();
        let error = trust_from_ca_file(&path).unwrap_err().to_string();
        assert!(error.contains("ca.pem"), "{error}");
        let error = trust_from_ca_file(&dir.path().join("absent.pem")).unwrap_err().to_string();
        assert!(error.contains("absent.pem"), "{error}");
    }
}
