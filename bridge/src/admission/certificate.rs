//! Does an EK certificate lead to a TPM maker that the operator trusts?
//!
//! Invariant: `Trusted` is said only of a certificate of an EK whose key is the claimed EK's and whose chain ends at what the
//! operator trusts: a self-signed certificate in the directory, or any in its subdirectory `anchors`. All signatures and validity
//! are checked, those of what the operator trusts excepted.
//!
//! None of that is ordinary TLS verification, which takes neither the leaves nor the intermediates of most makers.

use super::authority::{Authority, Unchained};
use super::ek_profile::unlike_an_ek;
use super::x509::Certificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use spki::SubjectPublicKeyInfoRef;
use spki::der::Decode as _;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// id-RSAES-OAEP and rsaEncryption: EK certificates use either for the same RSA key
const RSA_OIDS: [&str; 2] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"];
/// Most certificate files in a directory; Keylime's own store has about a hundred
const MAX_FILES: usize = 2000;
/// Certificates in it are trusted as they are: AMD publishes the CAs of its TPMs, and no root that has signed them
const ANCHORS: &str = "anchors";

/// Certificates of TPM makers
#[derive(Debug, Default)]
pub struct EkTrust {
    authorities: Vec<Authority>,
    unused: Vec<UnusedCertificate>,
}

/// A certificate in the directory that no chain can go through
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("[admission] ek_ca_dir {path}: of no use, for {why}")]
pub struct UnusedCertificate {
    path: PathBuf,
    why: String,
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
        "[admission] ek_ca_dir {path}: holds no self-signed certificate and none in {ANCHORS}/; add the root certificates of your TPMs' makers (.pem, .crt, .cer, .der)"
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
    Untrusted(&'static str),
    Malformed(&'static str),
}

impl EkTrust {
    /// Trusts no maker
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Reads all certificates of a directory, PEM or DER; files starting with a dot are skipped
    ///
    /// Self-signed ones are trusted, and so are all in the subdirectory `anchors`; the others complete chains.
    ///
    /// # Errors
    /// When anything in it cannot be read: a silently missing maker would show only as devices refused.
    pub fn from_dir(dir: &Path) -> Result<Self, EkTrustError> {
        let mut trust = Self::default();
        let mut waiting = Vec::new();
        for (path, certificate) in certificates(dir)? {
            if is_self_issued(&certificate) {
                trust.add_trusted(&path, &certificate)?;
            } else {
                waiting.push((path, certificate));
            }
        }
        let anchors = dir.join(ANCHORS);
        if anchors.is_dir() {
            for (path, certificate) in certificates(&anchors)? {
                trust.add_trusted(&path, &certificate)?;
            }
        }
        if trust.authorities.is_empty() {
            return Err(EkTrustError::NoRoot { path: dir.to_owned() });
        }
        trust.complete(waiting);
        Ok(trust)
    }

    /// Certificates in the directory that no chain can go through: worth a word to the operator
    pub fn unused(&self) -> &[UnusedCertificate] {
        &self.unused
    }

    fn add_trusted(&mut self, path: &Path, certificate: &CertificateDer<'_>) -> Result<(), EkTrustError> {
        let unusable = |error: webpki::Error| EkTrustError::Unusable {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        self.authorities.push(Authority::trusted(certificate).map_err(unusable)?);
        Ok(())
    }

    /// Adds CAs that those added before vouch for, until there are no more of them
    fn complete(&mut self, mut waiting: Vec<(PathBuf, CertificateDer<'static>)>) {
        loop {
            let mut left = Vec::new();
            let mut refused = Vec::new();
            let known = self.authorities.len();
            for (path, certificate) in waiting {
                match Authority::issued(&certificate, &self.authorities) {
                    Ok(authority) => self.authorities.push(authority),
                    Err(why) => {
                        refused.push(UnusedCertificate { path: path.clone(), why: why.to_string() });
                        left.push((path, certificate));
                    }
                }
            }
            if self.authorities.len() == known {
                self.unused = refused;
                return;
            }
            waiting = left;
        }
    }

    /// Checks a leaf certificate (DER) against the EK's SubjectPublicKeyInfo (DER)
    pub(super) fn check(&self, der: &[u8], ek_spki: &[u8], now: UnixTime) -> CertificateVerdict {
        let Ok(leaf) = Certificate::parse(der) else {
            return CertificateVerdict::Malformed("the EK certificate is not X.509 (DER, one leaf)");
        };
        if !same_key(leaf.public_key, ek_spki) {
            return CertificateVerdict::Malformed("the EK certificate is of another key than the EK");
        }
        match unlike_an_ek(&leaf) {
            Some(reason) => CertificateVerdict::Untrusted(reason),
            None => self.issued_by_trusted(&leaf, now.as_secs()),
        }
    }

    fn issued_by_trusted(&self, leaf: &Certificate<'_>, now: u64) -> CertificateVerdict {
        if !leaf.valid.contains(&now) {
            return CertificateVerdict::Untrusted("the EK certificate is not valid at this time");
        }
        let mut reason = "no CA in ek_ca_dir has issued the EK certificate";
        for issuer in self.authorities.iter().filter(|authority| authority.is_issuer_of(leaf)) {
            reason = match issuer.vouches_for(leaf) {
                Ok(()) if issuer.is_valid(now) => return CertificateVerdict::Trusted,
                Ok(()) => "the CA of the EK certificate is not valid at this time",
                Err(Unchained::Algorithm) => {
                    "the EK certificate is signed with SHA-1 or another algorithm that is not trusted"
                }
                Err(_) => "the EK certificate is not signed by the CA in ek_ca_dir that it names",
            };
        }
        CertificateVerdict::Untrusted(reason)
    }
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    Certificate::parse(certificate).is_ok_and(|parsed| parsed.subject == parsed.issuer)
}

/// Every certificate in the files of a directory, with the file's name
fn certificates(dir: &Path) -> Result<Vec<(PathBuf, CertificateDer<'static>)>, EkTrustError> {
    let unreadable = |source| EkTrustError::Unreadable { path: dir.to_owned(), source };
    let mut all = Vec::new();
    for (n, entry) in fs::read_dir(dir).map_err(unreadable)?.enumerate() {
        if n >= MAX_FILES {
            return Err(EkTrustError::TooMany { path: dir.to_owned() });
        }
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            all.extend(in_file(&path)?.into_iter().map(|certificate| (path.clone(), certificate)));
        }
    }
    Ok(all)
}

fn in_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, EkTrustError> {
    let unusable = |detail: String| EkTrustError::Unusable { path: path.to_owned(), detail };
    let bytes =
        fs::read(path).map_err(|source| EkTrustError::Unreadable { path: path.to_owned(), source })?;
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
    for certificate in &certificates {
        Certificate::parse(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    Ok(certificates)
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
