//! The endorsement key: found at its persistent handle or made from the TCG template, never kept loaded.
//!
//! TCG EK Credential Profile for TPM 2.0: template L-1 (RSA 2048) in B.3.3, handles and NV indices in 2.2.1.4 and 5.

use tss_esapi::Context;
use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, DefaultKey, ek};
use tss_esapi::constants::tss::{TPM2_NV_INDEX_FIRST, TPM2_PERSISTENT_FIRST};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::Public;

use super::error::{Failure, TpmError};
use super::space;

/// Where provisioning tools put the RSA-2048 EK.
const RSA_EK: u32 = 0x8101_0001;
/// NV index of the RSA-2048 EK certificate.
const RSA_EK_CERTIFICATE: u32 = 0x01C0_0002;

/// An EK that is loaded for the moment.
pub(super) struct LoadedEk {
    pub(super) handle: KeyHandle,
    pub(super) public: Public,
    transient: bool,
}

impl LoadedEk {
    /// Frees the EK's slot.
    pub(super) fn release(self, context: &mut Context) -> Result<(), Failure> {
        if self.transient {
            context.flush_context(self.handle.into())?;
        } else {
            context.tr_close(&mut self.handle.into())?;
        }
        Ok(())
    }
}

/// Loads the EK: the one configured, else the one at the usual handle, else one made from the template, which is the
/// same key every time.
pub(super) fn load(context: &mut Context, configured: Option<u32>) -> Result<LoadedEk, Failure> {
    let wanted = configured.unwrap_or(RSA_EK);
    let present = space::handles(context, wanted.max(TPM2_PERSISTENT_FIRST))?;
    if present.first().is_some_and(|handle| u32::from(*handle) == wanted) {
        let persistent = TpmHandle::Persistent(PersistentTpmHandle::new(wanted)?);
        let handle = KeyHandle::from(context.tr_from_tpm_public(persistent)?);
        let (public, _, _) = context.read_public(handle)?;
        if !matches!(public, Public::Rsa { .. }) || !is_from_template(&public) {
            return Err(TpmError::ForeignEk { handle: wanted }.into());
        }
        return Ok(LoadedEk { handle, public, transient: false });
    }
    if configured.is_some() {
        return Err(TpmError::NoEk { handle: wanted }.into());
    }
    let handle =
        ek::create_ek_object_2(context, AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048), DefaultKey)?;
    let (public, _, _) = context.read_public(handle)?;
    Ok(LoadedEk { handle, public, transient: true })
}

/// The EK certificate from NV as DER, without padding. Many TPMs have none: `None`.
pub(super) fn certificate(context: &mut Context) -> Result<Option<Vec<u8>>, Failure> {
    // Asked for by list: reading an index that is not there would make the software stack print errors.
    let present = space::handles(context, RSA_EK_CERTIFICATE.max(TPM2_NV_INDEX_FIRST))?;
    if present.first().is_none_or(|handle| u32::from(*handle) != RSA_EK_CERTIFICATE) {
        return Ok(None);
    }
    let stored = ek::retrieve_ek_pubcert(context, AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048))?;
    let Some(certificate) = first_der_value(&stored) else {
        tracing::warn!(
            index = format_args!("{RSA_EK_CERTIFICATE:#010x}"),
            "what the TPM keeps as EK certificate is not a certificate; going on without"
        );
        return Ok(None);
    };
    Ok(Some(certificate.to_vec()))
}

/// Whether a key was made by the TCG's RSA-2048 or ECC-P256 template: their policy is the mark.
pub(super) fn is_from_template(public: &Public) -> bool {
    public.auth_policy().value() == POLICY_A_SHA256
        && public.object_attributes().restricted()
        && public.object_attributes().decrypt()
}

/// PolicyA of the EK Credential Profile, B.6.2: PolicySecret of the endorsement hierarchy.
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD,
    0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];

/// Manufacturers pad the NV index; the certificate is the first DER SEQUENCE in it.
fn first_der_value(stored: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const TWO_LENGTH_BYTES: u8 = 0x82;
    // A certificate is longer than 255 and shorter than 65 536 bytes, so its length takes two bytes (X.690, 8.1.3).
    let [SEQUENCE, TWO_LENGTH_BYTES, high, low, ..] = stored else { return None };
    stored.get(..4 + usize::from(u16::from_be_bytes([*high, *low])))
}

#[cfg(test)]
mod tests {
    use super::first_der_value;

    #[test]
    fn padding_after_the_certificate_is_left_out() {
        let mut stored = vec![0x30, 0x82, 0x01, 0x00];
        stored.resize(4 + 256, 7);
        let certificate = stored.clone();
        stored.resize(2048, 0xFF);
        assert_eq!(first_der_value(&stored), Some(certificate.as_slice()));
    }

    #[test]
    fn what_is_not_a_whole_certificate_is_none() {
        for stored in [&[][..], &[0x30, 0x82, 0x01], &[0xFF; 300], &[0x30, 0x82, 0x01, 0x00, 1, 2, 3]] {
            assert_eq!(first_der_value(stored), None);
        }
    }
}
