//! CAs of TPM makers: which certificates of the operator's directory may vouch for an EK.
//!
//! Invariant: an [`Authority`] was given by the operator as one to trust, or its certificate is signed by an authority that
//! may issue CAs for EKs. Whether that is still so at a given time is asked at each decision.

use super::ek_profile::EK_CERTIFICATE;
use super::x509::{Certificate, content, whole_bytes};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use spki::der::asn1::ObjectIdentifier;
use spki::der::{self, SliceReader, Tag};
use std::fmt;
use std::ops::RangeInclusive;
use webpki::anchor_from_trusted_cert;

/// anyExtendedKeyUsage
const ANY_PURPOSE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
/// keyCertSign (RFC 5280, 4.2.1.3, bit 5)
const SIGNS_CERTIFICATES: u8 = 0x80 >> 5;

/// A CA that may issue EK certificates
#[derive(Debug)]
pub(super) struct Authority {
    anchor: TrustAnchor<'static>,
    /// `None` for what the operator trusts as it is
    valid: Option<RangeInclusive<u64>>,
    /// CAs that may still come below; `None` for any number
    path_length: Option<u8>,
}

/// Why a certificate in the operator's directory is of no use
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unchained {
    NoIssuer,
    Algorithm,
    Signature,
    NoCa,
    Purpose,
    PathLength,
    NameConstraints,
    UnknownCritical,
    Malformed,
}

impl fmt::Display for Unchained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoIssuer => "its issuer's certificate is not in the directory",
            Self::Algorithm => "it is signed with SHA-1 or another algorithm that is not trusted",
            Self::Signature => "its signature is not its issuer's",
            Self::NoCa => "it is not the certificate of a CA",
            Self::Purpose => "it is of a CA that may not issue EK certificates",
            Self::PathLength => "its issuer may issue no CAs",
            Self::NameConstraints => {
                "its issuer may issue certificates of certain names alone, which is not supported"
            }
            Self::UnknownCritical => "it has a critical extension that is not known here",
            Self::Malformed => "an extension of it cannot be read",
        })
    }
}

impl From<der::Error> for Unchained {
    fn from(_: der::Error) -> Self {
        Self::Malformed
    }
}

impl Authority {
    /// One that the operator trusts as it is
    pub(super) fn trusted(certificate: &CertificateDer<'_>) -> Result<Self, webpki::Error> {
        let anchor = anchor_from_trusted_cert(certificate)?.to_owned();
        // a CA of the first version says nothing of itself
        let said = Certificate::parse(certificate).ok().map(|parsed| parsed.extensions);
        let path_length = said.and_then(|said| said.basic_constraints().ok()?.path_length);
        Ok(Self { anchor, valid: None, path_length })
    }

    /// One that another vouches for
    pub(super) fn issued(certificate: &CertificateDer<'_>, authorities: &[Self]) -> Result<Self, Unchained> {
        let parsed = Certificate::parse(certificate)?;
        may_issue(&parsed)?;
        let mut refused = Unchained::NoIssuer;
        for issuer in authorities.iter().filter(|other| other.is_issuer_of(&parsed)) {
            match issuer.vouches_for_ca(&parsed) {
                Err(why) => refused = why,
                Ok(path_length) => {
                    let own = parsed.extensions.basic_constraints()?.path_length;
                    let anchor = anchor_from_trusted_cert(certificate).map_err(|_| Unchained::Malformed)?;
                    return Ok(Self {
                        anchor: anchor.to_owned(),
                        valid: Some(issuer.valid_within(&parsed.valid)),
                        path_length: path_length.into_iter().chain(own).min(),
                    });
                }
            }
        }
        Err(refused)
    }

    /// Whether this is the CA that a certificate names as its issuer
    pub(super) fn is_issuer_of(&self, certificate: &Certificate<'_>) -> bool {
        self.anchor.subject.as_ref() == certificate.issuer
    }

    pub(super) fn is_valid(&self, now: u64) -> bool {
        self.valid.as_ref().is_none_or(|valid| valid.contains(&now))
    }

    /// Whether the signature of a certificate is this CA's
    pub(super) fn vouches_for(&self, certificate: &Certificate<'_>) -> Result<(), Unchained> {
        if self.anchor.name_constraints.is_some() {
            return Err(Unchained::NameConstraints);
        }
        let mut key = SliceReader::new(&self.anchor.subject_public_key_info)?;
        let key_algorithm = content(&mut key, Tag::Sequence)?;
        let key = whole_bytes(&mut key)?;
        let mut fitting = webpki::ALL_VERIFICATION_ALGS
            .iter()
            .filter(|algorithm| {
                algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                    && algorithm.public_key_alg_id().as_ref() == key_algorithm
            })
            .peekable();
        if fitting.peek().is_none() {
            return Err(Unchained::Algorithm);
        }
        let (message, signature) = (certificate.signed, certificate.signature);
        let signed = fitting.any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok());
        if signed { Ok(()) } else { Err(Unchained::Signature) }
    }

    /// The CAs that may come below one that this CA vouches for; `None` for any number
    fn vouches_for_ca(&self, certificate: &Certificate<'_>) -> Result<Option<u8>, Unchained> {
        self.vouches_for(certificate)?;
        match self.path_length {
            None => Ok(None),
            Some(left) => left.checked_sub(1).map(Some).ok_or(Unchained::PathLength),
        }
    }

    fn valid_within(&self, own: &RangeInclusive<u64>) -> RangeInclusive<u64> {
        match &self.valid {
            None => own.clone(),
            Some(valid) => *own.start().max(valid.start())..=*own.end().min(valid.end()),
        }
    }
}

/// Whether a certificate says of itself that it is a CA which may issue EK certificates
fn may_issue(certificate: &Certificate<'_>) -> Result<(), Unchained> {
    let extensions = &certificate.extensions;
    if extensions.unknown_critical.is_some() {
        return Err(Unchained::UnknownCritical);
    }
    let signs = extensions.key_usage()?.is_none_or(|usage| usage & SIGNS_CERTIFICATES != 0);
    if !extensions.basic_constraints()?.is_ca || !signs {
        return Err(Unchained::NoCa);
    }
    let purposes = extensions.extended_key_usage()?;
    let for_eks = |purposes: Vec<_>| purposes.contains(&EK_CERTIFICATE) || purposes.contains(&ANY_PURPOSE);
    if purposes.is_none_or(for_eks) { Ok(()) } else { Err(Unchained::Purpose) }
}
