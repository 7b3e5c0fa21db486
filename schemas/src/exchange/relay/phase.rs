//! Where a relay stands with its device. Each phase owns what it needs and nothing else has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::offer::{ImaState, Offer, Restored};
use super::port::Standing;
use crate::exchange::Time;
use crate::messages::{Activation, Blob, Digest, Enrol, Evidence, LogKind, Nonce};

/// A question that is repeated a few times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeat {
    /// When it was asked first; nothing once the device has said that it needs time.
    asked_at: Option<Time>,
    pub(super) sent_at: Time,
    /// When it is due again; nothing once it has been repeated often enough.
    pub(super) next_at: Option<Time>,
    wait: Duration,
    left: u8,
}

impl Repeat {
    pub(super) fn first(now: Time, wait: Duration, left: u8) -> Self {
        Self { asked_at: Some(now), sent_at: now, next_at: Some(now + wait), wait, left }
    }

    /// The state after one more repeat, of which the next is no further than `most`; nothing when there were enough.
    pub(super) fn again(self, most: Duration) -> Option<Self> {
        let sent_at = self.next_at?;
        let left = self.left.checked_sub(1)?;
        let wait = self.wait.saturating_mul(2).min(most);
        Some(Self { sent_at, next_at: Some(sent_at.saturating_add(wait)), wait, left, ..self })
    }

    /// No more repeats; the device has to speak.
    pub(super) fn spent(self) -> Self {
        Self { next_at: None, left: 0, ..self }
    }

    /// Due at `at` rather than when it was.
    pub(super) fn postponed(self, at: Time) -> Self {
        Self { asked_at: None, next_at: Some(at), ..self }
    }

    /// Sent now rather than when it was due.
    pub(super) fn at(self, now: Time) -> Self {
        Self { sent_at: now, next_at: Some(now + self.wait), ..self }
    }
}

/// IMA lines taken up before the quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gathered {
    /// The line the verifier named.
    pub(super) from: u64,
    /// The first line not held.
    pub(super) next: u64,
    pub(super) lines: Arc<Vec<u8>>,
}

/// A log on its way up, part by part.
#[derive(Debug)]
pub(super) struct Gather {
    pub(super) offer: Offer,
    pub(super) log: LogKind,
    /// Bytes of the packed UEFI log; IMA lines go to [`Gathered`].
    pub(super) uefi: Vec<u8>,
    /// Bytes of the whole packed UEFI log, once a part has said so.
    pub(super) total: Option<u64>,
    /// Where the batch that was asked for ends.
    pub(super) upto: u64,
    pub(super) repeat: Repeat,
    /// Parts that came while the one before them was unpacked.
    pub(super) ahead: VecDeque<Blob>,
}

impl Gather {
    /// Bytes held: packed ones, for lines are in [`Gathered`].
    pub(super) fn held(&self) -> usize {
        self.uefi.len() + self.bytes_ahead()
    }

    pub(super) fn bytes_ahead(&self) -> usize {
        self.ahead.iter().map(|blob| blob.part.as_slice().len()).sum()
    }
}

/// Evidence was submitted; the outcome is read.
#[derive(Debug, Clone)]
pub(super) struct Settling {
    pub(super) offer: Offer,
    pub(super) ima: Option<ImaState>,
    /// The standing before it was submitted.
    pub(super) before: Option<Standing>,
    pub(super) submitted_at: Time,
    pub(super) next_at: Time,
    pub(super) reads: u32,
}

/// Evidence that is bound to its offer, may be submitted, and has not reached the verifier.
#[derive(Debug, Clone)]
pub(super) struct Unsubmitted {
    pub(super) offer: Offer,
    pub(super) restored: Arc<Restored>,
    pub(super) ima: Option<ImaState>,
    /// The standing before it was submitted first: a later one may have its success in it.
    pub(super) before: Option<Standing>,
}

/// What is read from the verifier's status, and what for.
#[derive(Debug)]
pub(super) enum Reading {
    Baseline,
    Outcome(Settling),
    Hold,
    /// Five intervals without evidence from here; the phase goes on afterwards.
    Overdue(Box<Phase>),
}

/// A command under way and what is needed to go on from its answer.
#[derive(Debug)]
pub(super) enum Step {
    Registering(Enrol),
    Activating(Enrol, Vec<u8>, Activation),
    /// The registration before this one.
    Withdrawing(Enrol),
    OpeningSession,
    Proving(Proving),
    CheckingBoot,
    Reading(Reading),
    Offering,
    FindingUefi(Offer),
    Unpacking(Gather),
    Restoring(Offer, Box<Evidence>),
    CheckingStatement(Offer, Arc<Restored>),
    Submitting(Unsubmitted),
}

