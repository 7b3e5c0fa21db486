//! What a relay asks of its shell and what comes back: Keylime's answers, restored evidence, checked signatures.
//!
//! There is at most one [`Command`] under way per device; each is answered by exactly one [`Done`] of its kind.

use std::sync::Arc;
use std::time::Duration;

use super::facts::{Facts, Token};
use super::offer::{ImaState, Offer, Restored};
use super::unpack::{ImaParts, Unpack};
use crate::messages::limits::{MAX_PUBLIC, MAX_TICKET};
use crate::messages::{
    AkName, AuthTag, Bounded, Digest, Enrol, Nonce, PcrValues, Quote, RefusedReason, Signed, Verdict,
};

/// What the shell is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Judge admission, then register the keys. Answered by [`Done::Registered`].
    Register(Enrol),
    /// Have the registrar forget a registration that was not activated, by an activation that cannot be right.
    /// Answered by [`Done::Withdrawn`].
    Withdraw,
    /// Activate. Answered by [`Done::Activated`].
    Activate {
        /// The device's.
        auth_tag: AuthTag,
    },
    /// Open a session, inside the budget. Answered by [`Done::Session`].
    OpenSession {
        /// The AK that it claims was proven before.
        known: bool,
    },
    /// Give the verifier a proof; seal a ticket when it passes. Answered by [`Done::Proven`].
    ///
    /// First it is checked here: a proof that was changed on the way would use up the session, and with each the time
    /// until the device may have another.
    Prove {
        /// Keylime's session id.
        session: String,
        /// TPM2_Certify over the session nonce.
        proof: Signed,
        /// The session nonce.
        nonce: Nonce,
        /// TPM2B_PUBLIC of the AK that the device claims.
        ak_public: Bounded<MAX_PUBLIC>,
    },
    /// Check a quote of no PCRs over `expected`: that the holder of this AK said these words. It does not prove that they are
    /// true, when they were said, or that the AK is the device's: see [`crate::statement`]. Answered by [`Done::StatementChecked`].
    CheckStatement {
        /// The quote.
        statement: Signed,
        /// What its extraData must be.
        expected: Digest,
        /// TPM2B_PUBLIC of the AK.
        ak_public: Bounded<MAX_PUBLIC>,
    },
    /// Read how the verifier sees the device. Answered by [`Done::Status`].
    ReadStatus {
        /// The device's session token.
        token: Token,
    },
    /// Offer what the device has and get a nonce. Answered by [`Done::Offered`].
    Offer {
        /// The device's session token.
        token: Token,
        /// What it has.
        facts: Box<Facts>,
    },
    /// Look for a UEFI log in the cache. Answered by [`Done::UefiFound`].
    FindUefi(Digest),
    /// Unpack a log. Answered by [`Done::Unpacked`].
    Unpack(Unpack),
    /// Keep a UEFI log. Not answered.
    KeepUefi(Digest, Vec<u8>),
    /// Restore evidence and check what the signature binds. Answered by [`Done::Restored`].
    Restore(Box<Restore>),
    /// Submit to the index of the offer. Answered by [`Done::Submitted`].
    Submit {
        /// The device's session token.
        token: Token,
        /// Where to.
        offer: Offer,
        /// What.
        restored: Arc<Restored>,
    },
}

/// What evidence is restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// What was asked.
    pub offer: Offer,
    /// What came.
    pub quote: Quote,
    /// The statement of this boot, checked: a quote has its `resetCount`, and what a brief one leaves out is as there.
    pub boot_statement: Signed,
    /// TPM2B_PUBLIC of the trusted AK.
    pub ak_public: Bounded<MAX_PUBLIC>,
    /// The values as far as they are known: those held from before and those that came. With a brief quote and IMA lines
    /// PCR 10 may be missing; it is what the lines lead to.
    pub pcrs: PcrValues,
    /// All IMA lines from the one that the verifier named.
    pub ima: Option<ImaParts>,
    /// The UEFI log that is wanted.
    pub uefi: Option<Digest>,
}

/// Keylime does not answer, or not in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable {
    /// Its `Retry-After`, when it gave one.
    pub retry_after: Option<Duration>,
}

