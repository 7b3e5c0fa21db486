//! What both sides know beforehand: files with their digests, and the UEFI log of a machine of the same kind.
//!
//! A reference is a file. The device names it by the SHA-256 of its bytes; it saves bytes where both sides have the same
//! one and does nothing else: what is wrong in it cannot make a log pass.
//!
//! ```text
//! "keylime-mqtt-reference 1\n"
//! number of entries  { digest length, digest  path length, path  signature length, signature } *
//! length of the UEFI log, the UEFI log                            (numbers are LEB128)
//! ```

mod build;

use super::CompactError;
use super::bytes::{Reader, push_number};
use crate::messages::Digest;

pub use build::ReferenceBuilder;

const MAGIC: &[u8] = b"keylime-mqtt-reference 1\n";
/// Largest file, in bytes: half a million long entries.
const MAX_FILE: usize = 64 * 1024 * 1024;
/// Most entries; an entry's number has 21 bits in the index.
const MAX_ENTRIES: usize = 2_000_000;
const NUMBER_BITS: u32 = 21;
/// Longest path, in bytes: Linux has 4096.
const MAX_PATH: usize = 4096;
/// Digests are those of the hash algorithms IMA has: MD5 to SHA-512.
const DIGEST_SIZES: std::ops::RangeInclusive<usize> = 16..=64;
/// Longest signature, in bytes: RSA-8192 with its header.
const MAX_SIGNATURE: usize = 1100;
/// Largest UEFI log, in bytes.
const MAX_UEFI: usize = 1024 * 1024;

/// A file that both sides have.
///
/// Holds the file's bytes once, and 12 bytes for each entry.
pub struct Reference {
    file: Vec<u8>,
    /// Where each entry starts
    starts: Vec<u32>,
    /// Upper bits: of the hash of digest and path; lower bits: the entry's number. Sorted.
    index: Vec<u64>,
    uefi: std::ops::Range<usize>,
    digest: Digest,
}

/// A file is not a reference. Its maker, or who copied it, is at fault; logs then travel without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// More bytes than a reference may have.
    #[error(
        "a reference may have {MAX_FILE} bytes, {MAX_ENTRIES} entries and a UEFI log of {MAX_UEFI} bytes"
    )]
    TooLarge,
    /// Not one, one of a later version, or one that was cut.
    #[error("not a reference of this version: make it again with this version's command")]
    Malformed,
    /// What the builder was given is not a runtime policy.
    #[error("not a Keylime runtime policy: expected JSON with \"digests\": {{path: [digests in hex]}}")]
    Policy,
}

impl From<CompactError> for ReferenceError {
    fn from(_: CompactError) -> Self {
        Self::Malformed
    }
}

impl Reference {
    /// Checks a file's form and takes it in.
    pub fn parse(file: &[u8]) -> Result<Self, ReferenceError> {
        Self::from_file(file.to_vec())
    }

    /// As [`Reference::parse`], for a caller that can spare the bytes: a reference may be large and a device small.
    pub fn from_file(file: Vec<u8>) -> Result<Self, ReferenceError> {
        if file.len() > MAX_FILE {
            return Err(ReferenceError::TooLarge);
        }
        let mut rest = Reader(file.strip_prefix(MAGIC).ok_or(ReferenceError::Malformed)?);
        let count = rest.size()?;
        if count > MAX_ENTRIES {
            return Err(ReferenceError::TooLarge);
        }
        // an entry has a digest at least, so this is in proportion to the file
        let possible = count.min(rest.0.len() / DIGEST_SIZES.start());
        let (mut starts, mut index) = (Vec::with_capacity(possible), Vec::with_capacity(possible));
        for number in 0..count {
            let start = u32::try_from(file.len() - rest.0.len()).map_err(|_| ReferenceError::TooLarge)?;
            let entry = Entry::read(&mut rest)?;
            if !entry.is_sayable() {
                return Err(ReferenceError::Malformed);
            }
            starts.push(start);
            index.push(entry.key() | number as u64);
        }
        let size = rest.size()?;
        let uefi = file.len() - rest.0.len()..file.len();
        if size > MAX_UEFI {
            return Err(ReferenceError::TooLarge);
        }
        if size != uefi.len() {
            return Err(ReferenceError::Malformed);
        }
        index.sort_unstable();
        let digest = Digest::of(&[&file]);
        Ok(Self { file, starts, index, uefi, digest })
    }

    /// SHA-256 of the file's bytes: its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many files it knows.
    pub fn entries(&self) -> usize {
        self.starts.len()
    }

    /// The UEFI log of a machine of this kind; empty if it knows none.
    pub fn uefi_log(&self) -> &[u8] {
        self.file.get(self.uefi.clone()).unwrap_or_default()
    }

    /// Two bytes that show a mix-up.
    pub(super) fn tag(&self) -> [u8; 2] {
        let [a, b, ..] = *self.digest.as_bytes();
        [a, b]
    }

    /// The number of the entry with this digest and path; of several, the first at or after `expected`.
    pub(super) fn find(&self, digest: &[u8], path: &[u8], expected: usize) -> Option<usize> {
        let is_it = |entry: Entry| entry.digest == digest && entry.path == path;
        let key = Entry { digest, path, signature: &[] }.key();
        let start = self.index.partition_point(|other| *other < key);
        let mask = (1 << NUMBER_BITS) - 1;
        let mut same = self
            .index
            .get(start..)?
            .iter()
            .take_while(|other| **other & !mask == key)
            .filter_map(|other| usize::try_from(other & mask).ok())
            .filter(|number| self.at(*number).is_some_and(is_it));
        let first = same.next()?;
        if first >= expected { Some(first) } else { same.find(|number| *number >= expected).or(Some(first)) }
    }

    pub(super) fn at(&self, number: usize) -> Option<Entry<'_>> {
        let start = usize::try_from(*self.starts.get(number)?).ok()?;
        Entry::read(&mut Reader(self.file.get(start..)?)).ok()
    }
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reference")
            .field("digest", &self.digest)
            .field("entries", &self.entries())
            .field("uefi_log", &self.uefi.len())
            .finish_non_exhaustive()
    }
}

/// A file that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry<'a> {
    pub(super) digest: &'a [u8],
    pub(super) path: &'a [u8],
    /// What `ima-sig` says of it; empty if that is not known
    pub(super) signature: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(rest: &mut Reader<'a>) -> Result<Self, CompactError> {
        let mut field = || {
            let size = rest.size()?;
            rest.take(size)
        };
        Ok(Self { digest: field()?, path: field()?, signature: field()? })
    }

    fn write(&self, file: &mut Vec<u8>) {
        for field in [self.digest, self.path, self.signature] {
            push_number(file, field.len() as u64);
            file.extend_from_slice(field);
        }
    }

    /// Whether a line of a log can say it.
    fn is_sayable(&self) -> bool {
        DIGEST_SIZES.contains(&self.digest.len())
            && self.path.len() <= MAX_PATH
            && !self.path.contains(&b'\n')
            && self.signature.len() <= MAX_SIGNATURE
    }

    /// FNV-1a over digest and path, without the bits that an entry's number takes. Only for finding: what is found is
    /// compared.
    fn key(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.digest.iter().chain(self.path) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash << NUMBER_BITS
    }
}
