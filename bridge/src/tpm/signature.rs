//! TPMT_SIGNATURE, of the one kind that Keylime's push mode accepts, and its verification.

use super::attest::push_sized;
use super::public::AkPublic;
use super::reader::{Malformed, Reader};
use super::{ALG_RSASSA, ALG_SHA256};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use thiserror::Error;

/// RSASSA with SHA-256
#[derive(Debug, Clone, Copy)]
pub struct RsaSignature<'a>(&'a [u8]);

/// Why a signature does not count
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum SignatureError {
    /// Not an RSASSA SHA-256 TPMT_SIGNATURE
    #[error("the signature is malformed: it {0}")]
    Malformed(#[from] Malformed),
    /// Made by another key, or over other bytes
    #[error("the signature does not verify under the AK")]
    Mismatch,
}

impl<'a> RsaSignature<'a> {
    /// Reads a TPMT_SIGNATURE
    ///
    /// # Errors
    /// When it is not exactly one, or of another scheme or hash.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u16("sigAlg")? != ALG_RSASSA {
            return Err(Malformed::Value("sigAlg"));
        }
        if reader.u16("hash")? != ALG_SHA256 {
            return Err(Malformed::Value("hash"));
        }
        let signature = reader.sized("sig")?;
        reader.end()?;
        Ok(Self(signature))
    }

    /// The number alone, as a brief quote carries it
    pub fn of_number(number: &'a [u8]) -> Self {
        Self(number)
    }

    /// The TPMT_SIGNATURE
    ///
    /// # Errors
    /// When the number is longer than a TPM2B can hold.
    pub fn marshal(&self) -> Result<Vec<u8>, Malformed> {
        let mut signature = Vec::with_capacity(6 + self.0.len());
        signature.extend_from_slice(&ALG_RSASSA.to_be_bytes());
        signature.extend_from_slice(&ALG_SHA256.to_be_bytes());
        push_sized(&mut signature, self.0, "sig")?;
        Ok(signature)
    }

    /// Whether the key made this signature over `message`
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`] when not.
    pub fn verify(&self, ak: &AkPublic, message: &[u8]) -> Result<(), SignatureError> {
        let exponent = ak.exponent().to_be_bytes();
        let leading = exponent.iter().take_while(|byte| **byte == 0).count();
        let key = RsaPublicKeyComponents { n: ak.modulus(), e: exponent.get(leading..).unwrap_or_default() };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, message, self.0).map_err(|_| SignatureError::Mismatch)
    }
}
