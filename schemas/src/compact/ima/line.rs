//! One line of the ascii log as columns, and columns as a line.

use crate::compact::CompactError;
use crate::compact::bytes::Restored;
use crate::ima::{columns, template};
use sha1::Sha1;
use sha2::Sha256;

/// Templates that go into columns, and whether a field in hex follows the name. Others go as text.
const TEMPLATES: [(&str, bool); 6] = [
    ("ima-ng", false),
    ("ima-sig", true),
    ("ima-buf", true),
    ("ima-ngv2", false),
    ("ima-sigv2", true),
    ("ima", false),
];
/// What stands before a digest, and how many bytes the digest has.
const ALGORITHMS: [(&str, usize); 10] = [
    ("sha256:", 32),
    ("sha1:", 20),
    ("sha512:", 64),
    ("sha384:", 48),
    ("md5:", 16),
    ("ima:sha256:", 32),
    ("verity:sha256:", 32),
    ("ima:sha512:", 64),
    ("verity:sha512:", 64),
    ("", 20),
];
/// Longest of them.
const MAX_DIGEST: usize = 64;

/// Where a line's digest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// It stands among the digests.
    New,
    /// It stood there before.
    Repeated,
    /// Digest and name are in the reference.
    Known,
    /// A violation: digest and template hash are zero.
    Violation,
}

/// What kind of line: all that most lines of a log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not in columns: the line is its text.
    Text,
    /// In columns.
    Fields { source: Source, shape: Shape },
}

/// Template, hash algorithm, and size of the template hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    template: usize,
    algorithm: usize,
    /// The template hash is SHA-256 instead of SHA-1
    wide: bool,
}

/// A line's own part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) digest: &'a [u8],
    pub(super) name: &'a [u8],
    /// Signature or buffer, for templates that have one
    pub(super) last: &'a [u8],
}

impl Kind {
    pub(super) fn to_number(self) -> u64 {
        match self {
            Self::Text => 0,
            Self::Fields { source, shape } => {
                let combined = shape.template * ALGORITHMS.len() + shape.algorithm;
                1 + (source as u64) + 4 * (u64::from(shape.wide) + 2 * combined as u64)
            }
        }
    }

    pub(super) fn from_number(number: u64) -> Result<Self, CompactError> {
        const UNKNOWN: CompactError = CompactError::Malformed("an unknown kind of line");
        let Some(rest) = number.checked_sub(1) else { return Ok(Self::Text) };
        let source = match rest % 4 {
            0 => Source::New,
            1 => Source::Repeated,
            2 => Source::Known,
            _ => Source::Violation,
        };
        let combined = usize::try_from(rest / 8).map_err(|_| UNKNOWN)?;
        let (template, algorithm) = (combined / ALGORITHMS.len(), combined % ALGORITHMS.len());
        if template >= TEMPLATES.len() {
            return Err(UNKNOWN);
        }
        Ok(Self::Fields { source, shape: Shape { template, algorithm, wide: rest / 4 % 2 == 1 } })
    }
}

impl Shape {
    pub(super) fn digest_size(self) -> usize {
        ALGORITHMS.get(self.algorithm).map_or(0, |(_, size)| *size)
    }

    /// Whether a signature or a buffer follows the name.
    pub(super) fn has_last(self) -> bool {
        TEMPLATES.get(self.template).is_some_and(|(_, has_last)| *has_last)
    }

    /// Whether that is a signature.
    pub(super) fn is_signed(self) -> bool {
        self.has_last() && !matches!(TEMPLATES.get(self.template), Some(("ima-buf", _)))
    }

    /// Writes the line; the template hash is recomputed.
    pub(super) fn render(
        self,
        out: &mut Restored,
        source: Source,
        fields: &Fields,
    ) -> Result<(), CompactError> {
        const ZEROS: [u8; 64] = [b'0'; 64];
        let (template, has_last) = TEMPLATES.get(self.template).copied().unwrap_or_default();
        let (prefix, _) = ALGORITHMS.get(self.algorithm).copied().unwrap_or_default();
        let template_hash = if self.wide { 64 } else { 40 };
        out.push(b"10 ")?;
        let hash_at = out.bytes.len()..out.bytes.len() + template_hash;
        out.push(ZEROS.get(..template_hash).unwrap_or_default())?;
        out.push(b" ")?;
        out.push(template.as_bytes())?;
        out.push(b" ")?;
        let data_at = out.bytes.len();
        out.push(prefix.as_bytes())?;
        out.push_hex(fields.digest)?;
        out.push(b" ")?;
        out.push(fields.name)?;
        if has_last {
            out.push(b" ")?;
            out.push_hex(fields.last)?;
        }
        if source != Source::Violation {
            let (before, data) = out.bytes.split_at_mut_checked(data_at).unwrap_or_default();
            if let Some(place) = before.get_mut(hash_at) {
                write_hash(place, self.wide, template, data)?;
            }
        }
        out.push(b"\n")
    }
}

