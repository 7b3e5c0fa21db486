//! The attestation key: a restricted RSA-2048 signing key under the EK, which only this TPM can load.
//!
//! Its public and wrapped private part are kept in the agent's state, so it survives restarts and TPM resets. After
//! TPM2_Clear, or in another TPM, it cannot be loaded any more (TPM_RC_INTEGRITY): then there is a new AK, and the device
//! must enrol again.
//!
//! noDA is set: without it every power cut after a use counts as a failed authorization, and after a few the TPM refuses
//! all quotes (TPM 2.0 Part 1, 19.8.6). The key has no authorization value that could be guessed.

use std::fmt;

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, KeyCustomization, ak};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, SignatureSchemeAlgorithm};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{Private, Public};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Error};

use super::error::{Failure, TpmError};

/// TPM name of an AK: algorithm (0x000B, SHA-256) and digest of its public area.
pub type AkName = [u8; 34];

/// What must be kept to load the AK again. The private part is wrapped by the EK and useless elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct SavedAk {
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
    /// Contents of TPM2B_PRIVATE.
    pub private: Vec<u8>,
}

impl fmt::Debug for SavedAk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedAk").field("public", &hex::encode(&self.public)).finish_non_exhaustive()
    }
}

impl SavedAk {
    /// The key inside [`Self::public`].
    pub(super) fn public_key(&self) -> Result<Public, TpmError> {
        self.public
            .get(2..)
            .and_then(|area| Public::unmarshall(area).ok())
            .ok_or(TpmError::Malformed("saved AK"))
    }
}

/// Loads the saved AK, or makes a new one when there is none or the TPM does not know it any more.
pub(super) fn load_or_create(
    context: &mut Context,
    ek: KeyHandle,
    saved: Option<&SavedAk>,
) -> Result<(KeyHandle, SavedAk), Failure> {
    if let Some(saved) = saved {
        match ak::load_ak(
            context,
            ek,
            None,
            Private::try_from(saved.private.as_slice())?,
            saved.public_key()?,
        ) {
            Ok(handle) => return Ok((handle, saved.clone())),
            Err(error) if is_lost(error) => tracing::warn!(
                "the TPM does not know the saved AK any more: it was cleared or replaced; the device gets a new AK and \
                 must enrol again"
            ),
            Err(error) => return Err(error.into()),
        }
    }
    create(context, ek)
}

/// The loaded AK's name.
pub(super) fn name(context: &mut Context, ak: KeyHandle) -> Result<AkName, Failure> {
    let name = context.tr_get_name(ak.into())?;
    Ok(AkName::try_from(name.value()).map_err(|_| TpmError::Malformed("name of the AK"))?)
}

/// TPM2B_PUBLIC: the marshalled public area with its size in front.
pub(super) fn sized(public: &Public) -> Result<Vec<u8>, Failure> {
    let area = public.marshall()?;
    let size = u16::try_from(area.len()).map_err(|_| TpmError::Malformed("public area"))?;
    Ok([&size.to_be_bytes()[..], &area].concat())
}

fn create(context: &mut Context, ek: KeyHandle) -> Result<(KeyHandle, SavedAk), Failure> {
    let created = ak::create_ak_2(
        context,
        ek,
        HashingAlgorithm::Sha256,
        AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        // RSAPSS is refused by Keylime's verifier, ECDSA by its sessions.
        SignatureSchemeAlgorithm::RsaSsa,
        None,
        ExemptFromLockout,
    )?;
    let saved =
        SavedAk { public: sized(&created.out_public)?, private: created.out_private.value().to_vec() };
    let handle = ak::load_ak(context, ek, None, created.out_private, created.out_public)?;
    Ok((handle, saved))
}

fn is_lost(error: Error) -> bool {
    let Error::Tss2Error(code @ Tss2ResponseCode::FormatOne(_)) = error else { return false };
    matches!(code.kind(), Some(Tss2ResponseCodeKind::Integrity | Tss2ResponseCodeKind::Size))
}

struct ExemptFromLockout;

impl KeyCustomization for ExemptFromLockout {
    fn attributes(&self, attributes: ObjectAttributesBuilder) -> ObjectAttributesBuilder {
        attributes.with_no_da(true)
    }
}
