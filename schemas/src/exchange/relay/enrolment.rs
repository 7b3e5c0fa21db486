//! Enrolment: admission and registration, one at a time; activation only for the blob posted last.
//!
//! The registrar deletes a record on a wrong tag and every POST kills the outstanding blob, so a repeated `Enrol`
//! gets the same credential again, and an activation for any other blob never reaches the registrar.

use std::time::Duration;

use super::phase::{Phase, Repeat, Retry, Step};
use super::port::{Activated, Command, Registered};
use super::{LEAST_BETWEEN_REGISTRATIONS, Notice, Relay, Time, doubled};
use crate::messages::{
    Activation, AkName, Bounded, Credential, Digest, Enrol, Enrolled, LaterReason, Question, RefusedReason,
    Verdict,
};

/// An enrolment that was refused: the same again gets the same answer until its time is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefusedEnrolment {
    enrol: Digest,
    reason: RefusedReason,
    until: Time,
}

impl Relay {
    pub(super) fn enrol(&mut self, enrol: Enrol, now: Time) {
        let proven = AkName::of_public(enrol.ak_public.as_slice()).is_some_and(|ak| self.trusts(ak));
        if proven && self.token.is_some() && !matches!(self.phase, Phase::Busy(_)) {
            // the verifier itself has taken this AK's proof: nothing to register
            self.send(Question::Enrolled(Enrolled {}));
            return;
        }
        let open = match &self.phase {
            Phase::Busy(_) | Phase::Settling(_) => true,
            Phase::AwaitEvidence { repeat, .. } | Phase::AwaitStatement { repeat, .. } => {
                repeat.next_at.is_some()
            }
            _ => false,
        };
        if open {
            self.dropped("Enrol", "an exchange is under way");
            return;
        }
        self.owes = true;
        match std::mem::take(&mut self.phase) {
            Phase::AwaitActivation { enrol: same, blob, .. } if same == enrol => {
                let repeat = self.repeat(now);
                self.resend_credential(enrol, blob, repeat, now);
            }
            before => {
                self.phase = before;
                self.enrol_anew(enrol, now);
            }
        }
    }

    /// Anything else that was open stays so when nobody is asked: this may not be the device's own.
    fn enrol_anew(&mut self, enrol: Enrol, now: Time) {
        let same = |refused: &RefusedEnrolment| refused.until > now && refused.enrol == named(&enrol);
        if let Some(refused) = self.refused.filter(same) {
            // the result says it already
            return self.say_refused(refused.reason, refused.until.saturating_sub(now));
        }
        if let Some(at) = self.registered_at.map(|at| at + LEAST_BETWEEN_REGISTRATIONS).filter(|at| *at > now)
        {
            self.dropped("Enrol", "sooner than a device may register again");
            return self.later(at.saturating_sub(now), LaterReason::Busy);
        }
        self.registered_at = Some(now);
        self.activated = None;
        // a device that is not enrolled says `Ready` after this; what it said before is of no use
        self.facts = None;
        // the registrar keeps an id for the AK it heard first, active or not: what nobody activated has to go
        if self.unactivated.take_if(|before| *before != named(&enrol)).is_some() {
            self.command(Step::Withdrawing(enrol), Command::Withdraw);
        } else {
            self.register(enrol, now);
        }
    }

    pub(super) fn register(&mut self, enrol: Enrol, now: Time) {
        self.registered_at = Some(now);
        self.command(Step::Registering(enrol.clone()), Command::Register(enrol));
    }

    /// Whether the `Ready` that came last is of the AK that waits to be activated.
    pub(super) fn claims_ak_of(&self, enrol: &Enrol) -> bool {
        let waiting = AkName::of_public(enrol.ak_public.as_slice());
        self.facts.as_ref().is_some_and(|facts| Some(facts.ak) == waiting)
    }

    fn refuse_enrolment(&mut self, enrol: &Enrol, reason: RefusedReason, wait: Duration, now: Time) {
        self.refused = Some(RefusedEnrolment { enrol: named(enrol), reason, until: now + wait });
        self.report(Verdict::Unknown, Some(format!("refused: {reason}")));
        self.say_refused(reason, wait);
        self.phase = Phase::Idle;
    }

