//! Larger messages travel in parts.
//!
//! A payload is either a whole message (a CBOR map) or a fragment (a CBOR array `[message, index, count, part]`).
//! `message` is a number by which the sender tells its messages apart. All parts of a message but the last have one
//! size. A newer message of the same sender replaces an unfinished one: there is one [`Reassembly`] per device and it
//! holds one message, so a device can hold at most [`MAX_MESSAGE`] bytes of the bridge, and only until [`LIFETIME`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, MAX_MESSAGE, decode, encode};
use crate::exchange::Time;
use crate::messages::Bounded;

/// Fits every broker in use except those tuned down, with topic and headers.
pub const DEFAULT_PAYLOAD: usize = 15 * 1024;
/// AWS IoT Core cuts the connection above 128 KB.
pub const MAX_PAYLOAD: usize = 120 * 1024;
/// Below this a large log would take too many parts.
pub const MIN_PAYLOAD: usize = 512;
/// What is not complete by then never will be: a link of 30 kbit/s carries [`MAX_MESSAGE`] in five minutes.
pub const LIFETIME: Duration = Duration::from_secs(600);
/// Most parts of one message: [`MAX_MESSAGE`] in parts of [`MIN_PAYLOAD`].
const MAX_PARTS: u16 = 2200;
/// What the array around a part costs: its head, three numbers and the length of the part.
const FRAME: usize = 1 + 5 + 3 + 3 + 5;

#[derive(Serialize, Deserialize)]
struct Fragment(u32, u16, u16, Bounded<MAX_PAYLOAD>);

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// Larger than any payload of this protocol.
    #[error("{0} bytes are more than a payload may have")]
    TooLarge(usize),
    /// Not a fragment.
    #[error("not a fragment: {0}")]
    Codec(#[from] CodecError),
    /// An index beyond the count, no parts at all, or too many.
    #[error("a fragment with an impossible index or count")]
    Count,
    /// Parts that do not fit together: another count or another size.
    #[error("a fragment that does not fit the others of its message")]
    Unequal,
    /// The parts add up to more than a message may have.
    #[error("the parts add up to more than a message may have")]
    MessageTooLarge,
}

/// Cuts an encoded message into payloads of at most `payload` bytes (held within [`MIN_PAYLOAD`] and [`MAX_PAYLOAD`]).
///
/// `message` should differ from those of the sender's messages still on their way.
pub fn split(encoded: Vec<u8>, message: u32, payload: usize) -> Result<Vec<Vec<u8>>, CodecError> {
    let payload = payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
    if encoded.len() <= payload {
        return Ok(vec![encoded]);
    }
    let parts: Vec<&[u8]> = encoded.chunks(payload - FRAME).collect();
    let count = u16::try_from(parts.len()).map_err(|_| CodecError::TooLarge(encoded.len()))?;
    (0..count)
        .zip(parts)
        .map(|(index, part)| {
            let part = Bounded::try_from(part.to_vec()).map_err(|_| CodecError::Encode)?;
            encode(&Fragment(message, index, count, part))
        })
        .collect()
}

/// Whether a payload is a part of a message; otherwise it is a whole one.
pub fn is_fragment(payload: &[u8]) -> bool {
    // RFC 8949 §3: major type 4 is an array, and a message is a map
    const ARRAY: u8 = 4;
    payload.first().is_some_and(|initial| initial >> 5 == ARRAY)
}

/// Puts the parts of one device's messages together again.
#[derive(Debug, Default)]
pub struct Reassembly {
    unfinished: Option<Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    message: u32,
    count: u16,
    parts: BTreeMap<u16, Vec<u8>>,
    part_size: Option<usize>,
    held: usize,
    since: Time,
    touched: Time,
}

impl Reassembly {
    /// Takes a payload; gives the encoded message when it is whole.
    ///
    /// A part that came twice is ignored. A refused payload leaves what was gathered before untouched.
    pub fn accept(&mut self, payload: Vec<u8>, now: Time) -> Result<Option<Vec<u8>>, FragmentError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(FragmentError::TooLarge(payload.len()));
        }
        if !is_fragment(&payload) {
            return Ok(Some(payload));
        }
        self.expire(now);
        let Fragment(message, index, count, part) = decode(&payload)?;
        if index >= count || count > MAX_PARTS || part.as_slice().is_empty() {
            return Err(FragmentError::Count);
        }
        if self.unfinished.as_ref().is_none_or(|unfinished| unfinished.message != message) {
            self.unfinished = Some(Unfinished::new(message, count, now));
        }
        let Some(unfinished) = &mut self.unfinished else { return Ok(None) };
        unfinished.place(index, count, part.into_vec())?;
        unfinished.touched = now;
        if unfinished.parts.len() < usize::from(unfinished.count) {
            return Ok(None);
        }
        let whole =
            self.unfinished.take().map(|unfinished| unfinished.parts.into_values().flatten().collect());
        Ok(whole)
    }

    /// Bytes held for a message that is not whole.
    pub fn held(&self) -> usize {
        self.unfinished.as_ref().map_or(0, |unfinished| unfinished.held)
    }

    /// When the last part of an unfinished message came.
    pub fn touched(&self) -> Option<Time> {
        self.unfinished.as_ref().map(|unfinished| unfinished.touched)
    }

    /// Forgets what has been unfinished for longer than [`LIFETIME`]; says whether there was something.
    pub fn expire(&mut self, now: Time) -> bool {
        self.unfinished.take_if(|unfinished| now.saturating_sub(unfinished.since) > LIFETIME).is_some()
    }

    /// Forgets what is unfinished, to make room.
    pub fn clear(&mut self) {
        self.unfinished = None;
    }
}

impl Unfinished {
    fn new(message: u32, count: u16, since: Time) -> Self {
        Self { message, count, parts: BTreeMap::new(), part_size: None, held: 0, since, touched: since }
    }

    fn place(&mut self, index: u16, count: u16, part: Vec<u8>) -> Result<(), FragmentError> {
        let last = index + 1 == count;
        // whichever comes first, the last part is not larger than the others
        let fits = match self.part_size {
            Some(size) if last => part.len() <= size,
            Some(size) => part.len() == size,
            None => last || self.parts.values().all(|held| held.len() <= part.len()),
        };
        if count != self.count || !fits {
            return Err(FragmentError::Unequal);
        }
        if self.parts.contains_key(&index) {
            return Ok(());
        }
        if self.held + part.len() > MAX_MESSAGE {
            return Err(FragmentError::MessageTooLarge);
        }
        if !last {
            self.part_size = Some(part.len());
        }
        self.held += part.len();
        self.parts.insert(index, part);
        Ok(())
    }
}
