//! Evidence made whole again, and held against the verifier's nonce before the verifier sees it.
//!
//! Keylime fails a device for good over evidence that was changed on its way, so the bridge lets through only what is [`Bound`]: signed by the
//! trusted AK over the open challenge's nonce. That is no verdict. Whether values and logs are acceptable is Keylime's to say, and evidence in which a device
//! truthfully reports something bad is bound like any other.
//!
//! ```text
//! attest, signature, PCR values -> bind -> Bound -> ima, uefi: do the logs replay to the quoted PCRs? -> keylime::submit
//!                                                                \-> no: ask for a statement, then submit or drop
//! ```

mod bound;
mod ima;
mod pcrs;
mod uefi;

pub use bound::{Bound, Unbound, bind, certified_name, verify_statement};
pub use ima::{ImaReplay, ImaState, follows_from_pcr, replay_ima};
pub use pcrs::{PcrValues, pcr_blob};
pub use uefi::{UefiReplay, replay_uefi};

/// A SHA-256 digest
pub type Digest = [u8; 32];

/// Why a log does not explain the quoted PCRs
///
/// Not a verdict either: a tampered device and a tampered message look the same here, and only the device's statement tells them apart.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum Unexplained {
    /// The log cannot be read
    #[error("the log is malformed at entry {0}")]
    Malformed(u64),
    /// The log can be read but an entry's hash cannot be recomputed
    #[error("the log's entry {0} is of a template that is not known here")]
    UnknownTemplate(u64),
    /// The log replays to other values; bit n for PCR n
    #[error("the log does not replay to the quoted values of PCRs {0:#x}")]
    Differs(u32),
    /// The PCR that the log explains was not quoted
    #[error("the quote lacks the PCR that the log explains")]
    NotQuoted,
}
