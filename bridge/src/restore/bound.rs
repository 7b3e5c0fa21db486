//! Is this the trusted AK's answer to this nonce?
//!
//! [`Bound`] can only be made here and in [`super::brief`], after every check has passed, so holding one is the proof that they were made.

use super::Digest;
use crate::tpm::{AkPublic, Attest, Attested, ClockInfo, Malformed, RsaSignature, SignatureError};
use keylime_mqtt_schemas::messages::{PcrMask, PcrValues};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// A quote that the given AK made over the given nonce, with the PCR values that it is about
///
/// Proves: a holder of the AK signed, over exactly this nonce, that the selected PCRs hash to these values, and
/// that the TPM's clock had not gone back.
///
/// Does not prove: that the AK is a TPM's or this device's (that is why the AK must be a trusted one); that the values are good ones; that any log
/// belongs to them; that the clock or the reset counter advanced since the last quote; or anything about boot time, capabilities or the order of
/// messages, none of which a TPM signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    clock: ClockInfo,
    values: PcrValues,
}

/// Why evidence is not bound
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Unbound {
    /// Not a TPMS_ATTEST
    #[error("the attestation structure is malformed: it {0}")]
    Malformed(#[from] Malformed),
    /// Another kind than was asked for
    #[error("the attestation structure is of another kind than was asked for")]
    Kind,
    /// A certification of another key
    #[error("it certifies another key than the AK that was named")]
    Name,
    /// An answer to another challenge
    #[error("the nonce is another one")]
    Nonce,
    /// Not signed by the trusted AK
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Other PCRs than asked for
    #[error("the PCR selection is another one than was asked for")]
    Selection,
    /// The values given with the quote are not those quoted: the full form is needed
    #[error("the PCR values do not hash to the quoted digest")]
    Values,
    /// The TPM's clock may have gone back; Keylime would fail the device for good
    #[error("the TPM's clock is not safe yet after a power loss; quote again later")]
    ClockUnsafe,
}

impl Bound {
    /// What a signature that was checked covers
    pub(super) fn checked(clock: ClockInfo, values: PcrValues) -> Self {
        Self { clock, values }
    }

    /// clockInfo of the quote
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The quoted values
    pub fn values(&self) -> &PcrValues {
        &self.values
    }

    /// The quoted values, given away
    pub fn into_values(self) -> PcrValues {
        self.values
    }
}

/// Checks a quote and the values that it is said to be about against the open challenge
///
/// The signature is checked before anything is concluded from the content.
///
/// # Errors
/// The first check that failed.
pub fn bind(
    ak: &AkPublic,
    nonce: &[u8],
    mask: PcrMask,
    attest: &[u8],
    signature: &[u8],
    values: PcrValues,
) -> Result<Bound, Unbound> {
    let parsed = verified(ak, attest, signature)?;
    if parsed.extra_data != nonce {
        return Err(Unbound::Nonce);
    }
    let Attested::Quote { sha256_mask, pcr_digest } = parsed.attested else {
        return Err(Unbound::Kind);
    };
    if sha256_mask != Some(mask.into()) {
        return Err(Unbound::Selection);
    }
    if values.mask() != mask || pcr_digest != values.digest().as_bytes() {
        return Err(Unbound::Values);
    }
    if !parsed.clock.safe {
        return Err(Unbound::ClockUnsafe);
    }
    Ok(Bound::checked(parsed.clock, values))
}

/// Checks a statement: a quote of no PCRs, by which the trusted AK says the 32 bytes in its extraData
///
/// Proves: a holder of the AK said exactly this, and no quote of PCRs was taken for it. Does not prove: that it is true (a device that was
/// tampered with states what it sent, and is failed for it); that it was said just now, unless there is a nonce in what is hashed; that the AK is a
/// TPM's or this device's; or anything about the logs and the boot time but that the device itself named them.
///
/// Returns the clock, which here may be unsafe: a statement is not submitted to anyone.
///
/// # Errors
/// The first check that failed.
pub fn verify_statement(
    ak: &AkPublic,
    said: &Digest,
    attest: &[u8],
    signature: &[u8],
) -> Result<ClockInfo, Unbound> {
    let parsed = verified(ak, attest, signature)?;
    if parsed.extra_data != said {
        return Err(Unbound::Nonce);
    }
    let Attested::Quote { sha256_mask, pcr_digest } = parsed.attested else {
        return Err(Unbound::Kind);
    };
    if sha256_mask != Some(0) {
        return Err(Unbound::Selection);
    }
    // TPMs hash nothing, or leave the digest out
    if !pcr_digest.is_empty() && pcr_digest != Digest::from(Sha256::digest([])) {
        return Err(Unbound::Values);
    }
    Ok(parsed.clock)
}

/// Checks a proof of possession against the session nonce and the AK that the device claims
///
/// Proves: whoever made it holds that AK and was asked with that nonce, so it arrived as it was sent. Does not prove: that the AK is the
/// one enrolled, or a TPM's at all. That is the verifier's to say, and until it has said `pass` the AK stays a claim.
///
/// # Errors
/// The first check that failed.
pub fn verify_proof(ak: &AkPublic, nonce: &[u8], attest: &[u8], signature: &[u8]) -> Result<(), Unbound> {
    // first what the AK is: with another one no signature can be expected to hold
    let parsed = Attest::parse(attest)?;
    let Attested::Certify { name } = &parsed.attested else {
        return Err(Unbound::Kind);
    };
    if name.as_slice() != ak.name() {
        return Err(Unbound::Name);
    }
    let parsed = verified(ak, attest, signature)?;
    if parsed.extra_data == nonce { Ok(()) } else { Err(Unbound::Nonce) }
}

/// The name that a TPM2_Certify answer is about
///
/// Reads only: nonce and signature are checked by the verifier, and only after it said `pass` may the name be trusted.
///
/// # Errors
/// When it is malformed or another kind.
pub fn certified_name(attest: &[u8]) -> Result<Vec<u8>, Unbound> {
    match Attest::parse(attest)?.attested {
        Attested::Certify { name } => Ok(name),
        Attested::Quote { .. } => Err(Unbound::Kind),
    }
}

fn verified(ak: &AkPublic, attest: &[u8], signature: &[u8]) -> Result<Attest, Unbound> {
    RsaSignature::parse(signature).map_err(SignatureError::from)?.verify(ak, attest)?;
    Ok(Attest::parse(attest)?)
}
