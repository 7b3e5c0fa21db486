//! How an event's digest follows from its data.

use crate::compact::CompactError;
use crate::compact::bytes::Reader;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

/// Where a digest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It stands among the digests.
    New,
    /// It stood there before; how far back is a number.
    Repeated,
    /// It is in the reference's log; how far from the one expected is a number.
    Known,
    /// Hash of a part of the data.
    Hash(Part),
}

/// The part of the data that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: what most events measure.
    Whole,
    /// A UEFI_VARIABLE_DATA's variable data alone: boot variables, in EDK2 up to 2022 and since.
    Variable,
    /// What follows `grub_cmd: ` or `kernel_cmdline: `, without its NUL.
    Command,
    /// A string without its NUL.
    String,
    /// A UTF-16 string without its NUL: systemd-boot's command lines.
    WideString,
    /// Nothing: an empty file or variable.
    Nothing,
}

const PARTS: [Part; 6] =
    [Part::Whole, Part::Variable, Part::Command, Part::String, Part::WideString, Part::Nothing];

impl Origin {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::New => 0,
            Self::Repeated => 1,
            Self::Known => 2,
            Self::Hash(part) => 3 + part as u8,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, CompactError> {
        match byte {
            0 => Ok(Self::New),
            1 => Ok(Self::Repeated),
            2 => Ok(Self::Known),
            _ => {
                let part = PARTS.get(usize::from(byte - 3));
                part.map(|part| Self::Hash(*part)).ok_or(CompactError::Malformed("an unknown origin"))
            }
        }
    }
}

/// The part of the data whose hash is this digest, if it is one.
pub(super) fn explained(algorithm: u16, digest: &[u8], data: &[u8]) -> Option<Part> {
    PARTS.into_iter().find(|part| hash(algorithm, *part, data).is_some_and(|hash| hash == digest))
}

/// The hash of a part of the data, if there is such a part and the algorithm is known.
pub(super) fn hash(algorithm: u16, part: Part, data: &[u8]) -> Option<Vec<u8>> {
    let part = match part {
        Part::Whole => data,
        Part::Variable => variable(data)?,
        Part::Command => {
            let start = memchr::memmem::find(data, b": ")? + 2;
            data.get(start..)?.strip_suffix(b"\0")?
        }
        Part::String => data.strip_suffix(b"\0")?,
        Part::WideString => data.strip_suffix(b"\0\0")?,
        Part::Nothing => &[],
    };
    // TPM_ALG_ID, TCG Algorithm Registry
    match algorithm {
        0x0004 => Some(Sha1::digest(part).to_vec()),
        0x000B => Some(Sha256::digest(part).to_vec()),
        0x000C => Some(Sha384::digest(part).to_vec()),
        0x000D => Some(Sha512::digest(part).to_vec()),
        _ => None,
    }
}

/// GUID, length of the name in characters, length of the data, name, data.
fn variable(data: &[u8]) -> Option<&[u8]> {
    let mut rest = Reader(data);
    rest.take(16).ok()?;
    let mut length = || usize::try_from(u64::from_le_bytes(rest.take(8).ok()?.try_into().ok()?)).ok();
    let (name, size) = (length()?, length()?);
    rest.take(name.checked_mul(2)?).ok()?;
    rest.take(size).ok()
}
