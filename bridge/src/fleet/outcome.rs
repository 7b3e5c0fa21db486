//! From Keylime's answers, as the REST client types them, to what the exchange reckons with.

use crate::keylime::{
    Activation, AttestationStatus, Challenged, EvidenceType, Offered as Offering, Proved, SessionOpening,
    Status as VerifierStatus, StatusOutcome, Submission, Unavailable as NoAnswer,
};
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{
    Activated, Command, Done, Offer, Offered, Proven, Registered, Requested, Restoring, Session, Standing,
    Status, Submitted, Unavailable,
};
use keylime_mqtt_schemas::messages::{Nonce, PcrMask, Verdict};
use std::time::Duration;

/// Subtracted from what Keylime says a nonce is good for: the answer has to get there in time
const NONCE_MARGIN: Duration = Duration::from_secs(10);
/// As [`NONCE_MARGIN`], for challenges, which are good for half an hour
const CHALLENGE_MARGIN: Duration = Duration::from_secs(30);
/// When Keylime does not say when the next attestation is due; too early costs one 429 that does say it
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(10);
/// The code that unpacks ended in a panic
pub(super) const UNPACKING_FAILED: &str = "unpacking it failed in the bridge";
/// When a 429 does not say how long
const UNKNOWN_BLOCK: Duration = Duration::from_secs(60);

pub(super) fn unavailable(no_answer: NoAnswer) -> Unavailable {
    Unavailable { retry_after: no_answer.retry_after }
}

pub(super) fn activated(activation: &Activation) -> Activated {
    match *activation {
        Activation::Activated => Activated::Accepted,
        Activation::WrongTag => Activated::WrongTag,
        Activation::Unknown => Activated::Unknown,
        Activation::Unavailable(no_answer) => Activated::Unavailable(unavailable(no_answer)),
    }
}

pub(super) fn session(opening: SessionOpening) -> Session {
    match opening {
        SessionOpening::Opened(opened) => Session::Opened {
            session: opened.session_id,
            nonce: Nonce::from(opened.nonce),
            good_for: less(opened.good_for, NONCE_MARGIN),
        },
        SessionOpening::RateLimited { retry_after, .. } => {
            Session::Wait(retry_after.unwrap_or(UNKNOWN_BLOCK))
        }
        SessionOpening::Unavailable(no_answer) => Session::Unavailable(unavailable(no_answer)),
    }
}

/// All but a token, which needs more than the answer
pub(super) fn unproven(proved: &Proved) -> Proven {
    match *proved {
        Proved::Token { .. } => Proven::Unavailable(Unavailable { retry_after: None }),
        Proved::NotEnrolled => Proven::NotEnrolled,
        Proved::BadProof => Proven::BadProof,
        Proved::SessionGone => Proven::SessionGone,
        Proved::Unavailable(no_answer) => Proven::Unavailable(unavailable(no_answer)),
    }
}

pub(super) fn offered(offering: Offering, now: Time) -> Offered {
    match offering {
        Offering::Challenged(challenged) => match offer(&challenged, now) {
            Some(offer) => Offered::Opened(offer),
            None => Offered::Unavailable(Unavailable { retry_after: None }),
        },
        Offering::NothingRequested => Offered::NothingRequested,
        // another agent's token cannot be had here, so 403 is a token that means nothing any more
        Offering::TokenRejected | Offering::Forbidden => Offered::TokenRejected,
        Offering::NotEnrolled => Offered::NotEnrolled,
        Offering::Conflict => Offered::Conflict,
        Offering::Early { retry_after } => Offered::Early(retry_after.unwrap_or(UNKNOWN_INTERVAL)),
        Offering::Invalid { detail } => Offered::Invalid(detail),
        Offering::Unavailable(no_answer) => Offered::Unavailable(unavailable(no_answer)),
    }
}

fn offer(challenged: &Challenged, now: Time) -> Option<Offer> {
    let requested = challenged.order.iter().map(|kind| match kind {
        EvidenceType::TpmQuote => Requested::Quote,
        EvidenceType::UefiLog => Requested::Uefi,
        EvidenceType::ImaLog => Requested::Ima { offset: challenged.ima_offset.unwrap_or(0) },
    });
    Some(Offer {
        index: challenged.index,
        nonce: Nonce::from(challenged.nonce),
        pcrs: PcrMask::try_from(challenged.pcr_mask).ok()?,
        requested: requested.collect(),
        expires_at: now + less(challenged.good_for, CHALLENGE_MARGIN),
    })
}

/// The order in which the verifier wants what it asked for
pub(super) fn order(offer: &Offer) -> Vec<EvidenceType> {
    let kind = |requested: &Requested| match requested {
        Requested::Quote => EvidenceType::TpmQuote,
        Requested::Uefi => EvidenceType::UefiLog,
        Requested::Ima { .. } => EvidenceType::ImaLog,
    };
    offer.requested.iter().map(kind).collect()
}