    pub(super) fn registered(&mut self, enrol: Enrol, registered: Registered, now: Time) {
        match registered {
            Registered::Credential(blob) => {
                self.setbacks = 0;
                self.unactivated = Some(named(&enrol));
                let repeat = self.repeat(now);
                self.resend_credential(enrol, blob, repeat, now);
            }
            Registered::Refused(reason) => {
                let wait = self.settings.refused_wait;
                self.refuse_enrolment(&enrol, reason, wait, now);
            }
            Registered::Wait(wait) => {
                self.notice(Notice::TurnedAway { wait });
                self.later(wait, LaterReason::Busy);
                self.phase = Phase::Idle;
            }
            // not tried again unasked: the device's next Enrol does
            Registered::Unavailable(unavailable) => {
                let wait = self.vain_enrolment(self.settings.waiting_cap);
                let wait = unavailable.retry_after.map_or(wait, |after| after.max(wait));
                self.notice(Notice::Setback { what: "registration", wait });
                self.later(wait, LaterReason::Keylime);
                self.phase = Phase::Idle;
            }
        }
    }

    /// The wait after an enrolment that came to nothing, longer each time: one costs the device some kilobytes.
    fn vain_enrolment(&mut self, cap: Duration) -> Duration {
        let doubling = doubled(self.settings.waiting_first, self.vain_enrolments, cap);
        self.vain_enrolments += 1;
        self.jitter.upper_half(doubling)
    }

    pub(super) fn resend_credential(&mut self, enrol: Enrol, blob: Vec<u8>, repeat: Repeat, now: Time) {
        if let Ok(bounded) = Bounded::try_from(blob.clone()) {
            self.phase = Phase::AwaitActivation { enrol, blob, repeat: repeat.at(now) };
            self.send(Question::Credential(Credential { blob: bounded }));
        } else {
            self.refuse(RefusedReason::Malformed);
        }
    }

    pub(super) fn activation(&mut self, activation: Activation) {
        if self.activated == Some(activation.credential) {
            self.send(Question::Enrolled(Enrolled {}));
            return;
        }
        match std::mem::take(&mut self.phase) {
            Phase::AwaitActivation { enrol, blob, .. } if Digest::of(&[&blob]) == activation.credential => {
                self.activate(enrol, blob, activation);
            }
            other => {
                self.phase = other;
                self.dropped("Activation", "no credential with this digest is open");
            }
        }
    }

    pub(super) fn activate(&mut self, enrol: Enrol, blob: Vec<u8>, activation: Activation) {
        let auth_tag = activation.auth_tag;
        self.command(Step::Activating(enrol, blob, activation), Command::Activate { auth_tag });
    }

    pub(super) fn activated(&mut self, step: (Enrol, Vec<u8>, Activation), activated: Activated, now: Time) {
        let (enrol, blob, activation) = step;
        if !matches!(activated, Activated::Unavailable(_)) {
            self.unactivated = None;
        }
        match activated {
            Activated::Accepted => {
                self.setbacks = 0;
                self.vain_enrolments = 0;
                self.activated = Some(activation.credential);
                self.phase = Phase::Idle;
                self.send(Question::Enrolled(Enrolled {}));
                if self.claims_ak_of(&enrol) {
                    // it has said `Ready` already and will not say it again for this
                    self.proceed(now);
                }
            }
            Activated::WrongTag => {
                // changed on the way or not the device's: the record is gone, and the device enrols again, ever later
                let wait = self.vain_enrolment(self.settings.refused_wait);
                self.refuse_enrolment(&enrol, RefusedReason::Activation, wait, now);
            }
            // the record is gone: the device enrols again
            Activated::Unknown => {
                self.phase = Phase::Idle;
                let wait = self.vain_enrolment(self.settings.refused_wait);
                self.later(wait, LaterReason::Again);
            }
            Activated::Unavailable(unavailable) => {
                self.setback("activation", Retry::Activate(enrol, blob, activation), unavailable, now);
            }
        }
    }
}

/// Tells one device's `Enrol`s apart.
fn named(enrol: &Enrol) -> Digest {
    let certificate = enrol.ek_certificate.as_ref().map(Bounded::as_slice).unwrap_or_default();
    let digests =
        [enrol.ek_public.as_slice(), enrol.ak_public.as_slice(), certificate].map(|part| Digest::of(&[part]));
    Digest::of(&digests.each_ref().map(|digest| &digest.as_bytes()[..]))
}
