//! Columns into lines.

use super::line::{Fields, Kind, Shape, Source};
use super::{AS_KNOWN, COLUMNS, PLAIN, REFERENCED, SIGNATURE_HEADER, SQUEEZED, SQUEEZED_COLUMNS, dictionary};
use crate::compact::bytes::{Reader, Restored};
use crate::compact::frame;
use crate::compact::reference::Entry;
use crate::compact::{CompactError, Reference};

/// What [`pack_ima`](super::pack_ima) was given, if that is at most `limit` bytes.
///
/// Allocates no more than a small multiple of `limit` and the input, whatever the bytes say.
pub fn unpack_ima(
    packed: &[u8],
    limit: usize,
    reference: Option<&Reference>,
) -> Result<Vec<u8>, CompactError> {
    let mut packed = Reader(packed);
    if packed.0.is_empty() {
        return Ok(Vec::new());
    }
    let form = packed.byte()?;
    match form {
        PLAIN if packed.0.len() > limit => Err(CompactError::TooLarge(limit)),
        PLAIN => Ok(packed.0.to_vec()),
        SQUEEZED => frame::expand(packed.0, &dictionary(), limit),
        COLUMNS | SQUEEZED_COLUMNS => columns(packed, form, limit, None),
        _ => {
            let form = form.wrapping_sub(REFERENCED);
            if form != COLUMNS && form != SQUEEZED_COLUMNS {
                return Err(CompactError::Malformed("an unknown form"));
            }
            let tag = packed.take(2)?;
            let named = reference.filter(|reference| reference.tag() == tag);
            columns(packed, form, limit, Some(named.ok_or(CompactError::UnknownReference)?))
        }
    }
}

struct Rest<'a> {
    texts: Reader<'a>,
    numbers: Reader<'a>,
    random: Reader<'a>,
    reference: Option<&'a Reference>,
    expected: usize,
    /// Digests that were new, in order
    seen: Vec<&'a [u8]>,
}

fn columns(
    mut packed: Reader,
    form: u8,
    limit: usize,
    reference: Option<&Reference>,
) -> Result<Vec<u8>, CompactError> {
    let size = packed.size()?;
    let stream = packed.take(size)?;
    let expanded;
    let stream = if form == COLUMNS {
        stream
    } else {
        // the packer takes no columns that are longer than the lines
        expanded = frame::expand(stream, &dictionary(), limit)?;
        &expanded
    };
    let (runs, texts, numbers) = split(stream)?;
    let mut rest = Rest { texts, numbers, random: packed, reference, expected: 0, seen: Vec::new() };
    let mut out = Restored::new(limit);
    for run in runs {
        let (kind, count) = run?;
        // each line is a byte at least, so the limit ends this
        for _ in 0..count {
            match kind {
                Kind::Text => {
                    out.push(rest.texts.line()?)?;
                    out.push(b"\n")?;
                }
                Kind::Fields { source, shape } => rest.line(&mut out, source, shape)?,
            }
        }
    }
    rest.numbers.finished()?;
    rest.random.finished()?;
    Ok(out.bytes)
}

/// Kinds with how many lines in a row have them.
struct Runs<'a> {
    left: usize,
    rest: Reader<'a>,
}

impl Iterator for Runs<'_> {
    type Item = Result<(Kind, u64), CompactError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut run = || Ok((Kind::from_number(self.rest.number()?)?, self.rest.number()?));
        Some(run())
    }
}

/// Runs, texts, numbers: how many texts there are follows from the runs.
fn split(stream: &[u8]) -> Result<(Runs<'_>, Reader<'_>, Reader<'_>), CompactError> {
    let mut rest = Reader(stream);
    let left = rest.size()?;
    let first = rest;
    let mut runs = Runs { left, rest };
    let mut with_text = 0u64;
    for run in &mut runs {
        let (kind, count) = run?;
        if !matches!(kind, Kind::Fields { source: Source::Known, .. }) {
            with_text = with_text.saturating_add(count);
        }
    }
    let texts = runs.rest;
    let runs = Runs { left, rest: first };
    let mut rest = texts;
    for _ in 0..with_text {
        rest.line()?;
    }
    let size = texts.0.len() - rest.0.len();
    Ok((runs, Reader(texts.0.get(..size).unwrap_or_default()), rest))
}

impl<'a> Rest<'a> {
    fn line(&mut self, out: &mut Restored, source: Source, shape: Shape) -> Result<(), CompactError> {
        const ZEROS: [u8; 64] = [0; 64];
        let size = shape.digest_size();
        let mut known = None;
        let (digest, name) = match source {
            Source::Known => {
                let entry = self.known(size)?;
                known = Some(entry.signature);
                (entry.digest, entry.path)
            }
            Source::New => {
                let digest = self.random.take(size)?;
                self.seen.push(digest);
                (digest, self.texts.line()?)
            }
            Source::Repeated => (self.repeated(size)?, self.texts.line()?),
            Source::Violation => (ZEROS.get(..size).unwrap_or_default(), self.texts.line()?),
        };
        let (header, signature) =
            if shape.has_last() { self.last(shape, known)? } else { Default::default() };
        let last = [header, signature].concat();
        shape.render(out, source, &Fields { digest, name, last: &last })
    }

    fn known(&mut self, size: usize) -> Result<Entry<'a>, CompactError> {
        const BEYOND: CompactError = CompactError::Malformed("an entry that the reference does not have");
        let reference = self.reference.ok_or(BEYOND)?;
        let step = isize::try_from(self.numbers.signed()?).map_err(|_| BEYOND)?;
        let number = self.expected.checked_add_signed(step).ok_or(BEYOND)?;
        let entry = reference.at(number).ok_or(BEYOND)?;
        self.expected = number + 1;
        if entry.digest.len() == size { Ok(entry) } else { Err(BEYOND) }
    }

    fn repeated(&mut self, size: usize) -> Result<&'a [u8], CompactError> {
        let back = self.numbers.size()?;
        let place = self.seen.len().checked_sub(1).and_then(|last| last.checked_sub(back));
        place
            .and_then(|place| self.seen.get(place).copied())
            .filter(|digest| digest.len() == size)
            .ok_or(CompactError::Malformed("a digest that did not stand there before"))
    }

    /// Signature or buffer: what was compressed of it, and the rest.
    fn last(&mut self, shape: Shape, known: Option<&'a [u8]>) -> Result<(&'a [u8], &'a [u8]), CompactError> {
        const UNKNOWN: CompactError = CompactError::Malformed("a signature that the reference does not have");
        let number = self.numbers.number()?;
        if number == AS_KNOWN {
            return Ok((&[], known.ok_or(UNKNOWN)?));
        }
        let size = usize::try_from(number - 1).map_err(|_| UNKNOWN)?;
        let header = if shape.is_signed() { size.min(SIGNATURE_HEADER) } else { size };
        Ok((self.numbers.take(header)?, self.random.take(size - header)?))
    }
}
