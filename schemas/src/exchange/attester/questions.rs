//! What a bridge asks, and whether it is for this device to answer.

use std::time::Duration;

use super::interface::{Report, Work};
use super::{Answered, Attester, DEFAULT_SILENCE, Enrolment, Stance};
use crate::codec;
use crate::exchange::{Delivery, Time};
use crate::messages::{Challenge, Digest, LaterReason, LogKind, Need, Question, State, Up};
use crate::topics::Via;

impl Attester {
    pub(super) fn received(&mut self, question: Question, via: Option<Via>, now: Time) {
        // parts of logs have their own measure
        let part = matches!(&question, Question::Need(need) if self.offers(need));
        if !part && !self.answers.take(now) {
            // whatever it was, it will be said again
            self.report(Report::Ignored("asked oftener than this device answers"));
            return;
        }
        match question {
            Question::Credential(credential) => {
                self.engage(self.settings.first_retry * 4, now);
                let blob = credential.blob.into_vec();
                let digest = Digest::of(&[&blob]);
                match self.activated.clone().filter(|activation| activation.credential == digest) {
                    Some(activation) => self.send(Up::Activation(activation), via, Delivery::Assured),
                    None => self.enqueue(Work::Activate { blob }, via, None),
                }
            }
            Question::Enrolled(_) if self.enrolment != Enrolment::Open => {
                self.report(Report::Ignored("enrolled already"));
            }
            Question::Enrolled(_) => {
                let asked = self.activated.is_some();
                self.enrolment = if asked { Enrolment::Told } else { Enrolment::OnHearsay };
                self.not_enrolled_since = None;
                self.report(Report::Enrolled);
                self.stance = Stance::Due;
                self.introduce(now);
            }
            Question::Prove(prove) => {
                self.engage(DEFAULT_SILENCE, now);
                let tag = prove.nonce.tag();
                match self.proved.clone().filter(|proof| proof.tag == tag) {
                    Some(proof) => self.send(Up::Proof(proof), via, Delivery::Assured),
                    None => self.enqueue(Work::Prove(prove), via, None),
                }
            }
            Question::Challenge(challenge) => self.challenged(challenge, via, now),
            Question::Need(need) if part => {
                self.engage(DEFAULT_SILENCE, now);
                self.read(need, via, now);
            }
            Question::Need(_) => self.introduce_for_this_boot(now),
            Question::State(state) => self.asked_to_state(state, via, now),
            Question::Accepted(accepted) => {
                self.known = self.said;
                self.engage(Duration::from_secs(u64::from(accepted.seconds)) * 3 + DEFAULT_SILENCE / 4, now);
                self.report(Report::Accepted(accepted));
            }
            Question::Later(later) => {
                self.wait(later.seconds, now);
                match later.reason {
                    LaterReason::NotEnrolled => self.enrol_again_if_long(now),
                    LaterReason::Again => self.known = None,
                    _ => {}
                }
                self.report(Report::Waiting(later));
            }
            Question::Heard(_) => self.report(Report::Ignored("an answer to the doctor")),
            Question::Refused(refused) => {
                self.wait(refused.seconds, now);
                self.report(Report::Refused(refused));
            }
        }
    }

    /// What it has told of, of this boot: a bridge that asks for more was told so by somebody else, and has to learn better.
    fn offers(&self, need: &Need) -> bool {
        self.is_this_boot(need.boot)
            && match need.log {
                LogKind::Uefi => self.offered.uefi,
                LogKind::Ima => self.offers_ima(need.offset),
            }
    }

    fn offers_ima(&self, from: u64) -> bool {
        self.offered.ima.is_some_and(|lines| from <= lines)
    }

    fn challenged(&mut self, challenge: Challenge, via: Option<Via>, now: Time) {
        if !self.is_this_boot(challenge.boot) {
            self.introduce_for_this_boot(now);
            return;
        }
        if !self.offered.pcrs.covers(challenge.pcrs) {
            self.report(Report::Ignored("PCRs were asked for that this device does not offer"));
            return;
        }
        if !challenge.ima_offset.is_none_or(|from| self.offers_ima(from)) {
            self.introduce_for_this_boot(now);
            return;
        }
        if let Some(ticket) = challenge.ticket.clone() {
            self.report(Report::Ticket(ticket));
        }
        self.not_enrolled_since = None;
        self.known = self.said;
        self.engage(Duration::from_secs(u64::from(challenge.silence)), now);
        let repeated = |answered: &&Answered| {
            answered.challenge.nonce == challenge.nonce
                && answered.challenge.pcrs == challenge.pcrs
                && answered.challenge.ima_offset == challenge.ima_offset
                && answered.challenge.reference == challenge.reference
                && (answered.challenge.full || !challenge.full)
        };
        if let Some(answered) = self.answered.as_ref().filter(repeated) {
            let evidence = answered.evidence.clone();
            return self.send_evidence(evidence, via, Delivery::Assured, now);
        }
        // a newer challenge has made the older one useless
        self.queue.retain(|job| !matches!(job.work, Work::Collect(_)));
        let good_until = now + Duration::from_secs(u64::from(challenge.good_for));
        self.enqueue(Work::Collect(challenge), via, Some(good_until));
    }

    fn asked_to_state(&mut self, state: State, via: Option<Via>, now: Time) {
        let Some(answered) = self.answered.as_ref().filter(|answered| answered.evidence.tag == state.tag)
        else {
            // it was asked for other evidence since, by whomever: the bridge has to ask for its own again
            self.introduce_for_this_boot(now);
            return;
        };
        let Ok(encoded) = codec::encode(&Up::Evidence(answered.evidence.clone())) else { return };
        let work = Work::State {
            state,
            nonce: answered.challenge.nonce,
            evidence: Digest::of(&[&encoded]),
            ima_end: answered.ima_end,
        };
        self.engage(DEFAULT_SILENCE, now);
        self.enqueue(work, via, None);
    }
}
