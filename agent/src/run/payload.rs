//! How large a payload may be: as configured, or less where larger ones do not arrive.
//!
//! A broker that closes the connection over a large packet is the link's to notice. Another kind acknowledges it and
//! drops it, as mosquitto does above `message_size_limit`: MQTT 3.1.1 has no other answer. What shows then is that the same
//! question comes again although every part of the answer was acknowledged.

use keylime_mqtt_schemas::messages::Question;
use keylime_mqtt_schemas::messages::limits::MAX_FIRST_CONTACT;

/// One repeat may have crossed the answer, and a bridge that restarts repeats itself too.
const ASKED_AGAIN: u32 = 2;

#[derive(Debug)]
pub(super) struct PayloadLimit {
    bytes: usize,
    question: Option<Question>,
    /// The largest payload sent since that question came last.
    answered: usize,
    again: u32,
}

impl PayloadLimit {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes, question: None, answered: 0, again: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a link has learned is kept for the next.
    pub(super) fn lower_to(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.answered = self.answered.max(bytes);
    }

    /// A question came; `acknowledged` says that nothing sent before is without acknowledgement.
    pub(super) fn asked(&mut self, question: &Question, acknowledged: bool) {
        let answered = std::mem::take(&mut self.answered);
        if !self.question.as_ref().is_some_and(|before| is_the_same(before, question)) {
            self.question = Some(question.clone());
            self.again = 0;
            return;
        }
        // what is no larger than a first contact would not come either, had the broker a limit below it
        if !acknowledged || answered <= MAX_FIRST_CONTACT {
            return;
        }
        self.again += 1;
        if self.again >= ASKED_AGAIN {
            self.again = 0;
            self.bytes = (answered / 2).max(MAX_FIRST_CONTACT);
            tracing::warn!(
                bytes = answered,
                now = self.bytes,
                "the bridge asks again and again for what the broker has acknowledged: smaller payloads are sent from now on; if that helps, the broker drops larger ones: set payload_bytes below its limit, or raise that"
            );
        }
    }
}

/// A challenge that is repeated is good for less time than before.
fn is_the_same(before: &Question, now: &Question) -> bool {
    match (before, now) {
        (Question::Challenge(before), Question::Challenge(now)) => before.nonce == now.nonce,
        _ => before == now,
    }
}

#[cfg(test)]
mod tests {
    use keylime_mqtt_schemas::messages::{
        Accepted, BootMarker, Challenge, LogKind, Need, Nonce, Outcome, PcrMask,
    };

    use super::*;

    const LARGE: usize = 40_000;

    fn need(offset: u64) -> Question {
        let boot = BootMarker::from([1; 16]).tag();
        Question::Need(Need { log: LogKind::Ima, boot, offset, upto: 1024, reference: false })
    }

    fn answered(limit: &mut PayloadLimit, question: &Question, acknowledged: bool) {
        limit.asked(question, acknowledged);
        limit.sent(limit.bytes());
    }

    #[test]
    fn the_same_question_after_acknowledged_answers_halves_what_is_sent_down_to_a_first_contact() {
        let mut limit = PayloadLimit::new(LARGE);
        let mut sizes = Vec::new();
        for _ in 0..12 {
            answered(&mut limit, &need(0), true);
            sizes.push(limit.bytes());
        }
        sizes.dedup();
        assert_eq!(sizes, [LARGE, 20_000, 10_000, MAX_FIRST_CONTACT]);
    }

    #[test]
    fn a_challenge_that_comes_again_is_the_same_question_though_it_runs_out_sooner() {
        let challenge = |good_for| {
            Question::Challenge(Challenge {
                nonce: Nonce::from([7; 16]),
                boot: BootMarker::from([1; 16]).tag(),
                pcrs: PcrMask::default(),
                good_for,
                silence: 120,
                ima_offset: Some(0),
                held: None,
                ticket: None,
                full: false,
                reference: false,
            })
        };
        let mut limit = PayloadLimit::new(LARGE);
        for good_for in [1800, 1790, 1770] {
            answered(&mut limit, &challenge(good_for), true);
        }
        assert_eq!(limit.bytes(), LARGE / 2);
    }

    #[test]
    fn progress_and_answers_under_way_are_no_sign() {
        let mut limit = PayloadLimit::new(LARGE);
        for offset in 0..5 {
            answered(&mut limit, &need(offset), true);
            answered(&mut limit, &need(offset), true);
        }
        for _ in 0..5 {
            answered(&mut limit, &need(9), false);
        }
        assert_eq!(limit.bytes(), LARGE);
    }

    #[test]
    fn a_small_answer_that_does_not_arrive_is_no_sign() {
        let mut limit = PayloadLimit::new(LARGE);
        for _ in 0..5 {
            limit.asked(&need(0), true);
            limit.sent(MAX_FIRST_CONTACT);
        }
        let accepted = Question::Accepted(Accepted { seconds: 60, outcome: Outcome::Pass });
        for _ in 0..5 {
            limit.asked(&accepted, true);
        }
        assert_eq!(limit.bytes(), LARGE);
    }
}
