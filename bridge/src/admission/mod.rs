//! Which TPMs may register, and under which ids.
//!
//! Keylime in push mode checks no EK certificate and lets the first comer have any id, so this is the only gate between the broker and the registrar.
//! Invariant: [`Admission::decide`] says `Admitted` only if the EK's certificate leads to a trusted maker or
//! the operator named this very EK, and only for an id that this EK may bear.
//!
//! It decides about a claimed EK. That the sender owns it is proven afterwards, by the activation that the registrar demands.

mod authority;
mod certificate;
mod ek_profile;
mod ek_public;
mod list;
mod x509;

pub use certificate::{EkTrust, EkTrustError, UnusedCertificate};
pub use ek_public::{EkHash, EkPublicError, ek_hash};
pub use list::{AdmissionList, ChangedList, ListError, ListReader};

use crate::tpm::{AkPublic, AkUnfit};
use certificate::CertificateVerdict;
use rustls_pki_types::UnixTime;
use std::path::PathBuf;

/// What the operator configured
#[derive(Debug, Clone, Default)]
pub struct AdmissionSettings {
    /// Directory of PEM or DER certificates of TPM makers: self-signed ones and those in its subdirectory `anchors` are
    /// trusted, the others complete chains
    pub ek_ca_dir: Option<PathBuf>,
    /// The admission list
    pub list_file: Option<PathBuf>,
    /// Lets any TPM of a trusted maker take any id that is not in the list
    pub danger_any_id_of_trusted_ca: bool,
}

/// Why admission cannot be set up
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The CA directory
    #[error(transparent)]
    Trust(#[from] EkTrustError),
    /// The list
    #[error(transparent)]
    List(#[from] ListError),
    /// Nothing to decide by
    #[error(
        "[admission] needs ek_ca_dir (certificates of TPM makers) or list_file (id = EK hash lines), or both"
    )]
    Nothing,
}

/// A device's claim to an identity
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The id it wants
    pub id: &'a str,
    /// TPM2B_PUBLIC of its EK
    pub ek_public: &'a [u8],
    /// Its EK certificate, DER, if it has one
    pub ek_certificate: Option<&'a [u8]>,
    /// TPM2B_PUBLIC of its AK
    pub ak_public: &'a [u8],
}

/// The decision on a claim
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// May register
    Admitted {
        /// The EK's hash, as Keylime computes it
        ek_hash: EkHash,
    },
    /// The certificate does not lead to a trusted maker, and no line names this EK
    UnknownCa {
        /// The EK's hash
        ek_hash: EkHash,
        /// What is missing or wrong
        reason: &'static str,
    },
    /// There is no certificate, and no line names this EK
    NoCertificate {
        /// The EK's hash
        ek_hash: EkHash,
    },
    /// A genuine TPM, but the id is not its hash and no line gives it to this EK
    NotAdmitted {
        /// The EK's hash
        ek_hash: EkHash,
    },
    /// The list gives this id to another EK
    IdMismatch {
        /// The EK's hash
        ek_hash: EkHash,
    },
    /// The EK or its certificate cannot be read, or they are of different keys
    Malformed {
        /// What is wrong
        reason: &'static str,
    },
    /// The AK could sign what no TPM made, or Keylime would not take it
    UnfitAk(AkUnfit),
}

impl Decision {
    /// What an operator can do about it; `None` when admitted
    pub fn remedy(&self, id: &str) -> Option<String> {
        let line =
            |hash: &EkHash| format!("if this device is yours, add to the admission list: {id} = {hash}");
        match self {
            Self::Admitted { .. } => None,
            Self::UnknownCa { ek_hash, reason } => Some(format!(
                "{reason}: add its maker's certificates to [admission] ek_ca_dir, or, {}",
                line(ek_hash)
            )),
            Self::NoCertificate { ek_hash } | Self::NotAdmitted { ek_hash } => Some(line(ek_hash)),
            Self::IdMismatch { ek_hash } => {
                Some(format!("another TPM claims this id; {} in place of the present line", line(ek_hash)))
            }
            Self::Malformed { .. } => Some("see what the device sends: agent version, TPM".to_owned()),
            Self::UnfitAk(_) => Some("let the agent create its AK anew".to_owned()),
        }
    }

