//! PCR values of the SHA-256 bank: on the wire, as a TPM hashes them, and by the tag that says which ones are held.

use serde::{Deserialize, Serialize};

use super::bytes::{Bounded, Digest, PcrMask, PcrTag};
use super::limits::MAX_PCR_VALUES;

/// The PCR that IMA extends (CONFIG_IMA_MEASURE_PCR_IDX).
pub const IMA_PCR: u8 = 10;
/// Bytes of one value.
const VALUE: usize = 32;

/// Values of some PCRs, 32 bytes each, lowest PCR first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct PcrValues {
    mask: PcrMask,
    values: Vec<[u8; VALUE]>,
}

/// As they travel.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    mask: PcrMask,
    values: Bounded<MAX_PCR_VALUES>,
}

/// Not one value per PCR of the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is not one value of 32 bytes for each PCR of the mask")]
pub struct ValuesDiffer;

impl PcrValues {
    /// The values of the PCRs in `mask`, lowest first.
    pub fn new(mask: PcrMask, values: Vec<[u8; VALUE]>) -> Result<Self, ValuesDiffer> {
        if mask.count() == values.len() { Ok(Self { mask, values }) } else { Err(ValuesDiffer) }
    }

    /// The PCRs there are values of.
    pub fn mask(&self) -> PcrMask {
        self.mask
    }

    /// The values, lowest PCR first.
    pub fn values(&self) -> &[[u8; VALUE]] {
        &self.values
    }

    /// The value of one PCR.
    pub fn value(&self, pcr: u8) -> Option<&[u8; VALUE]> {
        self.iter().find_map(|(number, value)| (number == pcr).then_some(value))
    }

    /// PCR and value, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8; VALUE])> {
        self.mask.iter().zip(&self.values)
    }

    /// Those of the PCRs in `mask`.
    #[must_use]
    pub fn only(&self, mask: PcrMask) -> Self {
        Self::collected(self.iter().filter(|(pcr, _)| mask.contains(*pcr)).map(|(pcr, value)| (pcr, *value)))
    }

    /// These, and of PCRs in both the values of `newer`.
    #[must_use]
    pub fn overlaid(&self, newer: &Self) -> Self {
        let all = (0..24).filter_map(|pcr| Some((pcr, *newer.value(pcr).or_else(|| self.value(pcr))?)));
        Self::collected(all)
    }

    /// Those that `older` lacks or has otherwise.
    #[must_use]
    pub fn changed_since(&self, older: &Self) -> Self {
        let changed = self.iter().filter(|(pcr, value)| older.value(*pcr) != Some(value));
        Self::collected(changed.map(|(pcr, value)| (pcr, *value)))
    }

    /// What a TPM quotes of them: SHA-256 over all values. TPM 2.0 Part 1, 17.5.
    pub fn digest(&self) -> Digest {
        Digest::of(&[self.values.as_flattened()])
    }

    /// Which values these are.
    pub fn tag(&self) -> PcrTag {
        let mask = u32::from(self.mask).to_be_bytes();
        PcrTag::from(Digest::of(&[&mask, self.values.as_flattened()]).first())
    }

    fn collected(values: impl Iterator<Item = (u8, [u8; VALUE])>) -> Self {
        let (mut bits, mut kept) = (0_u32, Vec::new());
        for (pcr, value) in values {
            bits |= 1 << pcr;
            kept.push(value);
        }
        Self { mask: PcrMask::try_from(bits).unwrap_or_default(), values: kept }
    }
}

impl TryFrom<Fields> for PcrValues {
    type Error = ValuesDiffer;

    fn try_from(fields: Fields) -> Result<Self, ValuesDiffer> {
        let (values, rest) = fields.values.as_slice().as_chunks::<VALUE>();
        if rest.is_empty() { Self::new(fields.mask, values.to_vec()) } else { Err(ValuesDiffer) }
    }
}

impl From<PcrValues> for Fields {
    fn from(pcrs: PcrValues) -> Self {
        // 24 PCRs at most, so it always fits
        let values = Bounded::try_from(pcrs.values.concat()).unwrap_or_default();
        Self { mask: pcrs.mask, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(u8, u8)]) -> PcrValues {
        PcrValues::collected(pairs.iter().map(|(pcr, byte)| (*pcr, [*byte; 32])))
    }

    #[test]
    fn values_are_overlaid_restricted_and_compared_by_pcr() {
        let older = values(&[(0, 1), (7, 2), (10, 3)]);
        let newer = values(&[(0, 1), (7, 9), (10, 3)]);
        let changed = newer.changed_since(&older);
        assert_eq!(changed, values(&[(7, 9)]));
        assert_eq!(older.overlaid(&changed), newer);
        assert_eq!(newer.only(newer.mask().without(IMA_PCR)), values(&[(0, 1), (7, 9)]));
        assert_ne!(older.tag(), newer.tag());
        assert_ne!(values(&[(1, 0)]).tag(), values(&[(2, 0)]).tag());
        assert_eq!(newer.value(7), Some(&[9; 32]));
        assert_eq!(newer.value(1), None);
    }

    #[test]
    fn a_mask_and_values_that_differ_are_refused() {
        let mask = PcrMask::try_from(3).unwrap();
        assert_eq!(PcrValues::new(mask, vec![[0; 32]]), Err(ValuesDiffer));
        let odd = Fields { mask, values: vec![0; 63].try_into().unwrap() };
        assert!(PcrValues::try_from(odd).is_err());
    }
}
