//! Evidence made whole again, and held against the verifier's nonce before the verifier sees it.
//!
//! Keylime fails a device for good over evidence that was changed on its way, so the bridge lets through only what is [`Bound`]: signed by the
//! trusted AK over the open challenge's nonce. That is no verdict. Whether values and logs are acceptable is Keylime's to say, and evidence in which a device
//! truthfully reports something bad is bound like any other.
//!
//! ```text
//! attest, signature, PCR values -> bind -----------\
//! clock, signature, PCR values -> restore_brief -> Bound -> ima, uefi: do the logs replay to the quoted PCRs? -> keylime::submit
//!                                                                \-> no: ask for a statement, then submit or drop
//! ```

mod bound;
mod brief;
mod pcrs;
mod uefi;

pub use bound::{Bound, Unbound, bind, certified_name, verify_proof, verify_statement};
pub use brief::restore_brief;
pub use pcrs::pcr_blob;
pub use uefi::{Replayed, UefiReplay};

/// A SHA-256 digest
pub type Digest = [u8; 32];
