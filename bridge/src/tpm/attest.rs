//! TPMS_ATTEST: what a TPM says when it quotes PCRs or certifies a key.

use super::ALG_SHA256;
use super::reader::{Malformed, Reader};
use keylime_mqtt_schemas::messages::PcrMask;
use keylime_mqtt_schemas::messages::limits::MAX_ATTEST;

/// TPM_GENERATED_VALUE: a restricted key signs no foreign data that starts so
const GENERATED: u32 = 0xFF54_4347;
/// TPM_ST_ATTEST_CERTIFY
const ST_CERTIFY: u16 = 0x8017;
/// TPM_ST_ATTEST_QUOTE
const ST_QUOTE: u16 = 0x8018;
/// PCR banks in one selection; a TPM has a handful
const MAX_SELECTIONS: u32 = 8;
/// Bytes of one selection's bitmap: 24 PCRs on a PC client TPM, 32 at most for a mask of 32 bits
const MAX_BITMAP: usize = 4;

/// A TPMS_ATTEST of TPM2_Quote or TPM2_Certify
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    /// qualifiedSigner: the signing key's name, qualified by its parents'
    pub qualified_signer: Vec<u8>,
    /// extraData: the qualifying data given by the caller
    pub extra_data: Vec<u8>,
    /// clockInfo
    pub clock: ClockInfo,
    /// firmwareVersion
    pub firmware_version: u64,
    /// What is attested
    pub attested: Attested,
}

/// TPMS_CLOCK_INFO
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds, while the TPM was powered
    pub clock: u64,
    /// TPM resets since the last clear
    pub reset_count: u32,
    /// TPM restarts and resumes since the last reset
    pub restart_count: u32,
    /// Whether no value of `clock` above this one was reported before
    pub safe: bool,
}

/// TPMU_ATTEST, the kinds in use
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attested {
    /// TPM2_Quote
    Quote {
        /// PCRs of the sha256 bank, bit n for PCR n; `None` if another bank is selected as well
        sha256_mask: Option<u32>,
        /// pcrDigest
        pcr_digest: Vec<u8>,
    },
    /// TPM2_Certify
    Certify {
        /// Name of the certified object
        name: Vec<u8>,
    },
}

impl Attest {
    /// Reads a TPMS_ATTEST without a size before it
    ///
    /// # Errors
    /// When it is not exactly one, or attests anything but a quote or a key.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u32("magic")? != GENERATED {
            return Err(Malformed::Value("magic"));
        }
        let kind = reader.u16("type")?;
        let qualified_signer = reader.sized("qualifiedSigner")?.to_vec();
        let extra_data = reader.sized("extraData")?.to_vec();
        let clock = ClockInfo {
            clock: reader.u64("clock")?,
            reset_count: reader.u32("resetCount")?,
            restart_count: reader.u32("restartCount")?,
            safe: match reader.u8("safe")? {
                0 => false,
                1 => true,
                _ => return Err(Malformed::Value("safe")),
            },
        };
        let firmware_version = reader.u64("firmwareVersion")?;
        let attested = match kind {
            ST_QUOTE => Attested::Quote {
                sha256_mask: parse_selection(&mut reader)?,
                pcr_digest: reader.sized("pcrDigest")?.to_vec(),
            },
            ST_CERTIFY => {
                let name = reader.sized("name")?.to_vec();
                reader.sized("qualifiedName")?;
                Attested::Certify { name }
            }
            _ => return Err(Malformed::Value("type")),
        };
        reader.end()?;
        Ok(Self { qualified_signer, extra_data, clock, firmware_version, attested })
    }
}

/// A quote as a TPM marshals it: one selection, sha256, 24 PCRs
///
/// Made from claims, it is a claim; only a signature over it says that a TPM made the same.
///
/// # Errors
/// When the signer's name or the nonce is longer than a TPM2B can hold.
pub fn marshal_quote(
    qualified_signer: &[u8],
    nonce: &[u8],
    clock: ClockInfo,
    firmware_version: u64,
    pcrs: PcrMask,
    pcr_digest: &[u8],
) -> Result<Vec<u8>, Malformed> {
    let mut attest = Vec::with_capacity(MAX_ATTEST);
    attest.extend_from_slice(&GENERATED.to_be_bytes());
    attest.extend_from_slice(&ST_QUOTE.to_be_bytes());
    push_sized(&mut attest, qualified_signer, "qualifiedSigner")?;
    push_sized(&mut attest, nonce, "extraData")?;
    attest.extend_from_slice(&clock.clock.to_be_bytes());
    attest.extend_from_slice(&clock.reset_count.to_be_bytes());
    attest.extend_from_slice(&clock.restart_count.to_be_bytes());
    attest.push(clock.safe.into());
    attest.extend_from_slice(&firmware_version.to_be_bytes());
    attest.extend_from_slice(&1u32.to_be_bytes());
    attest.extend_from_slice(&ALG_SHA256.to_be_bytes());
    let [first, second, third, _] = u32::from(pcrs).to_le_bytes();
    attest.extend_from_slice(&[3, first, second, third]);
    push_sized(&mut attest, pcr_digest, "pcrDigest")?;
    Ok(attest)
}

/// A TPM2B
pub(super) fn push_sized(out: &mut Vec<u8>, bytes: &[u8], field: &'static str) -> Result<(), Malformed> {
    let len = u16::try_from(bytes.len()).map_err(|_| Malformed::Value(field))?;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// TPML_PCR_SELECTION; `None` when PCRs of another bank than sha256, or of sha256 twice, are selected
fn parse_selection(reader: &mut Reader<'_>) -> Result<Option<u32>, Malformed> {
    let count = reader.u32("pcrSelect")?;
    if count > MAX_SELECTIONS {
        return Err(Malformed::Value("pcrSelect"));
    }
    let mut sha256_mask = Some(0);
    for _ in 0..count {
        let bank = reader.u16("pcrSelect")?;
        let len = usize::from(reader.u8("sizeofSelect")?);
        if len > MAX_BITMAP {
            return Err(Malformed::Value("sizeofSelect"));
        }
        let bitmap = reader.take(len, "pcrSelect")?;
        let mask = bitmap.iter().rev().fold(0u32, |mask, byte| (mask << 8) | u32::from(*byte));
        sha256_mask = match (bank, sha256_mask) {
            (_, seen) if mask == 0 => seen,
            (ALG_SHA256, Some(0)) => Some(mask),
            _ => None,
        };
    }
    Ok(sha256_mask)
}
