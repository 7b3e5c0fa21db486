//! Between payloads and messages: codec and fragments together, with what each direction may do.
//!
//! A device's answers may be fragmented; its first words (`Enrol`, `Ready`, `Hello`) and everything from a bridge may not.

use crate::codec::{CodecError, decode, encode};
use crate::exchange::Time;
use crate::fragment::{FragmentError, Reassembly, is_fragment, split};
use crate::messages::limits::MAX_FIRST_CONTACT;
use crate::messages::{Down, Up};

/// Why a payload from a device is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The payload or its fragments.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// The message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// `Enrol`, `Ready` or `Hello` in fragments, or one of the first two above [`MAX_FIRST_CONTACT`].
    #[error("a first contact in fragments or above {MAX_FIRST_CONTACT} bytes")]
    FirstContact,
}

/// A device's message as payloads of at most `payload` bytes each. `message` tells its fragments from other messages'.
///
/// # Errors
/// [`CodecError::TooLarge`] for a message that may not be sent: above the codec's limit, or a first contact that does
/// not fit one payload.
pub fn pack_up(up: &Up, message: u32, payload: usize) -> Result<Vec<Vec<u8>>, CodecError> {
    let encoded = encode(up)?;
    let size = encoded.len();
    let payloads = split(encoded, message, payload)?;
    if is_too_much_unasked(up, payloads.len() > 1, size) {
        return Err(CodecError::TooLarge(size));
    }
    Ok(payloads)
}

/// A payload from a device; gives the message once it is whole.
pub fn unpack_up(payload: Vec<u8>, reassembly: &mut Reassembly, now: Time) -> Result<Option<Up>, WireError> {
    let in_fragments = is_fragment(&payload);
    let Some(encoded) = reassembly.accept(payload, now)? else { return Ok(None) };
    let up: Up = decode(&encoded)?;
    if is_too_much_unasked(&up, in_fragments, encoded.len()) {
        return Err(WireError::FirstContact);
    }
    Ok(Some(up))
}

/// What a device says unasked is small and whole; a `Hello` may fill one payload, for that is what it tries.
fn is_too_much_unasked(up: &Up, in_fragments: bool, size: usize) -> bool {
    match up {
        Up::Enrol(_) | Up::Ready(_) | Up::Unchanged(_) => in_fragments || size > MAX_FIRST_CONTACT,
        Up::Hello(_) => in_fragments,
        _ => false,
    }
}

/// A bridge's message as one payload.
pub fn pack_down(down: &Down) -> Result<Vec<u8>, CodecError> {
    encode(down)
}

/// A payload from a bridge.
pub fn unpack_down(payload: &[u8]) -> Result<Down, CodecError> {
    if payload.len() > MAX_FIRST_CONTACT { Err(CodecError::TooLarge(payload.len())) } else { decode(payload) }
}