/// What came of a [`Command`].
#[derive(Debug, Clone)]
pub enum Done {
    /// For [`Command::Register`].
    Registered(Registered),
    /// For [`Command::Activate`].
    Activated(Activated),
    /// For [`Command::Withdraw`], whatever came of it.
    Withdrawn,
    /// For [`Command::OpenSession`].
    Session(Session),
    /// For [`Command::Prove`].
    Proven(Proven),
    /// For [`Command::CheckStatement`].
    StatementChecked(Option<StatedAt>),
    /// For [`Command::ReadStatus`].
    Status(Status),
    /// For [`Command::Offer`].
    Offered(Offered),
    /// For [`Command::FindUefi`].
    UefiFound(bool),
    /// For [`Command::Unpack`]: the log, or why it is of no use.
    Unpacked(Result<Vec<u8>, &'static str>),
    /// For [`Command::Restore`].
    Restored(Restoring),
    /// For [`Command::Submit`].
    Submitted(Submitted),
}

/// The registrar on a registration.
#[derive(Debug, Clone)]
pub enum Registered {
    /// Registered; the blob to activate.
    Credential(Vec<u8>),
    /// More devices register just now than the bridge lets.
    Wait(Duration),
    /// Not admitted, or the registrar refused.
    Refused(RefusedReason),
    /// No answer.
    Unavailable(Unavailable),
}

/// The registrar on an activation.
#[derive(Debug, Clone, Copy)]
pub enum Activated {
    /// Active.
    Accepted,
    /// The tag was wrong and the record is gone.
    WrongTag,
    /// No such record.
    Unknown,
    /// No answer.
    Unavailable(Unavailable),
}

/// The verifier on a new session.
#[derive(Debug, Clone)]
pub enum Session {
    /// Opened.
    Opened {
        /// Keylime's session id.
        session: String,
        /// The nonce to certify over.
        nonce: Nonce,
        /// How long the nonce is good.
        good_for: Duration,
    },
    /// The budget or the verifier's limit says: not now.
    Wait(Duration),
    /// No answer.
    Unavailable(Unavailable),
}

/// The verifier on a proof.
#[derive(Debug, Clone)]
pub enum Proven {
    /// It passed.
    Token {
        /// The session token.
        token: Token,
        /// The AK name inside the certification that passed.
        certified: AkName,
        /// Token and name, sealed for the device to keep.
        ticket: Option<Bounded<MAX_TICKET>>,
    },
    /// It was never given to the verifier: changed on the way, of another key than `Ready` named, or over another nonce.
    Unbound(&'static str),
    /// The verifier does not know the device.
    NotEnrolled,
    /// Another AK than the enrolled one.
    BadProof,
    /// The session is gone.
    SessionGone,
    /// No answer.
    Unavailable(Unavailable),
}

/// When a TPM signed a statement, as its own counters have it: later ones of one TPM are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatedAt {
    /// TPMS_CLOCK_INFO's `resetCount`.
    pub resets: u32,
    /// Its `restartCount`.
    pub restarts: u32,
    /// Its `clock`, milliseconds.
    pub clock: u64,
}

/// How the verifier sees a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// PENDING, PASS, FAIL or TIMEOUT.
    pub verdict: Verdict,
    /// Its count of attestations.
    pub attestation_count: u64,
    /// Its time of the last success, Unix seconds; 0 for none.
    pub last_success: u64,
    /// Its interval between attestations, when it names it.
    pub interval: Option<Duration>,
}

impl Standing {
    /// Whether it had a success since `before`.
    pub fn is_beyond(&self, before: Self) -> bool {
        self.attestation_count > before.attestation_count || self.last_success > before.last_success
    }
}

/// The verifier on the status of a device.
#[derive(Debug, Clone, Copy)]
pub enum Status {
    /// This.
    Standing(Standing),
    /// The token is not good any more.
    TokenRejected,
    /// It does not know the device.
    Gone,
    /// No answer.
    Unavailable(Unavailable),
}

/// The verifier on an offer.
#[derive(Debug, Clone)]
pub enum Offered {
    /// Opened.
    Opened(Offer),
    /// No policy: nothing is asked for.
    NothingRequested,
    /// The token is not good any more.
    TokenRejected,
    /// It does not know the device.
    NotEnrolled,
    /// Before the interval has passed.
    Early(Duration),
    /// Another request for this device was under way.
    Conflict,
    /// It cannot use what was offered; Keylime's words.
    Invalid(String),
    /// No answer.
    Unavailable(Unavailable),
}

/// What restoring found.
#[derive(Debug, Clone)]
pub enum Restoring {
    /// The signature binds it to the offer, and the logs explain the quote.
    Explained {
        /// The evidence.
        restored: Arc<Restored>,
        /// The quoted values.
        pcrs: PcrValues,
        /// PCR 10 where the quote was taken.
        ima: Option<ImaState>,
    },
    /// The signature binds it, but a log does not explain the quote: a statement is needed.
    Unexplained {
        /// The evidence.
        restored: Arc<Restored>,
        /// The quoted values.
        pcrs: PcrValues,
        /// What is not explained.
        what: &'static str,
    },
    /// What the brief form left out was guessed wrong, or it was changed on the way: the full form is needed.
    Refuted,
    /// The quote's `resetCount` is not that of the boot's statement.
    OtherBoot,
    /// The signature does not bind it, or the clock is not safe.
    Unbound(&'static str),
    /// Its IMA lines cannot be unpacked.
    Unreadable(&'static str),
}

/// The verifier on evidence.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// Taken; time to the next attestation.
    Accepted(Duration),
    /// Taken before: an earlier answer was lost.
    AlreadyAccepted,
    /// Another attestation was opened since, or this one ran out.
    Superseded,
    /// The token is not good any more.
    TokenRejected,
    /// The attestation is gone: the device was removed or added anew.
    Gone,
    /// The UEFI log is not held any more, so nothing was submitted.
    LogGone,
    /// It cannot use it; Keylime's words.
    Invalid(String),
    /// No answer.
    Unavailable(Unavailable),
}
