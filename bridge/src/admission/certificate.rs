//! Does an EK certificate lead to a TPM maker that the operator trusts?
//!
//! Invariant: `Trusted` is said only of a certificate whose key is the claimed EK's and whose chain ends at a self-signed certificate
//! from the operator's directory, all signatures and validity checked.
//!
//! Source: TCG EK Credential Profile: critical subject alternative name, key usage keyEncipherment, extended key usage
//! 2.23.133.8.1 where present, none of which ordinary TLS verification would take.

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// Object identifier 2.23.133.8.1 (tcg-kp-EKCertificate), content bytes
const EK_CERTIFICATE_USAGE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// id-RSAES-OAEP and rsaEncryption: EK certificates use either for the same RSA key
const RSA_OIDS: [&str; 2] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"];
/// Most certificate files in a directory; Keylime's own store has about a hundred
const MAX_FILES: usize = 2000;

/// Certificates of TPM makers
#[derive(Debug, Default)]
pub struct EkTrust {
    anchors: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

/// A CA directory that cannot be used
#[derive(Debug, Error)]
pub enum EkTrustError {
    /// Directory or file not readable
    #[error("[admission] ek_ca_dir {path}: cannot be read ({source})")]
    Unreadable {
        /// Directory or file
        path: PathBuf,
        /// What the system said
        source: std::io::Error,
    },
    /// Not a certificate, or one that no chain can go through
    #[error(
        "[admission] ek_ca_dir {path}: is not a usable certificate ({detail}); remove the file or replace it by PEM or DER"
    )]
    Unusable {
        /// The file
        path: PathBuf,
        /// What the parser said
        detail: String,
    },
    /// No certificate of a maker at all
    #[error(
        "[admission] ek_ca_dir {path}: holds no self-signed certificate; add the root certificates of your TPMs' makers (.pem, .crt, .cer, .der)"
    )]
    NoRoot {
        /// The directory
        path: PathBuf,
    },
    /// Too many files
    #[error(
        "[admission] ek_ca_dir {path}: holds more than {MAX_FILES} files; give a directory of certificates only"
    )]
    TooMany {
        /// The directory
        path: PathBuf,
    },
}

pub(super) enum CertificateVerdict {
    Trusted,
    Untrusted,
    Malformed(&'static str),
}

impl EkTrust {
    /// Trusts no maker
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Reads all certificates of a directory, PEM or DER; files starting with a dot are skipped
    ///
    /// # Errors
    /// When anything in it cannot be used: a silently missing maker would show only as devices refused.
    pub fn from_dir(dir: &Path) -> Result<Self, EkTrustError> {
        let unreadable = |source| EkTrustError::Unreadable { path: dir.to_owned(), source };
        let mut trust = Self::default();
        for (n, entry) in fs::read_dir(dir).map_err(unreadable)?.enumerate() {
            if n >= MAX_FILES {
                return Err(EkTrustError::TooMany { path: dir.to_owned() });
            }
            let path = entry.map_err(unreadable)?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if path.is_file() && !hidden {
                trust.add_file(&path)?;
            }
        }
        if trust.anchors.is_empty() {
            return Err(EkTrustError::NoRoot { path: dir.to_owned() });
        }
        Ok(trust)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), EkTrustError> {
        let bytes =
            fs::read(path).map_err(|source| EkTrustError::Unreadable { path: path.to_owned(), source })?;
        let unusable = |detail: String| EkTrustError::Unusable { path: path.to_owned(), detail };
        let certificates: Vec<CertificateDer<'static>> = if bytes.starts_with(b"\x30") {
            vec![CertificateDer::from(bytes)]
        } else {
            CertificateDer::pem_slice_iter(&bytes)
                .collect::<Result<_, _>>()
                .map_err(|error| unusable(error.to_string()))?
        };
        if certificates.is_empty() {
            return Err(unusable("no certificate in it".to_owned()));
        }
        for certificate in certificates {
            let parsed =
                EndEntityCert::try_from(&certificate).map_err(|error| unusable(error.to_string()))?;
            if parsed.subject() == parsed.issuer() {
                let anchor =
                    anchor_from_trusted_cert(&certificate).map_err(|error| unusable(error.to_string()))?;
                self.anchors.push(anchor.to_owned());
            } else {
                self.intermediates.push(certificate);
            }
        }
        Ok(())
    }

    /// Checks a leaf certificate (DER) against the EK's SubjectPublicKeyInfo (DER)
    pub(super) fn check(&self, der: &[u8], ek_spki: &[u8], now: UnixTime) -> CertificateVerdict {
        let certificate = CertificateDer::from(der);
        let Ok(leaf) = EndEntityCert::try_from(&certificate) else {
            return CertificateVerdict::Malformed("the EK certificate is not X.509 (DER, one leaf)");
        };
        if !same_key(&leaf.subject_public_key_info(), ek_spki) {
            return CertificateVerdict::Malformed("the EK certificate is of another key than the EK");
        }
        let usage = KeyUsage::required_if_present(EK_CERTIFICATE_USAGE);
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        match leaf.verify_for_usage(algorithms, &self.anchors, &self.intermediates, now, usage, None, None) {
            Ok(_) => CertificateVerdict::Trusted,
            Err(_) => CertificateVerdict::Untrusted,
        }
    }
}

/// Equality of the keys themselves: makers differ in how they name the algorithm
fn same_key(a: &[u8], b: &[u8]) -> bool {
    let (Ok(a), Ok(b)) = (SubjectPublicKeyInfoRef::from_der(a), SubjectPublicKeyInfoRef::from_der(b)) else {
        return false;
    };
    let is_rsa = |oid: String| RSA_OIDS.contains(&oid.as_str());
    let both_rsa = is_rsa(a.algorithm.oid.to_string()) && is_rsa(b.algorithm.oid.to_string());
    (both_rsa || a.algorithm == b.algorithm) && a.subject_public_key == b.subject_public_key
}
