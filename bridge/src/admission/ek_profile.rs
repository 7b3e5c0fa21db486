//! Is this certificate one of an EK? A maker's CA may issue others too, whose keys no TPM guards.
//!
//! Source: TCG EK Credential Profile for TPM 2.0, 3.2: the subject alternative name holds a directory name of the TPM's
//! manufacturer, model and version; key usage is keyEncipherment for RSA and keyAgreement for ECC; the extended key usage is
//! tcg-kp-EKCertificate, where there is one. Makers leave out one or the other, so either the name or the purpose will do.

use super::x509::Certificate;
use spki::der;
use spki::der::asn1::ObjectIdentifier;

/// tcg-kp-EKCertificate
pub(super) const EK_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// The encoding of tcg-at-tpmManufacturer, 2.23.133.2.1, in a name
const TPM_MANUFACTURER: &[u8] = &[0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x01];
/// keyEncipherment, dataEncipherment, keyAgreement (RFC 5280, 4.2.1.3, bits 2 to 4)
const ENCRYPTS: u8 = 0x80 >> 2 | 0x80 >> 3 | 0x80 >> 4;

/// What keeps a certificate from being one of an EK; nothing when it is one
pub(super) fn unlike_an_ek(certificate: &Certificate<'_>) -> Option<&'static str> {
    judge(certificate).unwrap_or(Some("the EK certificate has an extension that cannot be read"))
}

fn judge(certificate: &Certificate<'_>) -> der::Result<Option<&'static str>> {
    let extensions = &certificate.extensions;
    if extensions.unknown_critical.is_some() {
        return Ok(Some("the EK certificate has a critical extension that is not known here"));
    }
    if extensions.basic_constraints()?.is_ca {
        return Ok(Some("the EK certificate is one of a CA"));
    }
    if extensions.key_usage()?.is_some_and(|usage| usage & ENCRYPTS == 0) {
        return Ok(Some("the certificate is of a key that signs, not of an EK"));
    }
    let named = extensions.alternative_name.is_some_and(names_a_tpm);
    let for_eks = match extensions.extended_key_usage()? {
        Some(purposes) => purposes.contains(&EK_CERTIFICATE),
        None => named,
    };
    Ok((!for_eks).then_some("the certificate says neither that it is of an EK nor that it is of a TPM"))
}

/// The attribute's own encoding cannot be part of another's by chance: a maker signed it
fn names_a_tpm(names: &[u8]) -> bool {
    names.windows(TPM_MANUFACTURER.len()).any(|window| window == TPM_MANUFACTURER)
}
