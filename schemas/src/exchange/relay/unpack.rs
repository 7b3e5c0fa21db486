//! Packed logs, and what the shell makes of them.
//!
//! A few packed bytes may become a megabyte before they turn out to be broken, so a relay never unpacks: it says what
//! there is to unpack, and its shell does that where it keeps nobody waiting.

use std::sync::Arc;

use super::offer::ImaState;
use crate::compact::{Reference, unpack_ima, unpack_uefi};
use crate::messages::limits::{MAX_INLINE_IMA, MAX_PART_LINES};
use crate::messages::{Digest, UefiLog};

/// A part of the IMA log, or the whole UEFI log, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpack {
    /// What it came as.
    pub packed: Vec<u8>,
    /// The UEFI log that it must be; nothing for lines of the IMA log.
    pub uefi: Option<UefiLog>,
    /// The reference that it may be packed with.
    pub reference: Option<Digest>,
}

impl Unpack {
    /// The log, or why it is of no use.
    pub fn carry_out(&self, references: &[Reference]) -> Result<Vec<u8>, &'static str> {
        let reference = named(references, self.reference);
        match self.uefi {
            None => lines(&self.packed, MAX_PART_LINES, reference),
            Some(log) => {
                let size = usize::try_from(log.size).unwrap_or(usize::MAX);
                let unpacked = unpack_uefi(&self.packed, size, reference)
                    .map_err(|_| "the UEFI log cannot be unpacked")?;
                if Digest::of(&[&unpacked]) == log.digest {
                    Ok(unpacked)
                } else {
                    Err("the UEFI log does not have the digest that was announced")
                }
            }
        }
    }
}

/// IMA lines that the verifier has not seen, as they are held and as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImaParts {
    /// Lines of the log before these.
    pub offset: u64,
    /// Whole lines that came before the quote.
    pub gathered: Arc<Vec<u8>>,
    /// The lines that came with the quote, packed.
    pub packed: Vec<u8>,
    /// The reference that they may be packed with.
    pub reference: Option<Digest>,
    /// PCR 10 at `offset`, when it is known.
    pub state: Option<ImaState>,
    /// The device has stated that its template hashes are SHA-256.
    pub sha256: bool,
}

impl ImaParts {
    /// All lines, or why they are of no use.
    pub fn text(&self, references: &[Reference]) -> Result<ImaText, &'static str> {
        let news = lines(&self.packed, MAX_INLINE_IMA, named(references, self.reference))?;
        let lines = [&self.gathered[..], &news].concat();
        Ok(ImaText { offset: self.offset, lines, state: self.state, sha256: self.sha256 })
    }
}

/// IMA lines that the verifier has not seen, and where they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImaText {
    /// Lines of the log before these.
    pub offset: u64,
    /// Whole lines.
    pub lines: Vec<u8>,
    /// PCR 10 at `offset`, when it is known.
    pub state: Option<ImaState>,
    /// The device has stated that its template hashes are SHA-256.
    pub sha256: bool,
}

fn named(references: &[Reference], digest: Option<Digest>) -> Option<&Reference> {
    let digest = digest?;
    references.iter().find(|reference| reference.digest() == digest)
}

fn lines(packed: &[u8], limit: usize, reference: Option<&Reference>) -> Result<Vec<u8>, &'static str> {
    if packed.is_empty() {
        return Ok(Vec::new());
    }
    let lines = unpack_ima(packed, limit, reference).map_err(|_| "IMA lines that cannot be unpacked")?;
    if lines.last().is_none_or(|byte| *byte == b'\n') {
        Ok(lines)
    } else {
        Err("IMA lines that are not whole")
    }
}
