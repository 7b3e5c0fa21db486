//! PCR values of the sha256 bank as the blob in which Keylime wants them.

use crate::tpm::ALG_SHA256;
use keylime_mqtt_schemas::messages::PcrValues;

/// Digests in one TPML_DIGEST
const DIGESTS_PER_LIST: usize = 8;
/// Bytes of a TPM2B_DIGEST as it lies in memory: a size and room for the largest hash
const DIGEST_ROOM: usize = 64;
/// Entries of TPML_PCR_SELECTION as it lies in memory
const SELECTIONS: usize = 16;

/// The values as `tpm2_quote -o` writes them and Keylime's `tpm_util` reads them
///
/// The image of two C structures on a little endian machine: TPML_PCR_SELECTION with room for 16 banks (132 bytes), then a count (u32) of
/// TPML_DIGESTs, each with a count (u32) and room for 8 digests of 2 + 64 bytes (532 bytes).
pub fn pcr_blob(values: &PcrValues) -> Vec<u8> {
    let lists = values.values().len().div_ceil(DIGESTS_PER_LIST);
    let mut blob =
        Vec::with_capacity(4 + SELECTIONS * 8 + 4 + lists * (4 + DIGESTS_PER_LIST * (2 + DIGEST_ROOM)));
    blob.extend_from_slice(&1u32.to_le_bytes());
    blob.extend_from_slice(&ALG_SHA256.to_le_bytes());
    blob.push(3);
    blob.extend_from_slice(&u32::from(values.mask()).to_le_bytes());
    // one byte that aligns the selection to the next, and 15 unused selections
    blob.resize(4 + SELECTIONS * 8, 0);
    blob.extend_from_slice(&count(lists));
    for list in values.values().chunks(DIGESTS_PER_LIST) {
        blob.extend_from_slice(&count(list.len()));
        for digest in list {
            blob.extend_from_slice(&32u16.to_le_bytes());
            blob.extend_from_slice(digest);
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
    fn the_blob_has_the_sizes_that_keylime_computes_with() {
        for (pcrs, size) in [(1u32, 668), (8, 668), (9, 1200), (16, 1200), (17, 1732)] {
            let mask = ((1 << pcrs) - 1).try_into().unwrap();
            let values = PcrValues::new(mask, vec![[7; 32]; pcrs as usize]).unwrap();
            assert_eq!(pcr_blob(&values).len(), size, "{pcrs} PCRs");
        }
    }
}
