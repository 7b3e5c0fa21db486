//! What can be known about the three files before rumqttd reads them, which it does for each connection anew
//! and with nothing but a log line when they are wrong.

use std::path::{Path, PathBuf};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use crate::EmbeddedSettings;

/// A file the broker could not use. Whoever starts it mends that.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not there, not readable or not PEM of the right kind.
    #[error("the embedded broker cannot use {} as its {role}: {source}", file.display())]
    Unusable {
        /// As given.
        file: PathBuf,
        /// What it should have been.
        role: &'static str,
        /// From the parser.
        source: pem::Error,
    },
    /// rumqttd loads the first CA of the file and no other, so clients of the others would be refused.
    #[error("{} holds {count} CA certificates, and the embedded broker can use just one: split the file", file.display())]
    SeveralCas {
        /// As given.
        file: PathBuf,
        /// How many.
        count: usize,
    },
}

pub(crate) fn check(settings: &EmbeddedSettings) -> Result<(), CertificateError> {
    let count = certificates(&settings.ca_file, "client CA")?;
    if count > 1 {
        return Err(CertificateError::SeveralCas { file: settings.ca_file.clone(), count });
    }
    certificates(&settings.cert_file, "certificate")?;
    PrivateKeyDer::from_pem_file(&settings.key_file)
        .map_err(|source| unusable(&settings.key_file, "private key", source))?;
    Ok(())
}

fn certificates(file: &Path, role: &'static str) -> Result<usize, CertificateError> {
    let found = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| unusable(file, role, source))?;
    if found.is_empty() {
        return Err(unusable(file, role, pem::Error::NoItemsFound));
    }
    Ok(found.len())
}

fn unusable(file: &Path, role: &'static str, source: pem::Error) -> CertificateError {
    CertificateError::Unusable { file: file.to_owned(), role, source }
}
