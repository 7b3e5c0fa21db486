//! TPM structures, read strictly.
//!
//! Invariant: a value of these types was complete, within its bounds and without a byte to spare; nothing in here panics or
//! allocates by a length that was only claimed. Only what Keylime's push mode can use is understood: RSA with RSASSA and SHA-256
//! for AKs, RSA and NIST curves for EKs.
//!
//! Place in the flow: bytes of a device -> here -> [`crate::admission`] and [`crate::restore`].
//!
//! Source: TPM 2.0 Library, Part 2 (Structures).

mod attest;
mod public;
mod reader;
mod signature;

pub use attest::{Attest, Attested, ClockInfo, marshal_quote};
pub use public::{AkPublic, AkUnfit, Key, Public};
pub use reader::Malformed;
pub use signature::{RsaSignature, SignatureError};

/// TPM_ALG_SHA256
pub(crate) const ALG_SHA256: u16 = 0x000B;
/// TPM_ALG_NULL
pub(crate) const ALG_NULL: u16 = 0x0010;
/// TPM_ALG_RSASSA
pub(crate) const ALG_RSASSA: u16 = 0x0014;
