//! How an attester is set, what goes in and what comes out.

use std::time::Duration;

use crate::exchange::Delivery;
use crate::messages::limits::MAX_TICKET;
use crate::messages::{
    Accepted, Activation, Blob, Bounded, Challenge, Digest, Down, Enrol, Evidence, Later, Need, Nonce,
    NotYet, Proof, Prove, Ready, Refused, State, Statement, Up,
};
use crate::topics::Via;

/// How a device behaves; from its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// First wait for an answer to an introduction; doubles.
    pub first_retry: Duration,
    /// Longest wait between introductions.
    pub retry_cap: Duration,
    /// Longest silence to bear, and the longest wait to accept, whatever the bridge says.
    pub silence_cap: Duration,
    /// After waiting so long to be enrolled at the verifier the device registers again, and no oftener.
    pub enrol_again_after: Duration,
    /// Questions answered in a minute. What is asked above that is not answered, for an answer costs the TPM's time and
    /// bytes on the link, and nobody needs more; twice as many may come at once.
    pub answers_per_minute: u32,
    /// Connects only to attest: speaks up at each connection.
    pub sleeps: bool,
    /// Differs per device, so that a fleet spreads.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_secs(10),
            retry_cap: Duration::from_secs(300),
            silence_cap: Duration::from_secs(900),
            enrol_again_after: Duration::from_secs(3600),
            answers_per_minute: 60,
            sleeps: false,
            seed: 0,
        }
    }
}

/// What the shell tells the machine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The broker accepted the connection and the subscriptions.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// A bridge speaks.
    Received(Down),
    /// The work asked for is done; there is one piece at a time.
    Done(Done),
}

/// What the TPM and the logs have to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Give the keys for an [`Enrol`].
    Introduce,
    /// Give the state of this boot for a [`Ready`], with the ticket that was reported last.
    Describe,
    /// Decrypt the registrar's credential and make the auth tag over the device's own id.
    Activate {
        /// The registrar's blob.
        blob: Vec<u8>,
    },
    /// Certify the AK over a session nonce.
    Prove(Prove),
    /// Quote, then read what the challenge wants: in full where it says so, else without what the bridge holds.
    Collect(Challenge),
    /// Read one part of a log: from `offset`, up to `upto` at most, and as much as one payload carries.
    Read(Need),
    /// Sign a statement over the evidence that was sent.
    State {
        /// The question.
        state: State,
        /// The nonce that the evidence answered.
        nonce: Nonce,
        /// SHA-256 of the evidence as encoded.
        evidence: Digest,
        /// The first line of the IMA log that the evidence does not have, when it has lines.
        ima_end: Option<u64>,
    },
}

/// What came of the work.
#[derive(Debug, Clone)]
pub enum Done {
    /// For [`Work::Introduce`].
    Introduced(Enrol),
    /// For [`Work::Describe`].
    Described(Ready),
    /// For [`Work::Activate`].
    Activated(Activation),
    /// For [`Work::Prove`].
    Proved(Proof),
    /// For [`Work::Collect`].
    Collected {
        /// The evidence.
        evidence: Evidence,
        /// The first line of the IMA log that it does not have, where lines were asked for.
        ima_end: Option<u64>,
    },
    /// For [`Work::Read`].
    Read {
        /// The part.
        blob: Blob,
        /// Where the next part begins; the same as this one's offset at the end of the log.
        next: u64,
    },
    /// For [`Work::State`].
    Stated(Statement),
    /// It cannot be done yet; the bridge should know why.
    NotYet(NotYet),
    /// The TPM or the kernel is in another boot than the one described last.
    Rebooted,
    /// It failed; the shell has logged why. Whoever asked asks again.
    Failed,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Publish, to the bridge named or to any.
    Send(Up, Option<Via>, Delivery),
    /// Do this and come back with [`Input::Done`].
    Work(Work),
    /// Something to log, to persist or to end on.
    Report(Report),
}

/// What happened, for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The registrar knows this AK: persist it.
    Enrolled,
    /// A new ticket: persist it for the next [`Work::Describe`].
    Ticket(Bounded<MAX_TICKET>),
    /// The evidence was submitted; the bridge's word on the outcome.
    Accepted(Accepted),
    /// Told to come again.
    Waiting(Later),
    /// Told no.
    Refused(Refused),
    /// So many introductions in a row were not answered.
    Unanswered(u32),
    /// A question of no use: why.
    Ignored(&'static str),
}
