//! TPM2B_PUBLIC: the public area of an EK or AK.

use super::reader::{Malformed, Reader};
use super::{ALG_NULL, ALG_RSASSA, ALG_SHA256};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// TPM_ALG_RSA as a key type
const TYPE_RSA: u16 = 0x0001;
/// TPM_ALG_ECC as a key type
const TYPE_ECC: u16 = 0x0023;
/// TPM_ALG_RSAES, the one RSA scheme without a hash
const ALG_RSAES: u16 = 0x0015;
/// TPM_ALG_ECDAA, the one ECC scheme with a counter
const ALG_ECDAA: u16 = 0x001A;
/// An exponent of 0 stands for this one
const DEFAULT_EXPONENT: u32 = 65537;
/// Largest modulus, bytes: RSA-4096
const MAX_MODULUS: usize = 512;
/// Largest coordinate, bytes: P-521
const MAX_COORDINATE: usize = 66;

/// TPMA_OBJECT bits an AK must have: only then is all it signs of the TPM's own making
const AK_ATTRIBUTES: [(u32, &str); 5] = [
    (1 << 1, "fixedTPM"),
    (1 << 4, "fixedParent"),
    (1 << 5, "sensitiveDataOrigin"),
    (1 << 16, "restricted"),
    (1 << 18, "sign"),
];
/// TPMA_OBJECT.decrypt
const DECRYPT: u32 = 1 << 17;

/// A public area
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    /// objectAttributes
    pub attributes: u32,
    /// nameAlg
    pub name_alg: u16,
    /// Signing scheme and its hash, where one is fixed
    pub scheme: Option<(u16, u16)>,
    /// The key itself
    pub key: Key,
    /// TPMT_PUBLIC as it was read: what a name is the hash of
    area: Vec<u8>,
}

/// The public key within a public area
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// RSA
    Rsa {
        /// Big endian
        modulus: Vec<u8>,
        /// Never 0
        exponent: u32,
        /// keyBits
        bits: u16,
    },
    /// Elliptic curve
    Ecc {
        /// TPM_ECC_CURVE
        curve: u16,
        /// Big endian, may lack leading zeros
        x: Vec<u8>,
        /// Big endian, may lack leading zeros
        y: Vec<u8>,
    },
}

/// An AK as Keylime's push mode needs it: RSA, RSASSA with SHA-256, restricted to what its TPM makes
///
/// Says what the key is, not whose: that it lives in the TPM of a known EK is proven by activation alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AkPublic {
    modulus: Vec<u8>,
    exponent: u32,
    bits: u16,
    name: Vec<u8>,
    tpm2b: Vec<u8>,
}

/// Why a key cannot be an AK
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum AkUnfit {
    /// Not a TPM2B_PUBLIC
    #[error("the AK is malformed: it {0}")]
    Malformed(#[from] Malformed),
    /// Lacks an attribute: it could sign what no TPM ever saw
    #[error(
        "the AK lacks the attribute {0}: it could sign what its TPM did not make; create it as a restricted signing key"
    )]
    Attribute(&'static str),
    /// Can decrypt too
    #[error("the AK can decrypt; create it as a restricted signing key")]
    Decrypts,
    /// Keylime's push mode takes nothing else
    #[error(
        "the AK must be RSA of at least 2048 bits with scheme RSASSA and SHA-256: Keylime's push mode takes no other"
    )]
    Algorithm,
}