pub(super) fn status(outcome: StatusOutcome) -> Status {
    match outcome {
        StatusOutcome::Known(known) => Status::Standing(standing(&known)),
        StatusOutcome::TokenRejected | StatusOutcome::Forbidden => Status::TokenRejected,
        StatusOutcome::Gone => Status::Gone,
        StatusOutcome::Unavailable(no_answer) => Status::Unavailable(unavailable(no_answer)),
    }
}

fn standing(status: &VerifierStatus) -> Standing {
    Standing {
        verdict: match status.attestation_status {
            AttestationStatus::Pending => Verdict::Pending,
            AttestationStatus::Pass => Verdict::Pass,
            AttestationStatus::Fail => Verdict::Fail,
            AttestationStatus::Timeout => Verdict::Timeout,
            AttestationStatus::Unknown => Verdict::Unknown,
        },
        attestation_count: status.attestation_count,
        last_success: status.last_successful_attestation,
        interval: status.interval(),
    }
}

pub(super) fn submitted(submission: Submission) -> Submitted {
    match submission {
        Submission::Accepted { seconds_to_next } => {
            Submitted::Accepted(seconds_to_next.map_or(UNKNOWN_INTERVAL, Duration::from_secs))
        }
        Submission::AlreadyAccepted => Submitted::AlreadyAccepted,
        Submission::Superseded => Submitted::Superseded,
        Submission::TokenRejected | Submission::Forbidden => Submitted::TokenRejected,
        Submission::Gone => Submitted::Gone,
        Submission::Invalid { detail } => Submitted::Invalid(detail),
        Submission::Unavailable(no_answer) => Submitted::Unavailable(unavailable(no_answer)),
    }
}

/// The answer to a command whose execution failed
pub(super) fn broken(command: &Command) -> Option<Done> {
    let unavailable = Unavailable { retry_after: None };
    Some(match command {
        Command::Register(_) => Done::Registered(Registered::Unavailable(unavailable)),
        Command::Activate { .. } => Done::Activated(Activated::Unavailable(unavailable)),
        Command::Withdraw => Done::Withdrawn,
        Command::OpenSession { .. } => Done::Session(Session::Unavailable(unavailable)),
        Command::Prove { .. } => Done::Proven(Proven::Unavailable(unavailable)),
        Command::CheckStatement { .. } => Done::StatementChecked(None),
        Command::ReadStatus { .. } => Done::Status(Status::Unavailable(unavailable)),
        Command::Offer { .. } => Done::Offered(Offered::Unavailable(unavailable)),
        Command::FindUefi(_) => Done::UefiFound(false),
        Command::Unpack(_) => Done::Unpacked(Err(UNPACKING_FAILED)),
        Command::KeepUefi(..) => return None,
        Command::Restore(_) => Done::Restored(Restoring::Unbound("restoring it failed in the bridge")),
        Command::Submit { .. } => Done::Submitted(Submitted::Unavailable(unavailable)),
    })
}

/// Whether Keylime got a device further, or said why it does not
///
/// A session that opens is no sign of that: one precedes each proof, however long proofs have been failing.
pub(super) fn served(done: &Done) -> bool {
    match done {
        Done::Registered(registered) => matches!(registered, Registered::Refused(_)),
        Done::Activated(activated) => !matches!(activated, Activated::Unavailable(_)),
        Done::Proven(proven) => matches!(proven, Proven::NotEnrolled | Proven::BadProof),
        Done::Status(status) => matches!(status, Status::Standing(_) | Status::Gone),
        Done::Offered(offered) => {
            !matches!(offered, Offered::TokenRejected | Offered::Conflict | Offered::Unavailable(_))
        }
        Done::Submitted(submitted) => {
            !matches!(submitted, Submitted::TokenRejected | Submitted::LogGone | Submitted::Unavailable(_))
        }
        Done::Withdrawn
        | Done::Session(_)
        | Done::StatementChecked(_)
        | Done::UefiFound(_)
        | Done::Unpacked(_)
        | Done::Restored(_) => false,
    }
}

/// Never less than half, however short Keylime makes it
fn less(good_for: Duration, margin: Duration) -> Duration {
    good_for.saturating_sub(margin).max(good_for / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_opens_before_each_failing_proof_does_not_hide_the_trouble_with_proofs() {
        let opened = Session::Opened {
            session: "s".to_owned(),
            nonce: Nonce::from([0; 16]),
            good_for: Duration::from_secs(60),
        };
        let silent = Unavailable { retry_after: None };
        let troubled = [
            Done::Session(opened),
            Done::Proven(Proven::SessionGone),
            Done::Proven(Proven::Unavailable(silent)),
            Done::Offered(Offered::TokenRejected),
        ];
        assert!(!troubled.iter().any(served));
        let well = [
            Done::Offered(Offered::NothingRequested),
            Done::Submitted(Submitted::AlreadyAccepted),
            Done::Activated(Activated::Accepted),
            Done::Proven(Proven::NotEnrolled),
        ];
        assert!(well.iter().all(served));
    }
}
