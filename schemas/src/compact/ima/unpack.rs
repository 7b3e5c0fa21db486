//! Columns into lines.

use super::line::{Fields, Kind, Shape, Source};
use super::{COLUMNS, NAMES, PLAIN, REFERENCED, SIGNATURE_HEADER, SQUEEZED, SQUEEZED_COLUMNS};
use crate::compact::bytes::{Reader, Restored};
use crate::compact::frame;
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
        SQUEEZED => frame::expand(packed.0, NAMES, limit),
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
        expanded = frame::expand(stream, NAMES, limit)?;
        &expanded
    };
    let (runs, texts, numbers) = split(stream)?;
    let mut rest = Rest { texts, numbers, random: packed, reference, expected: 0, seen: Vec::new() };
    let mut out = Restored::new(limit);
    for run in runs {
        for _ in 0..run.1 {
            match run.0 {
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

type Runs = Vec<(Kind, u64)>;

/// Kinds with how many lines in a row have them, texts, numbers: how many texts there are follows from the kinds.
fn split(stream: &[u8]) -> Result<(Runs, Reader<'_>, Reader<'_>), CompactError> {
    let mut rest = Reader(stream);
    let count = rest.size()?;
    // a run has two bytes at least
    let mut runs = Vec::with_capacity(count.min(rest.0.len() / 2));
    let mut with_text = 0u64;
    for _ in 0..count {
        let (kind, count) = (Kind::from_number(rest.number()?)?, rest.number()?);
        if !matches!(kind, Kind::Fields { source: Source::Known, .. }) {
            with_text = with_text.saturating_add(count);
        }
        runs.push((kind, count));
    }
    let texts = rest;
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
        let (digest, name) = match source {
            Source::Known => self.known(size)?,
            Source::New => {
                let digest = self.random.take(size)?;
                self.seen.push(digest);
                (digest, self.texts.line()?)
            }
            Source::Repeated => (self.repeated(size)?, self.texts.line()?),
            Source::Violation => (ZEROS.get(..size).unwrap_or_default(), self.texts.line()?),
        };
        let (header, signature) = if shape.has_last() { self.last(shape)? } else { Default::default() };
        let last = [header, signature].concat();
        shape.render(out, source, &Fields { digest, name, last: &last })
    }

    fn known(&mut self, size: usize) -> Result<(&'a [u8], &'a [u8]), CompactError> {
        const BEYOND: CompactError = CompactError::Malformed("an entry that the reference does not have");
        let reference = self.reference.ok_or(BEYOND)?;
        let step = isize::try_from(self.numbers.signed()?).map_err(|_| BEYOND)?;
        let number = self.expected.checked_add_signed(step).ok_or(BEYOND)?;
        let (digest, name) = reference.at(number).ok_or(BEYOND)?;
        self.expected = number + 1;
        if digest.len() == size { Ok((digest, name)) } else { Err(BEYOND) }
    }

    fn repeated(&mut self, size: usize) -> Result<&'a [u8], CompactError> {
        let back = self.numbers.size()?;
        let place = self.seen.len().checked_sub(1).and_then(|last| last.checked_sub(back));
        place
            .and_then(|place| self.seen.get(place).copied())
            .filter(|digest| digest.len() == size)
            .ok_or(CompactError::Malformed("a digest that did not stand there before"))
    }

    fn last(&mut self, shape: Shape) -> Result<(&'a [u8], &'a [u8]), CompactError> {
        let size = self.numbers.size()?;
        let header = if shape.is_signed() { size.min(SIGNATURE_HEADER) } else { size };
        Ok((self.numbers.take(header)?, self.random.take(size - header)?))
    }
}
