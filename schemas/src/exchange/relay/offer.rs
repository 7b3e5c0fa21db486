//! What the verifier wants, and what it is given.

use std::sync::Arc;

use crate::exchange::Time;
use crate::messages::{Digest, Nonce, PcrMask, Signed};

/// One kind of evidence that the verifier asked for, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Requested {
    /// A TPM quote.
    Quote,
    /// The UEFI log.
    Uefi,
    /// The IMA log from a line on.
    Ima {
        /// The first line wanted.
        offset: u64,
    },
}

/// An attestation that the verifier has opened and waits for. It is named by index *and* nonce: the index alone
/// starts again at 0 when an operator adds a device anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Keylime's index of the attestation.
    pub index: u64,
    /// Its nonce.
    pub nonce: Nonce,
    /// PCRs to quote.
    pub pcrs: PcrMask,
    /// What to send, in order.
    pub requested: Vec<Requested>,
    /// When the verifier takes no evidence for it any more.
    pub expires_at: Time,
}

impl Offer {
    /// Whether the UEFI log is wanted.
    pub fn wants_uefi(&self) -> bool {
        self.requested.contains(&Requested::Uefi)
    }

    /// The first IMA line wanted.
    pub fn ima_offset(&self) -> Option<u64> {
        self.requested.iter().find_map(|requested| match requested {
            Requested::Ima { offset } => Some(*offset),
            Requested::Quote | Requested::Uefi => None,
        })
    }
}

/// PCR 10 after so many lines of the IMA log, as a passed attestation left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImaState {
    /// Lines replayed.
    pub entries: u64,
    /// PCR 10 in the SHA-256 bank.
    pub pcr10: Digest,
}

/// Evidence as the verifier takes it, bound to its offer by the signature that was checked.
///
/// It does not prove that the logs are what the device measured (one that does not explain the quote needs a statement
/// before it is submitted), that the values are good ones, or that Keylime will pass it: that is Keylime's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// TPMS_ATTEST and TPMT_SIGNATURE.
    pub quote: Signed,
    /// The quoted PCRs' values in tpm2-tools' layout.
    pub pcr_blob: Vec<u8>,
    /// IMA lines from the line that the verifier named.
    pub ima: Option<Arc<Vec<u8>>>,
    /// The UEFI log, by its digest.
    pub uefi: Option<Digest>,
}

impl Restored {
    /// Bytes of logs.
    pub fn held(&self) -> usize {
        self.lines().len()
    }

    /// The IMA lines, none where none were wanted.
    pub fn lines(&self) -> &[u8] {
        self.ima.as_ref().map_or(&[], |lines| lines.as_slice())
    }
}