    /// A short name for counters, results and log fields
    pub fn name(&self) -> &'static str {
        match self {
            Self::Admitted { .. } => "admitted",
            Self::UnknownCa { .. } => "unknown_ca",
            Self::NoCertificate { .. } => "no_certificate",
            Self::NotAdmitted { .. } => "not_admitted",
            Self::IdMismatch { .. } => "id_mismatch",
            Self::Malformed { .. } => "malformed",
            Self::UnfitAk(_) => "unfit_ak",
        }
    }
}

/// The gate
#[derive(Debug)]
pub struct Admission {
    trust: EkTrust,
    list: Option<AdmissionList>,
    any_id_of_trusted_ca: bool,
}

impl Admission {
    /// Reads certificates and list
    ///
    /// # Errors
    /// When a file cannot be used, with its name and what to do, or nothing is configured at all.
    pub fn new(settings: &AdmissionSettings) -> Result<Self, AdmissionError> {
        if settings.ek_ca_dir.is_none() && settings.list_file.is_none() {
            return Err(AdmissionError::Nothing);
        }
        let trust = match &settings.ek_ca_dir {
            Some(dir) => EkTrust::from_dir(dir)?,
            None => EkTrust::none(),
        };
        let list = settings.list_file.as_deref().map(AdmissionList::open).transpose()?;
        Ok(Self { trust, list, any_id_of_trusted_ca: settings.danger_any_id_of_trusted_ca })
    }

    /// Certificates in the directory that no chain can go through
    pub fn unused_certificates(&self) -> &[UnusedCertificate] {
        self.trust.unused()
    }

    /// For looking whether the list's file has changed, without holding the gate
    pub fn list_reader(&self) -> Option<ListReader> {
        self.list.as_ref().map(AdmissionList::reader)
    }

    /// Puts a changed list in force
    ///
    /// # Errors
    /// When the changed file is wrong. The entries read before stay in force.
    pub fn adopt(&mut self, changed: ChangedList) -> Result<(), ListError> {
        self.list.as_mut().map_or(Ok(()), |list| list.adopt(changed))
    }

    /// Decides on a claim, at a given time for the certificates' validity
    pub fn decide(&self, claim: Claim<'_>, now: UnixTime) -> Decision {
        let Ok((ek_hash, spki)) = ek_public::ek_hash_and_spki(claim.ek_public) else {
            return Decision::Malformed {
                reason: "the EK is not a TPM2B_PUBLIC of an RSA or NIST curve key",
            };
        };
        if let Err(unfit) = AkPublic::parse(claim.ak_public) {
            return Decision::UnfitAk(unfit);
        }
        let listed = self.list.as_ref().and_then(|list| list.ek_hash_of(claim.id));
        if listed.is_some_and(|listed| *listed != ek_hash) {
            return Decision::IdMismatch { ek_hash };
        }
        // the id of one EK's hash can never be another's
        let id_is_a_hash = EkHash::parse(claim.id).is_some();
        let id_is_its_hash = claim.id == ek_hash.as_str();
        if id_is_a_hash && !id_is_its_hash && listed.is_none() {
            return Decision::IdMismatch { ek_hash };
        }
        let verdict = claim.ek_certificate.map(|der| self.trust.check(der, &spki, now));
        match (verdict, listed.is_some()) {
            (Some(CertificateVerdict::Malformed(reason)), _) => Decision::Malformed { reason },
            // the operator named this EK: whether its maker is trusted no longer matters
            (_, true) => Decision::Admitted { ek_hash },
            (None, false) => Decision::NoCertificate { ek_hash },
            (Some(CertificateVerdict::Untrusted(reason)), false) => Decision::UnknownCa { ek_hash, reason },
            (Some(CertificateVerdict::Trusted), false) => {
                if id_is_its_hash || self.any_id_of_trusted_ca {
                    Decision::Admitted { ek_hash }
                } else {
                    Decision::NotAdmitted { ek_hash }
                }
            }
        }
    }
}
