//! Measurement logs in as few bytes as they need, restored to the byte.
//!
//! What both sides can compute is not sent: the template hashes of an IMA log, the digests of a UEFI log that are hashes of
//! the event's own data. What cannot be compressed (digests, signatures) is kept apart from what can (names, event data),
//! which goes through zstd with a dictionary of what such logs usually hold. What both sides already have, a
//! [`Reference`] made from a policy or from a golden machine, costs an index.
//!
//! Packing is total: it takes any bytes, and what the columns cannot restore exactly goes as it is. Unpacking trusts
//! nothing: it allocates no more than the caller's bound and its input, and never panics. It does not prove anything
//! either: wrong bytes are found by replaying the log to the quoted PCRs.

mod bytes;
mod frame;
mod ima;
mod reference;
mod uefi;

pub use ima::{pack_ima, unpack_ima};
pub use reference::{Reference, ReferenceBuilder, ReferenceError};
pub use uefi::{UefiShape, pack_uefi, shape_of_uefi, unpack_uefi};

/// Packed bytes cannot be restored. Whoever sent them is asked again; nothing of them is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// They are more than the caller asked for or is willing to hold.
    #[error("packed bytes expand past the {0} bytes they may become")]
    TooLarge(usize),
    /// They are not what packing makes: damaged, cut, or made up.
    #[error("packed bytes are malformed: {0}")]
    Malformed(&'static str),
    /// They were packed against a reference that is not here; asked again without one, the log comes whole.
    #[error("packed bytes name a reference that is not the one at hand")]
    UnknownReference,
}
