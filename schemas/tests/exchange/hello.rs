//! The doctor's question: answered in every state, and without effect on any.

use keylime_mqtt_schemas::exchange::relay::{Done, Offered, Output};
use keylime_mqtt_schemas::messages::{
    Heard, Hello, HelloTag, LaterReason, Outcome, Question, RefusedReason, Told, Up, Verdict,
};

use super::hand::{AT, Hand};

impl Hand {
    /// What a `Hello` is answered with; that the answer is all that comes of it is asserted.
    fn how_it_stands(&mut self, tag: u8) -> Option<Told> {
        let tag = HelloTag::from([tag; 8]);
        let (timeout, held) = (self.relay.poll_timeout(), self.relay.held());
        let outputs = self.says(Up::Hello(Hello { tag, padding: None }), AT(100));
        assert_eq!((self.relay.poll_timeout(), self.relay.held()), (timeout, held));
        let [Output::Send(down, _)] = outputs.as_slice() else { panic!("{outputs:?}") };
        let Question::Heard(Heard { tag: answered, told }) = down.question else { panic!("{down:?}") };
        assert_eq!(answered, tag);
        told
    }
}

#[test]
fn a_device_that_was_never_heard_is_told_so_and_stays_unknown() {
    let mut hand = Hand::new();
    assert_eq!(hand.how_it_stands(1), None);
    assert!(hand.relay.is_idle(), "it can be forgotten");
}

#[test]
fn a_hello_between_two_steps_of_an_attestation_changes_neither() {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    assert_eq!(hand.how_it_stands(1), None);
    hand.submitted(&offer, AT(101));
    assert_eq!(hand.how_it_stands(2), None);
    hand.relay.handle_timeout(AT(102));
    let outputs = hand.read(Verdict::Pass, 1, AT(102));
    let reported =
        |output: &Output| matches!(output, Output::Report(report) if report.verdict == Verdict::Pass);
    assert!(outputs.iter().any(reported), "{outputs:?}");
    assert_eq!(hand.how_it_stands(3), Some(Told::Attested(Outcome::Pass)));
}

#[test]
fn a_device_that_waits_or_is_refused_is_told_why_and_no_longer_once_it_is_challenged() {
    let mut hand = Hand::new();
    hand.offering(AT(100));
    hand.done(Done::Offered(Offered::Invalid("no such log".to_owned())), AT(100));
    assert_eq!(hand.how_it_stands(1), Some(Told::Refused(RefusedReason::Offer)));
    hand.speaks_up(AT(105));
    hand.done(Done::Offered(Offered::NothingRequested), AT(105));
    assert_eq!(hand.how_it_stands(2), Some(Told::Later(LaterReason::NoPolicy)));
    hand.speaks_up(AT(110));
    let offer = hand.offer(AT(110));
    hand.done(Done::Offered(Offered::Opened(offer)), AT(110));
    assert_eq!(hand.how_it_stands(3), None);
}