/// A session that waits for its proof.
#[derive(Debug)]
pub(super) struct Proving {
    pub(super) session: String,
    pub(super) nonce: Nonce,
    pub(super) until: Time,
    pub(super) repeat: Repeat,
}

/// What is tried again after Keylime did not answer.
#[derive(Debug)]
pub(super) enum Retry {
    Proceed,
    Activate(Enrol, Vec<u8>, Activation),
    Submit(Unsubmitted),
    Outcome(Settling),
}

#[derive(Debug, Default)]
pub(super) enum Phase {
    /// The device has to speak.
    #[default]
    Idle,
    Busy(Step),
    /// The device is connected and nothing is known of it: it is asked to speak, unless it does so by itself.
    Greeting {
        at: Time,
    },
    AwaitActivation {
        enrol: Enrol,
        blob: Vec<u8>,
        repeat: Repeat,
    },
    AwaitProof(Proving),
    Gather(Gather),
    AwaitEvidence {
        offer: Offer,
        repeat: Repeat,
        /// The device said that it cannot answer yet.
        told: bool,
    },
    AwaitStatement {
        offer: Offer,
        /// What the statement must be over.
        evidence: Digest,
        restored: Arc<Restored>,
        repeat: Repeat,
    },
    Settling(Settling),
    Resting {
        due: Time,
    },
    /// Rebooted under an IMA policy: waits until it was added again.
    Held {
        check_at: Time,
    },
    Setback {
        retry_at: Time,
        retry: Box<Retry>,
    },
    /// As `Idle`, for a device that passed lately: what led here may not have been its own word.
    Doubting {
        due: Time,
    },
}

impl Phase {
    /// When something is to be done without the device. A device that sleeps is not challenged unasked.
    pub(super) fn due(&self, sleeps: bool) -> Option<Time> {
        match self {
            Self::Idle | Self::Busy(_) => None,
            Self::Resting { .. } if sleeps => None,
            Self::AwaitActivation { repeat, .. } | Self::AwaitProof(Proving { repeat, .. }) => repeat.next_at,
            Self::Gather(Gather { offer, repeat, .. })
            | Self::AwaitEvidence { offer, repeat, .. }
            | Self::AwaitStatement { offer, repeat, .. } => {
                Some(repeat.next_at.map_or(offer.expires_at, |at| at.min(offer.expires_at)))
            }
            Self::Settling(Settling { next_at: at, .. })
            | Self::Greeting { at }
            | Self::Resting { due: at }
            | Self::Held { check_at: at }
            | Self::Doubting { due: at }
            | Self::Setback { retry_at: at, .. } => Some(*at),
        }
    }

    /// Whether Keylime was silent on evidence that it may have.
    pub(super) fn has_submitted(&self) -> bool {
        matches!(self, Self::Setback { retry, .. } if matches!(**retry, Retry::Submit(_) | Retry::Outcome(_)))
    }

    /// When the question that is open was asked first.
    pub(super) fn asked_at(&self) -> Option<Time> {
        match self {
            Self::AwaitActivation { repeat, .. }
            | Self::AwaitProof(Proving { repeat, .. })
            | Self::Gather(Gather { repeat, .. })
            | Self::AwaitEvidence { repeat, .. }
            | Self::AwaitStatement { repeat, .. } => repeat.asked_at,
            _ => None,
        }
    }

    /// Bytes of logs in it.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Gather(gather) | Self::Busy(Step::Unpacking(gather)) => gather.held(),
            Self::AwaitStatement { restored, .. } | Self::Busy(Step::CheckingStatement(_, restored)) => {
                restored.held()
            }
            Self::Busy(Step::Reading(Reading::Overdue(phase))) => phase.held(),
            Self::Busy(Step::Submitting(unsubmitted)) => unsubmitted.restored.held(),
            Self::Busy(Step::Restoring(_, evidence)) => {
                evidence.ima.as_ref().map_or(0, |segment| segment.packed.as_slice().len())
            }
            Self::Setback { retry, .. } => match &**retry {
                Retry::Submit(unsubmitted) => unsubmitted.restored.held(),
                Retry::Proceed | Retry::Activate(..) | Retry::Outcome(_) => 0,
            },
            _ => 0,
        }
    }
}
