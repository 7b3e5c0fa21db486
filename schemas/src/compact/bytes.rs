//! Numbers and byte strings in a column: LEB128, and a reader that checks every step.

use super::CompactError;

const CUT: CompactError = CompactError::Malformed("a column ends early");

pub(super) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    out.push(low_bits(number));
}

/// Small in either direction stays small.
pub(super) fn push_signed(out: &mut Vec<u8>, number: i64) {
    push_number(out, (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned());
}

fn low_bits(number: u64) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or_default()
}

/// What is left of a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], CompactError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, CompactError> {
        let (byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(*byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, CompactError> {
        let mut number = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(CompactError::Malformed("a number has too many bytes"))
    }

    pub(super) fn size(&mut self) -> Result<usize, CompactError> {
        usize::try_from(self.number()?).map_err(|_| CUT)
    }

    pub(super) fn signed(&mut self) -> Result<i64, CompactError> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Up to the next newline, which is consumed and not given back.
    pub(super) fn line(&mut self) -> Result<&'a [u8], CompactError> {
        let end = memchr::memchr(b'\n', self.0).ok_or(CUT)?;
        let line = self.take(end)?;
        self.take(1)?;
        Ok(line)
    }

    pub(super) fn finished(self) -> Result<(), CompactError> {
        if self.0.is_empty() { Ok(()) } else { Err(CompactError::Malformed("bytes are left over")) }
    }
}

/// What is being restored; never grows past its bound.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) bytes: Vec<u8>,
    limit: usize,
}

impl Restored {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), CompactError> {
        let needed = self.bytes.len() + bytes.len();
        if needed > self.limit {
            return Err(CompactError::TooLarge(self.limit));
        }
        if needed > self.bytes.capacity() {
            // doubles as a vector would, but not past the bound
            let capacity = (2 * self.bytes.capacity()).clamp(needed, self.limit);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn push_hex(&mut self, bytes: &[u8]) -> Result<(), CompactError> {
        let mut text = [0; 128];
        for piece in bytes.chunks(64) {
            let text = text.get_mut(..2 * piece.len()).unwrap_or_default();
            if hex::encode_to_slice(piece, text).is_err() {
                return Err(CompactError::Malformed("hex"));
            }
            self.push(text)?;
        }
        Ok(())
    }
}
