//! PCR values of the sha256 bank: their digest as a TPM quotes it, and the blob in which Keylime wants them.

use super::Digest;
use crate::tpm::ALG_SHA256;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// PCRs that a quote can select
const PCR_COUNT: u8 = 24;
/// Digests in one TPML_DIGEST
const DIGESTS_PER_LIST: usize = 8;
/// Bytes of a TPM2B_DIGEST as it lies in memory: a size and room for the largest hash
const DIGEST_ROOM: usize = 64;
/// Entries of TPML_PCR_SELECTION as it lies in memory
const SELECTIONS: usize = 16;

/// Values of selected PCRs, sha256 bank
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PcrValues(BTreeMap<u8, Digest>);

impl PcrValues {
    /// Takes the values of the PCRs in `mask`, lowest first
    ///
    /// `None` when there are not exactly as many values as PCRs, or PCRs that no TPM has.
    pub fn new(mask: u32, values: &[Digest]) -> Option<Self> {
        let pcrs: Vec<u8> = (0..PCR_COUNT).filter(|pcr| mask & (1 << pcr) != 0).collect();
        if mask >> PCR_COUNT != 0 || pcrs.len() != values.len() {
            return None;
        }
        Some(Self(pcrs.into_iter().zip(values.iter().copied()).collect()))
    }

    /// Bit n for PCR n
    pub fn mask(&self) -> u32 {
        self.0.keys().fold(0, |mask, pcr| mask | (1 << pcr))
    }

    /// Value of a PCR, if it is among these
    pub fn value(&self, pcr: u8) -> Option<&Digest> {
        self.0.get(&pcr)
    }

    /// All values, lowest PCR first
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Digest)> {
        self.0.iter().map(|(pcr, value)| (*pcr, value))
    }

    /// What TPM2_Quote puts into pcrDigest: the hash over the values in ascending order (TPM 2.0 Part 1, PCR operations)
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for value in self.0.values() {
            hash.update(value);
        }
        hash.finalize().into()
    }
}

/// The values as `tpm2_quote -o` writes them and Keylime's `tpm_util` reads them
///
/// The image of two C structures on a little endian machine: TPML_PCR_SELECTION with room for 16 banks (132 bytes), then a count (u32) of
/// TPML_DIGESTs, each with a count (u32) and room for 8 digests of 2 + 64 bytes (532 bytes).
pub fn pcr_blob(values: &PcrValues) -> Vec<u8> {
    let lists = values.0.len().div_ceil(DIGESTS_PER_LIST);
    let mut blob =
        Vec::with_capacity(4 + SELECTIONS * 8 + 4 + lists * (4 + DIGESTS_PER_LIST * (2 + DIGEST_ROOM)));
    blob.extend_from_slice(&1u32.to_le_bytes());
    blob.extend_from_slice(&ALG_SHA256.to_le_bytes());
    blob.push(3);
    blob.extend_from_slice(&values.mask().to_le_bytes());
    // one byte that aligns the selection to the next, and 15 unused selections
    blob.resize(4 + SELECTIONS * 8, 0);
    blob.extend_from_slice(&count(lists));
    let all: Vec<&Digest> = values.0.values().collect();
    for list in all.chunks(DIGESTS_PER_LIST) {
        blob.extend_from_slice(&count(list.len()));
        for digest in list {
            blob.extend_from_slice(&32u16.to_le_bytes());
            blob.extend_from_slice(*digest);
            blob.resize(blob.len() + DIGEST_ROOM - digest.len(), 0);
        }
        blob.resize(blob.len() + (DIGESTS_PER_LIST - list.len()) * (2 + DIGEST_ROOM), 0);
    }
    blob
}

fn count(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_mask_must_agree() {
        assert!(PcrValues::new(0b11, &[[0; 32]]).is_none());
        assert!(PcrValues::new(1 << 24, &[[0; 32]]).is_none());
        let values = PcrValues::new(0x0000_8401, &[[1; 32], [2; 32], [3; 32]]).unwrap();
        assert_eq!(values.mask(), 0x8401);
        assert_eq!(values.value(10), Some(&[2; 32]));
    }

    #[test]
    fn the_blob_has_the_sizes_that_keylime_computes_with() {
        for (pcrs, size) in [(1u32, 668), (8, 668), (9, 1200), (16, 1200), (17, 1732)] {
            let values = PcrValues::new((1 << pcrs) - 1, &vec![[7; 32]; pcrs as usize]).unwrap();
            assert_eq!(pcr_blob(&values).len(), size, "{pcrs} PCRs");
        }
    }
}
