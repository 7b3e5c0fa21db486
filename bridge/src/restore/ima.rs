//! Does an IMA log lead to the quoted PCR 10?
//!
//! The kernel appends to the log and then extends the PCR, and the log goes on growing after the quote; so the log is followed from a
//! known state until it reaches the quoted value, and what lies beyond is not covered by the quote.
//!
//! Source: Linux `security/integrity/ima/ima_{template,template_lib,crypto,fs}.c`. The sha256 bank is extended with SHA-256 of the
//! template data (since Linux 5.8).

use super::Digest;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The PCR that IMA extends (CONFIG_IMA_MEASURE_PCR_IDX)
const IMA_PCR: &str = "10";
/// The `ima` template holds a bare SHA-1 or MD5 digest, padded to this
const OLD_DIGEST_LEN: usize = 20;
/// The `ima` template's name field: 255 bytes and a NUL
const OLD_NAME_LEN: usize = 256;
/// Longest line followed; the kernel's own limits are a path and a signature or buffer far below it
const MAX_LINE: usize = 256 * 1024;

/// How far a log has been followed, and where that led
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImaState {
    /// Entries followed since boot
    pub entries: u64,
    /// PCR 10 after them
    pub pcr10: Digest,
}

impl ImaState {
    /// At boot: no entries, PCR 10 all zero
    pub const BOOT: Self = Self { entries: 0, pcr10: [0; 32] };
}

/// Why a line cannot be followed
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImaProblem {
    /// Not of its template's form
    Malformed,
    /// Not known here
    UnknownTemplate,
}

/// What following a log came to
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImaReplay {
    /// The quoted value is reached
    Explained {
        /// Where: entries since boot, PCR 10 as quoted
        at: ImaState,
        /// Bytes of the text up to there
        covered: usize,
    },
    /// None led there
    Differs {
        /// Where they led
        at: ImaState,
    },
    /// A line cannot be followed
    Stopped {
        /// Where they led
        at: ImaState,
        /// Why
        problem: ImaProblem,
    },
}

/// Follows ascii log lines from a state until PCR 10 is as quoted
pub fn replay_ima(from: ImaState, text: &[u8], quoted: &Digest) -> ImaReplay {
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

/// Follows one line
pub fn extend_by(state: &mut ImaState, line: &[u8]) -> Result<(), ImaProblem> {
    let entry = line.strip_suffix(b"\n").unwrap_or(line);
    let entry = str::from_utf8(entry).map_err(|_| ImaProblem::Malformed)?;
    if let Some(value) = extension(entry)? {
        state.pcr10 = extend(&state.pcr10, &value);
    }
    state.entries += 1;
    Ok(())
}

/// Whether all that these lines say follows from what PCR 10 covers
pub fn follows_from_pcr(text: &[u8]) -> bool {
    text.split_inclusive(|byte| *byte == b'\n').all(|line| {
        line.strip_suffix(b"\n").is_some_and(|line| str::from_utf8(line).is_ok_and(entry_follows))
    })
}

fn entry_follows(entry: &str) -> bool {
    let mut fields = entry.splitn(4, ' ');
    let (Some(IMA_PCR), Some(template_hash), Some(template), Some(data)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    let Ok(hashed) = template_data(template, data) else { return false };
    let expected = match template_hash.len() {
        40 => hex::encode(Sha1::digest(&hashed)),
        64 => hex::encode(Sha256::digest(&hashed)),
        _ => return false,
    };
    template_hash == expected && template_follows(template, data)
}

/// Templates that hash alike are told apart by what their fields look like; the rarer ones are left to a statement
fn template_follows(template: &str, data: &str) -> bool {
    let lowercase = |text: &str| !text.bytes().any(|byte| byte.is_ascii_uppercase());
    let plain_digest = |digest: &str| digest.matches(':').count() == 1 && lowercase(digest);
    match template {
        "ima-ng" => split(data).is_ok_and(|[digest, _]| plain_digest(digest)),
        // `ima-buf` holds a buffer in the place of the signature, under a name that is no path
        "ima-sig" => split(data).is_ok_and(|[digest, name, signature]| {
            let is_path = name.starts_with('/') || name == "boot_aggregate";
            let is_signature = signature.is_empty() || signature.starts_with("03");
            plain_digest(digest) && is_path && is_signature && lowercase(signature)
        }),
        _ => false,
    }
}

/// TPM2_PCR_Extend
pub(super) fn extend(pcr: &Digest, value: &Digest) -> Digest {
    let mut hash = Sha256::new();
    hash.update(pcr);
    hash.update(value);
    hash.finalize().into()
}

/// What an entry extends PCR 10 with; `None` when it is measured into another PCR
fn extension(entry: &str) -> Result<Option<Digest>, ImaProblem> {
    if entry.len() > MAX_LINE {
        return Err(ImaProblem::Malformed);
    }
    let mut fields = entry.splitn(4, ' ');
    let mut next = || fields.next().ok_or(ImaProblem::Malformed);
    let (pcr, template_hash, template, data) = (next()?.trim_start(), next()?, next()?, next()?);
    if pcr.is_empty() || !pcr.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ImaProblem::Malformed);
    }
    if pcr != IMA_PCR {
        return Ok(None);
    }
    // a violation: the file changed while it was measured (ima_add_violation)
    if !template_hash.is_empty() && template_hash.bytes().all(|byte| byte == b'0') {
        return Ok(Some([0xFF; 32]));
    }
    let data = template_data(template, data)?;
    Ok(Some(Sha256::digest(data).into()))
}

