//! Who the device is: EK, its certificate, its hash as Keylime computes it, and the AK.

use pkcs1::der::asn1::{BitStringRef, UintRef};
use pkcs1::der::pem::LineEnding;
use pkcs1::der::{Encode, EncodePem};
use sha2::{Digest, Sha256};
use tss_esapi::structures::Public;
use x509_cert::der::Decode;

use super::ak::{self, AkName, SavedAk};
use super::error::{Failure, TpmError};

/// The public exponent that a TPM writes as 0 (TPM 2.0 Part 2, 12.2.3.5).
const DEFAULT_EXPONENT: u32 = 65537;

/// rsaEncryption (RFC 8017, A.1).
const RSA_ENCRYPTION: spki::ObjectIdentifier = spki::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Who the device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// TPM2B_PUBLIC.
    pub ek_public: Vec<u8>,
    /// Lower case hex SHA-256 of the EK's public key in PEM: Keylime's `hash_ek`.
    pub ek_hash: String,
    /// The leaf, DER. `None`: the TPM has none.
    pub ek_certificate: Option<Vec<u8>>,
    /// TPM2B_PUBLIC.
    pub ak_public: Vec<u8>,
    /// The AK's TPM name.
    pub ak_name: AkName,
    /// To be kept, so that the same AK is loaded next time.
    pub saved_ak: SavedAk,
}

impl Identity {
    pub(super) fn new(
        ek: &Public,
        ek_certificate: Option<Vec<u8>>,
        ak_name: AkName,
        saved_ak: SavedAk,
    ) -> Result<Self, Failure> {
        Ok(Self {
            ek_public: ak::sized(ek)?,
            ek_hash: hash_ek(ek)?,
            ek_certificate,
            ak_public: saved_ak.public.clone(),
            ak_name,
            saved_ak,
        })
    }
}

/// Issuer of an EK certificate in RFC 4514's form; `None` when it is no certificate.
pub fn ek_certificate_issuer(der: &[u8]) -> Option<String> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    Some(certificate.tbs_certificate.issuer.to_string())
}

/// Hex SHA-256 of the PEM text that OpenSSL would write (keylime/rust-keylime, `hash_ek.rs`).
pub(super) fn hash_ek(ek: &Public) -> Result<String, TpmError> {
    let Public::Rsa { unique, parameters, .. } = ek else { return Err(MALFORMED) };
    let exponent = match parameters.exponent().value() {
        0 => DEFAULT_EXPONENT,
        value => value,
    };
    let pem = public_key_pem(unique.value(), exponent).map_err(|_| MALFORMED)?;
    Ok(hex::encode(Sha256::digest(pem)))
}

const MALFORMED: TpmError = TpmError::Malformed("EK");

fn public_key_pem(modulus: &[u8], exponent: u32) -> pkcs1::der::Result<String> {
    let exponent = exponent.to_be_bytes();
    let key =
        pkcs1::RsaPublicKey { modulus: UintRef::new(modulus)?, public_exponent: UintRef::new(&exponent)? }
            .to_der()?;
    spki::SubjectPublicKeyInfoRef {
        algorithm: spki::AlgorithmIdentifierRef {
            oid: RSA_ENCRYPTION,
            parameters: Some(pkcs1::der::asn1::AnyRef::NULL),
        },
        subject_public_key: BitStringRef::from_bytes(&key)?,
    }
    .to_pem(LineEnding::LF)
}