impl Public {
    /// Reads a TPM2B_PUBLIC
    ///
    /// # Errors
    /// When it is not exactly one, or its key is neither RSA nor ECC.
    pub fn parse(tpm2b: &[u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::new(tpm2b);
        let area = outer.sized("publicArea")?;
        outer.end()?;
        let mut reader = Reader::new(area);
        let kind = reader.u16("type")?;
        let name_alg = reader.u16("nameAlg")?;
        let attributes = reader.u32("objectAttributes")?;
        reader.sized("authPolicy")?;
        skip_symmetric(&mut reader)?;
        let (scheme, key) = match kind {
            TYPE_RSA => parse_rsa(&mut reader)?,
            TYPE_ECC => parse_ecc(&mut reader)?,
            _ => return Err(Malformed::Value("type")),
        };
        reader.end()?;
        Ok(Self { attributes, name_alg, scheme, key, area: area.to_vec() })
    }
}

impl AkPublic {
    /// Reads a TPM2B_PUBLIC and checks that it can be an AK
    ///
    /// # Errors
    /// When it cannot, with what is wrong.
    pub fn parse(tpm2b: &[u8]) -> Result<Self, AkUnfit> {
        let public = Public::parse(tpm2b)?;
        if let Some((_, name)) = AK_ATTRIBUTES.iter().find(|(bit, _)| public.attributes & bit == 0) {
            return Err(AkUnfit::Attribute(name));
        }
        if public.attributes & DECRYPT != 0 {
            return Err(AkUnfit::Decrypts);
        }
        let name_and_scheme =
            public.name_alg == ALG_SHA256 && public.scheme == Some((ALG_RSASSA, ALG_SHA256));
        match public.key {
            Key::Rsa { modulus, exponent, bits } if name_and_scheme && bits >= 2048 => {
                let mut name = ALG_SHA256.to_be_bytes().to_vec();
                name.extend_from_slice(&Sha256::digest(&public.area));
                Ok(Self { modulus, exponent, bits, name, tpm2b: tpm2b.to_vec() })
            }
            _ => Err(AkUnfit::Algorithm),
        }
    }

    /// Big endian
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// Never 0
    pub fn exponent(&self) -> u32 {
        self.exponent
    }

    /// Key size in bits
    pub fn bits(&self) -> u16 {
        self.bits
    }

    /// The TPM name: name algorithm and hash of the public area
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// TPM2B_PUBLIC as it was read
    pub fn tpm2b(&self) -> &[u8] {
        &self.tpm2b
    }
}

/// TPMT_SYM_DEF_OBJECT
fn skip_symmetric(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.u16("symmetric")? != ALG_NULL {
        reader.u16("keyBits")?;
        reader.u16("mode")?;
    }
    Ok(())
}

fn parse_rsa(reader: &mut Reader<'_>) -> Result<(Option<(u16, u16)>, Key), Malformed> {
    let scheme = match reader.u16("scheme")? {
        ALG_NULL | ALG_RSAES => None,
        scheme => Some((scheme, reader.u16("hashAlg")?)),
    };
    let bits = reader.u16("keyBits")?;
    let exponent = match reader.u32("exponent")? {
        0 => DEFAULT_EXPONENT,
        exponent => exponent,
    };
    let modulus = reader.sized("unique")?;
    if modulus.len() > MAX_MODULUS || modulus.len() * 8 != usize::from(bits) {
        return Err(Malformed::Value("unique"));
    }
    Ok((scheme, Key::Rsa { modulus: modulus.to_vec(), exponent, bits }))
}

fn parse_ecc(reader: &mut Reader<'_>) -> Result<(Option<(u16, u16)>, Key), Malformed> {
    let scheme = match reader.u16("scheme")? {
        ALG_NULL => None,
        scheme => {
            let hash = reader.u16("hashAlg")?;
            if scheme == ALG_ECDAA {
                reader.u16("count")?;
            }
            Some((scheme, hash))
        }
    };
    let curve = reader.u16("curveID")?;
    if reader.u16("kdf")? != ALG_NULL {
        reader.u16("kdf")?;
    }
    let x = reader.sized("x")?;
    let y = reader.sized("y")?;
    if x.len() > MAX_COORDINATE || y.len() > MAX_COORDINATE {
        return Err(Malformed::Value("unique"));
    }
    Ok((scheme, Key::Ecc { curve, x: x.to_vec(), y: y.to_vec() }))
}