/// The fields of a template as the kernel hashes them
fn template_data(template: &str, text: &str) -> Result<Vec<u8>, ImaProblem> {
    let mut data = Vec::with_capacity(text.len());
    match template {
        "ima" => {
            let [digest, name] = split(text)?;
            push_old(&mut data, digest, name)?;
        }
        "ima-ng" | "ima-ngv2" => {
            let [digest, name] = split(text)?;
            push_digest(&mut data, digest)?;
            push_name(&mut data, name);
        }
        // a missing signature or buffer is an empty last field after its blank
        "ima-sig" | "ima-sigv2" | "ima-buf" => {
            let [digest, name, hex] = split(text)?;
            push_digest(&mut data, digest)?;
            push_name(&mut data, name);
            push_hex(&mut data, hex)?;
        }
        "ima-modsig" => {
            let [digest, name, signature, modsig_digest, modsig] = split(text)?;
            push_digest(&mut data, digest)?;
            push_name(&mut data, name);
            push_hex(&mut data, signature)?;
            if modsig_digest.is_empty() {
                push_sized(&mut data, &[]);
            } else {
                push_digest(&mut data, modsig_digest)?;
            }
            push_hex(&mut data, modsig)?;
        }
        _ => return Err(ImaProblem::UnknownTemplate),
    }
    Ok(data)
}

/// Digest, name and `N - 2` fields without blanks
///
/// Older kernels leave blanks in names, so the name is whatever lies between the others.
fn split<const N: usize>(text: &str) -> Result<[&str; N], ImaProblem> {
    let (digest, rest) = text.split_once(' ').ok_or(ImaProblem::Malformed)?;
    let mut fields: Vec<&str> = rest.rsplitn(N - 1, ' ').collect();
    fields.push(digest);
    fields.reverse();
    fields.try_into().map_err(|_| ImaProblem::Malformed)
}

/// d-ng and d-ngv2: `sha256:<hex>`, `ima:sha256:<hex>`; hashed as length, algorithm with colon, NUL, digest
fn push_digest(data: &mut Vec<u8>, text: &str) -> Result<(), ImaProblem> {
    let digest = match text.rsplit_once(':') {
        Some((algorithm, digest)) => {
            let mut field = algorithm.as_bytes().to_vec();
            field.extend_from_slice(b":\0");
            field.extend_from_slice(&hex::decode(digest).map_err(|_| ImaProblem::Malformed)?);
            field
        }
        None => hex::decode(text).map_err(|_| ImaProblem::Malformed)?,
    };
    push_sized(data, &digest);
    Ok(())
}

/// n-ng: NUL-terminated
fn push_name(data: &mut Vec<u8>, name: &str) {
    let mut field = name.as_bytes().to_vec();
    field.push(0);
    push_sized(data, &field);
}

fn push_hex(data: &mut Vec<u8>, text: &str) -> Result<(), ImaProblem> {
    push_sized(data, &hex::decode(text).map_err(|_| ImaProblem::Malformed)?);
    Ok(())
}

fn push_sized(data: &mut Vec<u8>, field: &[u8]) {
    data.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
    data.extend_from_slice(field);
}

/// The `ima` template: no lengths, fixed fields
fn push_old(data: &mut Vec<u8>, digest: &str, name: &str) -> Result<(), ImaProblem> {
    let digest = hex::decode(digest).map_err(|_| ImaProblem::Malformed)?;
    if digest.len() > OLD_DIGEST_LEN || name.len() >= OLD_NAME_LEN {
        return Err(ImaProblem::Malformed);
    }
    data.extend_from_slice(&digest);
    data.resize(data.len() + OLD_DIGEST_LEN - digest.len(), 0);
    data.extend_from_slice(name.as_bytes());
    data.resize(data.len() + OLD_NAME_LEN - name.len(), 0);
    Ok(())
}
