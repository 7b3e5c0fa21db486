//! CBOR in one form: RFC 8949 §4.2.1 core deterministic encoding, integer keys, hard limits.
//!
//! Decoding first walks the bytes without allocating, within [`MAX_DEPTH`] and [`MAX_ITEMS`]; then serde builds the
//! message; then the message is encoded again and must give the very same bytes. Whatever is not deterministic
//! (duplicate or unordered keys, indefinite lengths, long forms of short numbers, text keys, trailing bytes) fails
//! that last comparison, so no form but one is ever accepted and a digest over the bytes is a digest over the meaning.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest whole message in bytes, after reassembly. Evidence with its part of the IMA log is the largest.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Messages nest three deep; more is an attack on the stack.
pub const MAX_DEPTH: usize = 6;
/// Items (numbers, strings, maps) in one message; the largest message has some thirty.
pub const MAX_ITEMS: usize = 256;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Larger than [`MAX_MESSAGE`], or than messages of its kind may be on this connection.
    #[error("{0} bytes are more than such a message may have")]
    TooLarge(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested too deeply")]
    TooDeep,
    /// More than [`MAX_ITEMS`] items.
    #[error("too many items")]
    TooManyItems,
    /// The bytes end early, or a length points past their end.
    #[error("truncated")]
    Truncated,
    /// A form that the protocol does not use: indefinite length, tag, float, negative number, null, reserved value.
    #[error("a form of CBOR that the protocol does not use")]
    Form,
    /// Bytes behind the message.
    #[error("bytes behind the message")]
    Trailing,
    /// Not one of the messages: wrong kind, type, length or an unknown key.
    #[error("not a message of this protocol")]
    Shape,
    /// A message, but not in its deterministic encoding.
    #[error("not in deterministic encoding")]
    NotDeterministic,
    /// A value that this program made cannot be encoded; a defect here.
    #[error("the message cannot be encoded")]
    Encode,
}

/// Encodes a message in its one form.
///
/// # Errors
/// [`CodecError::TooLarge`] when the message passes [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = serde_cbor::ser::to_vec_packed(message).map_err(|_| CodecError::Encode)?;
    if bytes.len() > MAX_MESSAGE { Err(CodecError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// Decodes a message, refusing every form but the deterministic one. Costs no more than twice the bytes in memory.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let mut walk = Walk { rest: bytes, items: 0 };
    walk.item(0)?;
    if !walk.rest.is_empty() {
        return Err(CodecError::Trailing);
    }
    let message: T = serde_cbor::from_slice(bytes).map_err(|_| CodecError::Shape)?;
    if encode(&message)? == bytes { Ok(message) } else { Err(CodecError::NotDeterministic) }
}

/// Walks well-formed CBOR without building anything.
struct Walk<'a> {
    rest: &'a [u8],
    items: usize,
}

impl<'a> Walk<'a> {
    fn item(&mut self, depth: usize) -> Result<(), CodecError> {
        if depth > MAX_DEPTH {
            return Err(CodecError::TooDeep);
        }
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Err(CodecError::TooManyItems);
        }
        let initial = self.take(1)?.first().copied().unwrap_or_default();
        // RFC 8949 §3: major type in the high three bits, argument in the low five
        let (major, low) = (initial >> 5, initial & 0x1f);
        match major {
            0 => self.argument(low).map(|_| ()),
            2 | 3 => {
                let length = usize::try_from(self.argument(low)?).map_err(|_| CodecError::Truncated)?;
                self.take(length).map(|_| ())
            }
            4 | 5 => {
                let count = self.argument(low)?;
                let items = if major == 5 { count.checked_mul(2) } else { Some(count) };
                for _ in 0..items.ok_or(CodecError::TooManyItems)? {
                    self.item(depth + 1)?;
                }
                Ok(())
            }
            // false, true; what is absent is left out, so there is no null
            7 if matches!(low, 20 | 21) => Ok(()),
            _ => Err(CodecError::Form),
        }
    }

    fn argument(&mut self, low: u8) -> Result<u64, CodecError> {
        let width = match low {
            0..=23 => return Ok(u64::from(low)),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(CodecError::Form),
        };
        Ok(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodecError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}
