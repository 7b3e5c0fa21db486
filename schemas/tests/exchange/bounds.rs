//! What fills up has its bound.

use std::time::Duration;

use keylime_mqtt_schemas::exchange::Attester;
use keylime_mqtt_schemas::exchange::attester::{Done, Input, Output, Report, Settings, Work};
use keylime_mqtt_schemas::messages::{Down, Nonce, Prove, Question};

use super::device::Device;

/// As in the attester, with the question that is being worked on.
const QUESTIONS_HELD: usize = 4 + 1;

#[test]
fn a_flood_of_questions_takes_a_few_places_and_the_others_are_dropped_and_counted() {
    let mut device = Device::new("device-1", 1);
    let mut attester = Attester::new(Settings::default(), true);
    let now = Duration::from_secs(1);
    attester.handle(Input::Connected, now);
    let Some(Output::Work(Work::Describe)) = attester.poll_output() else { panic!("no description") };
    for n in 0..200_u8 {
        let question = Question::Prove(Prove { nonce: Nonce::from([n; 16]) });
        attester.handle(Input::Received(Down { question, via: None }), now);
    }
    let ignored = std::iter::from_fn(|| attester.poll_output())
        .filter(|output| matches!(output, Output::Report(Report::Ignored(_))))
        .count();
    assert!(ignored >= 200 - QUESTIONS_HELD, "{ignored}");
    // the TPM is asked for no more than what was kept
    attester.handle(Input::Done(device.work(Work::Describe)), now);
    let mut worked = 0;
    while let Some(output) = attester.poll_output() {
        if let Output::Work(_) = output {
            worked += 1;
            attester.handle(Input::Done(Done::Failed), now);
        }
    }
    assert!(worked <= QUESTIONS_HELD, "{worked}");
}
