//! Where an IMA log leads: PCR 10 after each of its entries.
//!
//! The kernel appends to the log and then extends the PCR, and the log goes on growing after the quote. So the log is
//! followed from a known state until it reaches the quoted value, and what lies beyond is not covered by the quote.
//! The agent cuts the log there, the bridge checks it there. Lines are bytes: a file's name may be any bytes but NUL.
//!
//! Source: Linux `security/integrity/ima/ima_{template,template_lib,crypto,fs}.c`. The sha256 bank is extended with
//! SHA-256 of the template data (since Linux 5.8).

pub(crate) mod template;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The PCR that IMA extends (CONFIG_IMA_MEASURE_PCR_IDX).
const IMA_PCR: &[u8] = b"10";
/// Longest line followed, in bytes; the kernel's own limits are a path and a signature or buffer far below it.
const MAX_LINE: usize = 256 * 1024;

/// How far a log has been followed, and where that led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImaState {
    /// Entries followed since boot.
    pub entries: u64,
    /// The sha256 bank's PCR 10 after them.
    pub pcr10: [u8; 32],
}

impl ImaState {
    /// At boot: no entries, PCR 10 all zero.
    pub const BOOT: Self = Self { entries: 0, pcr10: [0; 32] };
}

/// Why a line cannot be followed. Whose fault it is depends on where the line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImaProblem {
    /// It is not `PCR hash template fields` with the fields of its template.
    #[error("an IMA entry is not of the form its template has")]
    Malformed,
    /// How the fields of this template are hashed is not known here.
    #[error("an IMA entry has a template that is not known here")]
    UnknownTemplate,
}

/// What following a log came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImaReplay {
    /// The quoted value is reached.
    Explained {
        /// Where: entries since boot, PCR 10 as quoted.
        at: ImaState,
        /// Bytes of the text up to there.
        covered: usize,
    },
    /// All lines were followed and none led to the quoted value.
    Differs {
        /// Where they led.
        at: ImaState,
    },
    /// A line cannot be followed.
    Stopped {
        /// The entries before it, and where they led.
        at: ImaState,
        /// Why.
        problem: ImaProblem,
    },
}

/// Follows ascii log lines from a state until PCR 10 is as quoted.
///
/// The text starts at entry `from.entries`. Lines after the match are not read.
pub fn replay_ima(from: ImaState, text: &[u8], quoted: &[u8; 32]) -> ImaReplay {
    let mut at = from;
    let mut covered = 0;
    if at.pcr10 == *quoted {
        return ImaReplay::Explained { at, covered };
    }
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        covered += line.len();
        if let Err(problem) = extend_by(&mut at, line) {
            return ImaReplay::Stopped { at, problem };
        }
        if at.pcr10 == *quoted {
            return ImaReplay::Explained { at, covered };
        }
    }
    ImaReplay::Differs { at }
}

/// Follows one line, with or without its newline; the state stays as it was when that fails.
///
/// Allocates nothing.
pub fn extend_by(state: &mut ImaState, line: &[u8]) -> Result<(), ImaProblem> {
    let entry = line.strip_suffix(b"\n").unwrap_or(line);
    if let Some(value) = extension(entry)? {
        // TPM2_PCR_Extend
        let mut hash = Sha256::new();
        hash.update(state.pcr10);
        hash.update(value);
        state.pcr10 = hash.finalize().into();
    }
    state.entries += 1;
    Ok(())
}

/// Whether all that these lines say follows from what PCR 10 covers, and from what the device has stated with its boot:
/// whether its template hashes are SHA-256.
///
/// Keylime also judges columns that no PCR covers: the PCR, the template hash, the template's name, and everything in
/// the line of a violation. Changed on the way, they would fail a device whose quote is good, so where they do not
/// follow from the covered ones only the device's statement tells that they are its own.
pub fn follows_from_pcr(text: &[u8], sha256: bool) -> bool {
    text.split_inclusive(|byte| *byte == b'\n')
        .all(|line| line.strip_suffix(b"\n").is_some_and(|entry| entry_follows(entry, sha256)))
}

/// Whether a log that begins with this line has SHA-256 as template hashes.
pub fn has_sha256_templates(line: &[u8]) -> bool {
    columns(line).is_some_and(|[_, template_hash, ..]| template_hash.len() == 2 * size_of::<[u8; 32]>())
}

fn entry_follows(entry: &[u8], sha256: bool) -> bool {
    let Some([pcr, template_hash, template, data]) = columns(entry) else { return false };
    if pcr != IMA_PCR {
        return false;
    }
    let as_expected = if sha256 {
        template::hash::<Sha256>(template, data).is_ok_and(|hash| is_hex_of(template_hash, &hash))
    } else {
        template::hash::<Sha1>(template, data).is_ok_and(|hash| is_hex_of(template_hash, &hash))
    };
    as_expected && template_follows(template, data)
}

/// Templates that hash alike are told apart by what their fields look like; the rarer ones are left to a statement.
fn template_follows(template: &[u8], data: &[u8]) -> bool {
    let lowercase = |text: &[u8]| !text.iter().any(u8::is_ascii_uppercase);
    let plain_digest = |digest: &[u8]| memchr::memchr_iter(b':', digest).count() == 1 && lowercase(digest);
    match template {
        b"ima-ng" => template::split(data).is_ok_and(|[digest, _]| plain_digest(digest)),
        // `ima-buf` holds a buffer in the place of the signature, under a name that is no path
        b"ima-sig" => template::split(data).is_ok_and(|[digest, name, signature]| {
            let is_path = name.starts_with(b"/") || name == b"boot_aggregate";
            let is_signature = signature.is_empty() || signature.starts_with(b"03");
            plain_digest(digest) && is_path && is_signature && lowercase(signature)
        }),
        _ => false,
    }
}

/// What an entry extends PCR 10 with; `None` when it is measured into another PCR.
fn extension(entry: &[u8]) -> Result<Option<[u8; 32]>, ImaProblem> {
    if entry.len() > MAX_LINE {
        return Err(ImaProblem::Malformed);
    }
    let [pcr, template_hash, template, data] = columns(entry).ok_or(ImaProblem::Malformed)?;
    let pcr = pcr.trim_ascii_start();
    if pcr.is_empty() || !pcr.iter().all(u8::is_ascii_digit) {
        return Err(ImaProblem::Malformed);
    }
    if pcr != IMA_PCR {
        return Ok(None);
    }
    // a violation: the file changed while it was measured (ima_add_violation)
    if !template_hash.is_empty() && template_hash.iter().all(|byte| *byte == b'0') {
        return Ok(Some([0xFF; 32]));
    }
    template::hash::<Sha256>(template, data).map(|hash| Some(hash.into()))
}

/// PCR, template hash, template and its fields.
pub(crate) fn columns(entry: &[u8]) -> Option<[&[u8]; 4]> {
    let (pcr, rest) = template::cut(entry)?;
    let (template_hash, rest) = template::cut(rest)?;
    let (template, data) = template::cut(rest)?;
    Some([pcr, template_hash, template, data])
}

/// Whether `text` is `bytes` in lowercase hex.
pub(crate) fn is_hex_of(text: &[u8], bytes: &[u8]) -> bool {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied();
    text.len() == bytes.len() * 2
        && text.chunks_exact(2).zip(bytes).all(|(pair, byte)| match pair {
            [high, low] => digit(byte >> 4) == Some(*high) && digit(byte & 15) == Some(*low),
            _ => false,
        })
}

#[cfg(test)]
mod tests;
