//! Does a UEFI log lead to the quoted PCRs?
//!
//! Source: TCG PC Client Platform Firmware Profile, "Event Logging" (crypto agile log): a TCG_PCClientPCREvent that carries the spec id and the hash
//! sizes, then TCG_PCR_EVENT2 until the end.

use super::Digest;
use crate::tpm::ALG_SHA256;
use keylime_mqtt_schemas::messages::PcrValues;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Signature of the first event of a crypto agile log
const SPEC_ID: &[u8] = b"Spec ID Event03\0";
/// Tells from which locality the TPM was started
const STARTUP_LOCALITY: &[u8] = b"StartupLocality\0";
/// EV_NO_ACTION: information, not extended
const EV_NO_ACTION: u32 = 3;
/// SHA-1 digest in the first event
const SHA1_LEN: usize = 20;
/// Bytes of the spec id structure before the list of algorithms
const SPEC_ID_FIXED: usize = 24;
/// Hash algorithms in one log; the TCG registers fewer
const MAX_ALGORITHMS: u32 = 16;
/// PCRs whose whole content the firmware logs: a quote of them must match even where the log is silent
const FIRMWARE_PCRS: u32 = 0xFF;
/// PCRs of a bank
const PCR_COUNT: u8 = 24;

/// What following a UEFI log came to. No verdict: a tampered device and a tampered message look the same here
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UefiReplay {
    /// All quoted PCRs that the log speaks of are as it says
    Explained,
    /// An event of the log cannot be read: its number
    Malformed(u64),
    /// The log leads to other values; bit n for PCR n
    Differs(u32),
    /// None of the PCRs that the log speaks of was quoted
    NotQuoted,
}

/// Where a UEFI log leads: computed once per log, compared with every quote
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed(Result<BTreeMap<u8, Digest>, u64>);

impl Replayed {
    /// Follows a log to its end
    pub fn of(log: &[u8]) -> Self {
        Self(follow(log))
    }

    /// Compares where the log leads with quoted values: of PCRs 0 to 7 all, of the others those that the log has events for
    pub fn explains(&self, quoted: &PcrValues) -> UefiReplay {
        let replayed = match &self.0 {
            Ok(replayed) => replayed,
            Err(event) => return UefiReplay::Malformed(*event),
        };
        let mut compared = 0u32;
        let mut differs = 0u32;
        for (pcr, value) in quoted.iter() {
            let bit = 1u32 << pcr;
            let expected = match replayed.get(&pcr) {
                Some(expected) => *expected,
                None if FIRMWARE_PCRS & bit != 0 => [0; 32],
                None => continue,
            };
            compared |= bit;
            if expected != *value {
                differs |= bit;
            }
        }
        match (compared, differs) {
            (0, _) => UefiReplay::NotQuoted,
            (_, 0) => UefiReplay::Explained,
            (_, differs) => UefiReplay::Differs(differs),
        }
    }
}

/// PCRs after all events, or the number of the event that cannot be read
fn follow(log: &[u8]) -> Result<BTreeMap<u8, Digest>, u64> {
    let mut reader = LeReader(log);
    let sizes = spec_id(&mut reader).ok_or(0u64)?;
    let mut pcrs = BTreeMap::new();
    let mut number = 1u64;
    while !reader.0.is_empty() {
        event(&mut reader, &sizes, &mut pcrs).ok_or(number)?;
        number += 1;
    }
    Ok(pcrs)
}

/// The first event; digest sizes by algorithm
fn spec_id(reader: &mut LeReader<'_>) -> Option<BTreeMap<u16, usize>> {
    let _pcr = reader.u32()?;
    if reader.u32()? != EV_NO_ACTION {
        return None;
    }
    reader.take(SHA1_LEN)?;
    let len = reader.u32()?;
    let mut event = LeReader(reader.take(usize::try_from(len).ok()?)?);
    let mut fixed = LeReader(event.take(SPEC_ID_FIXED)?);
    if fixed.take(SPEC_ID.len())? != SPEC_ID {
        return None;
    }
    let count = event.u32()?;
    if count == 0 || count > MAX_ALGORITHMS {
        return None;
    }
    let mut sizes = BTreeMap::new();
    for _ in 0..count {
        let algorithm = event.u16()?;
        sizes.insert(algorithm, usize::from(event.u16()?));
    }
    (sizes.get(&ALG_SHA256) == Some(&32)).then_some(sizes)
}

/// One TCG_PCR_EVENT2
fn event(
    reader: &mut LeReader<'_>,
    sizes: &BTreeMap<u16, usize>,
    pcrs: &mut BTreeMap<u8, Digest>,
) -> Option<()> {
    let pcr = reader.u32()?;
    let kind = reader.u32()?;
    let count = reader.u32()?;
    if count > MAX_ALGORITHMS {
        return None;
    }
    let mut sha256 = None;
    for _ in 0..count {
        let algorithm = reader.u16()?;
        let digest = reader.take(*sizes.get(&algorithm)?)?;
        if algorithm == ALG_SHA256 {
            sha256 = Digest::try_from(digest).ok();
        }
    }
    let len = reader.u32()?;
    let data = reader.take(usize::try_from(len).ok()?)?;
    if kind == EV_NO_ACTION {
        if let (0, Some([locality])) = (pcr, data.strip_prefix(STARTUP_LOCALITY)) {
            // TPM2_Startup from another locality than 0 leaves its number in PCR 0
            let mut start = [0; 32];
            if let Some(last) = start.last_mut() {
                *last = *locality;
            }
            pcrs.insert(0, start);
        }
        return Some(());
    }
    let pcr = u8::try_from(pcr).ok().filter(|pcr| *pcr < PCR_COUNT)?;
    let value = pcrs.entry(pcr).or_insert([0; 32]);
    *value = extend(value, &sha256?);
    Some(())
}

/// TPM2_PCR_Extend
fn extend(pcr: &Digest, value: &Digest) -> Digest {
    Sha256::new().chain_update(pcr).chain_update(value).finalize().into()
}

/// Little endian, unlike everything that a TPM marshals
struct LeReader<'a>(&'a [u8]);

impl<'a> LeReader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
}
