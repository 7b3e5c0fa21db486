//! The TLS client configuration from the operator's three files.
//!
//! Invariant: the only trusted roots are those in `broker.ca_file`, each of which parsed; a client certificate
//! is always offered; nothing here can be relaxed at run time. ring is named explicitly because rustls panics
//! when a process holds two providers and none is chosen.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::ring, version};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use zeroize::Zeroizing;

use crate::secret_file::is_exposed;

/// No certificate or key file is larger; anything else was named by mistake.
const LARGEST_PEM_FILE: u64 = 1024 * 1024;

/// What is wrong with one of the files of the `[broker]` table. The operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The file cannot be read.
    #[error("broker.{key}: cannot read {}: {source}; check the path and the owner of the file", file.display())]
    Unreadable {
        /// Key in the `[broker]` table.
        key: &'static str,
        /// As configured.
        file: PathBuf,
        /// From the operating system.
        source: io::Error,
    },
    /// The file is not PEM or is far too large.
    #[error("broker.{key}: {} is not a PEM file ({reason}); name a file with -----BEGIN lines", file.display())]
    NotPem {
        /// Key in the `[broker]` table.
        key: &'static str,
        /// As configured.
        file: PathBuf,
        /// What the parser met.
        reason: String,
    },
    /// PEM, but without what belongs there.
    #[error("broker.{key}: {} holds no {wanted}", file.display())]
    Empty {
        /// Key in the `[broker]` table.
        key: &'static str,
        /// As configured.
        file: PathBuf,
        /// "CERTIFICATE" or "PRIVATE KEY".
        wanted: &'static str,
    },
    /// A certificate that is not X.509. Skipping it would hide a typing error until the CA changes.
    #[error("broker.ca_file: certificate number {number} in {} cannot be used as a CA ({source}); replace or remove it", file.display())]
    BadCa {
        /// As configured.
        file: PathBuf,
        /// Counted from 1 in the order of the file.
        number: usize,
        /// From rustls.
        source: rustls::Error,
    },
    /// The private key may be read by others.
    #[error("broker.key_file: {} can be read by others (mode {mode:03o}); run chmod 600 on it", file.display())]
    KeyExposed {
        /// As configured.
        file: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Certificate and key do not belong together, or the key is of an unknown kind.
    #[error("broker.cert_file {} and broker.key_file {} cannot be used together ({source}); the key must be the one the certificate was issued for", cert.display(), key.display())]
    ClientIdentity {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// From rustls.
        source: rustls::Error,
    },
    /// The crypto provider lacks the TLS versions: a mistake in the build, not the operator's.
    #[error("this build cannot do the TLS versions asked for ({0}); report it")]
    Provider(rustls::Error),
}

/// The files of one broker, and what else TLS with it needs.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) allow_tls12: bool,
    pub(crate) alpn: Vec<String>,
}

/// What the files held at one time.
pub(crate) struct TlsBytes {
    pub(crate) ca: Zeroizing<Vec<u8>>,
    pub(crate) cert: Zeroizing<Vec<u8>>,
    pub(crate) key: Zeroizing<Vec<u8>>,
}

impl TlsFiles {
    /// Reads the files; the key only if others cannot.
    pub(crate) fn read(&self) -> Result<TlsBytes, TlsFileError> {
        let (ca, _) = read("ca_file", &self.ca)?;
        let (cert, _) = read("cert_file", &self.cert)?;
        let (key, mode) = read("key_file", &self.key)?;
        if is_exposed(&self.key, mode) {
            return Err(TlsFileError::KeyExposed { file: self.key.clone(), mode: mode & 0o777 });
        }
        Ok(TlsBytes { ca, cert, key })
    }

    pub(crate) fn client_config(&self, bytes: &TlsBytes) -> Result<ClientConfig, TlsFileError> {
        let roots = own_roots(&self.ca, &bytes.ca)?;
        let chain = certificates("cert_file", &self.cert, &bytes.cert)?;
        let key = private_key(&self.key, &bytes.key)?;
        let versions: &[_] =
            if self.allow_tls12 { &[&version::TLS13, &version::TLS12] } else { &[&version::TLS13] };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(TlsFileError::Provider)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|source| TlsFileError::ClientIdentity {
                cert: self.cert.clone(),
                key: self.key.clone(),
                source,
            })?;
        config.alpn_protocols = self.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(config)
    }
}

fn own_roots(file: &Path, bytes: &[u8]) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates("ca_file", file, bytes)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|source| TlsFileError::BadCa {
            file: file.to_owned(),
            number: index + 1,
            source,
        })?;
    }
    Ok(roots)
}

fn certificates(
    key: &'static str,
    file: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let found = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|reason| not_pem(key, file, &reason))?;
    if found.is_empty() {
        return Err(TlsFileError::Empty { key, file: file.to_owned(), wanted: "CERTIFICATE" });
    }
    Ok(found)
}

fn private_key(file: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let key = "key_file";
    PrivateKeyDer::from_pem_slice(bytes).map_err(|reason| match reason {
        pem::Error::NoItemsFound => TlsFileError::Empty { key, file: file.to_owned(), wanted: "PRIVATE KEY" },
        reason => not_pem(key, file, &reason),
    })
}

/// Contents and mode of one and the same opened file.
fn read(key: &'static str, file: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), TlsFileError> {
    let unreadable = |source| TlsFileError::Unreadable { key, file: file.to_owned(), source };
    let opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if metadata.len() > LARGEST_PEM_FILE {
        let reason = format!("{} bytes", metadata.len());
        return Err(TlsFileError::NotPem { key, file: file.to_owned(), reason });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    opened.take(LARGEST_PEM_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok((bytes, metadata.mode()))
}

fn not_pem(key: &'static str, file: &Path, reason: &pem::Error) -> TlsFileError {
    TlsFileError::NotPem { key, file: file.to_owned(), reason: reason.to_string() }
}
