//! The EK's public key in the form that certificates carry and Keylime hashes.
//!
//! Source: rust-keylime `keylime/src/hash_ek.rs`: hex of SHA-256 over the PEM, as OpenSSL writes it, of the SubjectPublicKeyInfo.

use crate::tpm::{Key, Public};
use pkcs1::UintRef;
use sha2::{Digest as _, Sha256};
use spki::der::asn1::{AnyRef, BitString, Null, ObjectIdentifier};
use spki::der::pem::LineEnding;
use spki::der::{Encode as _, EncodePem as _};
use spki::{AlgorithmIdentifier, SubjectPublicKeyInfo};
use std::fmt;
use thiserror::Error;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// TPM_ECC_CURVE, the curve's name in X.509, bytes of a coordinate
const CURVES: [(u16, ObjectIdentifier, usize); 3] = [
    (0x0003, ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"), 32),
    (0x0004, ObjectIdentifier::new_unwrap("1.3.132.0.34"), 48),
    (0x0005, ObjectIdentifier::new_unwrap("1.3.132.0.35"), 66),
];
/// Hex digits of a hash
const HASH_LEN: usize = 64;

/// Hash of an EK as Keylime computes it, which is also a device's default id: 64 lowercase hex digits
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EkHash(String);

/// The EK is not one
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the EK is not a TPM2B_PUBLIC of an RSA or NIST curve key")]
pub struct EkPublicError;

impl EkHash {
    /// Reads a hash as an operator writes it, in either case
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == HASH_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| Self(text.to_ascii_lowercase()))
    }

    /// 64 lowercase hex digits
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hash of the EK in a TPM2B_PUBLIC
///
/// # Errors
/// When it holds no RSA or NIST curve key.
pub fn ek_hash(ek_public: &[u8]) -> Result<EkHash, EkPublicError> {
    ek_hash_and_spki(ek_public).map(|(hash, _)| hash)
}

/// Hash and SubjectPublicKeyInfo (DER)
pub(super) fn ek_hash_and_spki(ek_public: &[u8]) -> Result<(EkHash, Vec<u8>), EkPublicError> {
    let public = Public::parse(ek_public).map_err(|_| EkPublicError)?;
    encode(&public.key).ok_or(EkPublicError)
}

fn encode(key: &Key) -> Option<(EkHash, Vec<u8>)> {
    let null = Null;
    let (oid, parameters, bits) = match key {
        Key::Rsa { modulus, exponent, .. } => {
            let exponent = exponent.to_be_bytes();
            let key = pkcs1::RsaPublicKey {
                modulus: UintRef::new(modulus).ok()?,
                public_exponent: UintRef::new(&exponent).ok()?,
            };
            (RSA_ENCRYPTION, AnyRef::from(null), key.to_der().ok()?)
        }
        Key::Ecc { curve, x, y } => {
            let (_, oid, len) = CURVES.iter().find(|(id, ..)| id == curve)?;
            let mut point = vec![4];
            push_padded(&mut point, x, *len)?;
            push_padded(&mut point, y, *len)?;
            (EC_PUBLIC_KEY, AnyRef::from(oid), point)
        }
    };
    let spki = SubjectPublicKeyInfo {
        algorithm: AlgorithmIdentifier { oid, parameters: Some(parameters) },
        subject_public_key: BitString::from_bytes(&bits).ok()?,
    };
    let pem = spki.to_pem(LineEnding::LF).ok()?;
    Some((EkHash(hex::encode(Sha256::digest(pem))), spki.to_der().ok()?))
}

fn push_padded(point: &mut Vec<u8>, coordinate: &[u8], len: usize) -> Option<()> {
    let padding = len.checked_sub(coordinate.len())?;
    point.resize(point.len() + padding, 0);
    point.extend_from_slice(coordinate);
    Some(())
}
