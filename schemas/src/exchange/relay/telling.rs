//! What a relay says: questions and waits to the device, results to whoever relies on them, notices to the log.

use std::time::Duration;

use super::{Delivery, Notice, Output, Phase, Relay, Report, TIMEOUT_INTERVALS, doubled, whole_seconds};
use crate::messages::{Down, Later, LaterReason, Question, Refused, RefusedReason, Told, Verdict};

impl Relay {
    pub(super) fn wait_for_operator(&mut self, reason: LaterReason) {
        let wait = doubled(self.settings.waiting_first, self.waits, self.settings.waiting_cap);
        self.waits += 1;
        self.good = None;
        self.report(Verdict::Unknown, Some(reason.to_string()));
        self.later(wait, reason);
        self.phase = Phase::Idle;
    }

    /// What led here may not have been the device's own word, unless it is signed: so it is heard again after an interval at most.
    pub(super) fn refuse(&mut self, reason: RefusedReason) {
        self.report(Verdict::Unknown, Some(format!("refused: {reason}")));
        let signed = reason == RefusedReason::Sleep;
        let longest = if signed { Duration::MAX } else { self.interval() };
        self.say_refused(reason, self.settings.refused_wait.min(longest));
        self.phase = Phase::Idle;
    }

    pub(super) fn say_refused(&mut self, reason: RefusedReason, wait: Duration) {
        self.send(Question::Refused(Refused { seconds: whole_seconds(wait), reason }));
    }

    pub(super) fn send(&mut self, question: Question) {
        self.deliver(question, Delivery::Assured);
    }

    pub(super) fn deliver(&mut self, question: Question, delivery: Delivery) {
        self.owes = false;
        self.note_told(&question);
        self.outputs.push_back(Output::Send(Down { question, via: self.settings.via.clone() }, delivery));
    }

    /// A device that is asked again is not waiting any more; an outcome stands until the next.
    fn note_told(&mut self, question: &Question) {
        self.told = match question {
            Question::Later(later) => Some(Told::Later(later.reason)),
            Question::Refused(refused) => Some(Told::Refused(refused.reason)),
            Question::Accepted(accepted) => Some(Told::Attested(accepted.outcome)),
            _ => self.told.filter(|told| matches!(told, Told::Attested(_))),
        };
    }

    pub(super) fn later(&mut self, wait: Duration, reason: LaterReason) {
        self.send(Question::Later(Later { seconds: whole_seconds(wait), reason }));
    }

    pub(super) fn report(&mut self, verdict: Verdict, reason: Option<String>) {
        let valid_for = self.interval() * TIMEOUT_INTERVALS;
        let attestation_count = self.baseline.map(|standing| standing.attestation_count);
        let report = Report { verdict, reason, nonce: None, attestation_count, valid_for };
        self.outputs.push_back(Output::Report(report));
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    pub(super) fn dropped(&mut self, kind: &'static str, why: &'static str) {
        self.notice(Notice::Dropped { kind, why });
    }
}