fn write_hash(place: &mut [u8], wide: bool, template: &str, data: &[u8]) -> Result<(), CompactError> {
    const UNHASHED: CompactError = CompactError::Malformed("fields that their template cannot have");
    let template = template.as_bytes();
    if wide {
        let hash = template::hash::<Sha256>(template, data).map_err(|_| UNHASHED)?;
        hex::encode_to_slice(hash, place).map_err(|_| UNHASHED)
    } else {
        let hash = template::hash::<Sha1>(template, data).map_err(|_| UNHASHED)?;
        hex::encode_to_slice(hash, place).map_err(|_| UNHASHED)
    }
}

/// A line taken apart, with its newline; holds the bytes that were hex in the text.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub(super) shape: Shape,
    pub(super) violation: bool,
    digest: [u8; MAX_DIGEST],
    name: &'a [u8],
    last: Vec<u8>,
}

impl<'a> Parsed<'a> {
    /// Nothing when columns would not give the line back; `scratch` is where that is tried.
    pub(super) fn of(line: &'a [u8], scratch: &mut Restored) -> Option<Self> {
        let parsed = Self::parse(line.strip_suffix(b"\n")?)?;
        scratch.bytes.clear();
        let source = if parsed.violation { Source::Violation } else { Source::New };
        parsed.shape.render(scratch, source, &parsed.fields()).ok()?;
        (scratch.bytes == line).then_some(parsed)
    }

    fn parse(entry: &'a [u8]) -> Option<Self> {
        let [_, template_hash, template_name, data] = columns(entry)?;
        let by_name = |(name, _): &(&str, bool)| name.as_bytes() == template_name;
        let template = TEMPLATES.iter().position(by_name)?;
        let (_, has_last) = TEMPLATES.get(template)?;
        let (digest_text, name, last) = if *has_last {
            let [digest, name, last] = template::split(data).ok()?;
            (digest, name, last)
        } else {
            let [digest, name] = template::split(data).ok()?;
            (digest, name, [].as_slice())
        };
        let by_prefix = |(prefix, size): &(&str, usize)| {
            digest_text.strip_prefix(prefix.as_bytes()).is_some_and(|text| text.len() == 2 * size)
        };
        let algorithm = ALGORITHMS.iter().position(by_prefix)?;
        let (prefix, size) = ALGORITHMS.get(algorithm)?;
        let mut digest = [0; MAX_DIGEST];
        hex::decode_to_slice(digest_text.get(prefix.len()..)?, digest.get_mut(..*size)?).ok()?;
        Some(Self {
            shape: Shape { template, algorithm, wide: template_hash.len() == 64 },
            violation: digest == [0; MAX_DIGEST] && template_hash.iter().all(|digit| *digit == b'0'),
            digest,
            name,
            last: hex::decode(last).ok()?,
        })
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        let digest = self.digest.get(..self.shape.digest_size()).unwrap_or_default();
        Fields { digest, name: self.name, last: &self.last }
    }
}

/// What an entry says of a file it measured.
pub(in crate::compact) struct Measured<'a> {
    pub(in crate::compact) digest: Vec<u8>,
    pub(in crate::compact) name: &'a [u8],
    pub(in crate::compact) signature: Vec<u8>,
}

impl<'a> Measured<'a> {
    /// Nothing for violations and what is no such entry.
    pub(in crate::compact) fn of(entry: &'a [u8]) -> Option<Self> {
        let parsed = Parsed::parse(entry).filter(|parsed| !parsed.violation)?;
        let digest = parsed.fields().digest.to_vec();
        let signature = if parsed.shape.is_signed() { parsed.last } else { Vec::new() };
        Some(Self { digest, name: parsed.name, signature })
    }
}
