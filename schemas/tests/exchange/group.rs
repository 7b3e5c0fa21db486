//! Two bridges and one device, of which each hears a part: as a group, and by mistake.

use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{
    Command, Done, Input, Notice, Offer, Offered, OpenedTicket, Output, Relay, Session, Settings, Status,
    Token, Unavailable,
};
use keylime_mqtt_schemas::messages::{LaterReason, Question, Unchanged, Up, Verdict};

use super::device::Device;
use super::hand::{AT, Hand, STATED_AT, standing};

fn member() -> Hand {
    let mut hand = Hand::new();
    let via = Some("b1".parse().unwrap());
    hand.relay = Relay::new(hand.device.id.clone(), Settings { via, ..Settings::default() });
    hand
}

fn with_ticket(hand: &mut Hand, token: &str, now: Time) -> Vec<Output> {
    let ticket = OpenedTicket { token: Token::new(token.to_owned()), ak: hand.device.ak() };
    let ready = hand.described();
    hand.told(Input::Received(Up::Ready(ready), Some(ticket)), now)
}

fn nothing_new(hand: &mut Hand, now: Time) -> Vec<Output> {
    let ready = hand.described();
    hand.says(Up::Unchanged(Unchanged { ready: ready.tag(), ima_entries: ready.ima_entries }), now)
}

fn asks_for_ready(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| match output {
        Output::Send(down, _) => {
            matches!(&down.question, Question::Later(later) if later.reason == LaterReason::Again)
        }
        _ => false,
    })
}

fn commands(outputs: &[Output]) -> Vec<&Command> {
    let mut commands = Vec::new();
    for output in outputs {
        if let Output::Command(command) = output {
            commands.push(command);
        }
    }
    commands
}

fn opens_a_session(outputs: &[Output]) -> bool {
    commands(outputs).iter().any(|command| matches!(command, Command::OpenSession { .. }))
}

/// The token with which the standing is read or an offer asked for.
fn token_used(outputs: &[Output]) -> Option<&str> {
    commands(outputs).iter().find_map(|command| match command {
        Command::ReadStatus { token } | Command::Offer { token, .. } => Some(token.expose()),
        _ => None,
    })
}

#[test]
fn a_bridge_that_never_got_a_token_asks_for_the_ticket_of_the_one_that_did() {
    let mut hand = member();
    hand.speaks_up(AT(100));
    hand.done(Done::Session(Session::Wait(AT(3))), AT(100));
    // the other bridge serves the device from here on, gives it a ticket, and dies
    let outputs = nothing_new(&mut hand, AT(200));
    assert!(asks_for_ready(&outputs) && !opens_a_session(&outputs), "{outputs:?}");
    with_ticket(&mut hand, "of the other", AT(201));
    let outputs = hand.done(Done::StatementChecked(Some(STATED_AT)), AT(201));
    assert_eq!(token_used(&outputs), Some("of the other"));
}

#[test]
fn a_bridge_whose_token_has_run_out_takes_the_one_in_the_ticket() {
    let mut hand = member();
    hand.challenged(AT(100));
    // served by the other since
    let (_, outputs) = (hand.outputs(), with_ticket(&mut hand, "of the other", AT(2000)));
    assert_eq!(token_used(&outputs), None, "the offer is still open, and asked again: {outputs:?}");
    hand.relay.handle_timeout(AT(3000));
    hand.outputs();
    let outputs = with_ticket(&mut hand, "of the other", AT(3001));
    assert_eq!(token_used(&outputs), Some("token"));
    let outputs = hand.done(Done::Offered(Offered::TokenRejected), AT(3001));
    assert_eq!(token_used(&outputs), Some("of the other"));
    // and when that is no better, it does without
    let outputs = hand.done(Done::Offered(Offered::TokenRejected), AT(3001));
    assert!(opens_a_session(&outputs), "{outputs:?}");
}

#[test]
fn a_ready_of_another_ak_with_its_old_ticket_takes_no_token_and_no_trust() {
    let mut hand = member();
    hand.challenged(AT(100));
    let known = std::mem::replace(&mut hand.device, Device::new("device-1", 9));
    let outputs = with_ticket(&mut hand, "of the past", AT(200));
    assert!(token_used(&outputs).is_none() && opens_a_session(&outputs), "{outputs:?}");
    hand.done(Done::Session(Session::Wait(AT(3))), AT(200));
    hand.device = known;
    let outputs = hand.speaks_up(AT(300));
    assert!(token_used(&outputs) == Some("token") && !opens_a_session(&outputs), "{outputs:?}");
}

#[test]
fn a_bridge_whose_token_has_run_out_asks_once_for_the_ticket_and_then_does_without() {
    let mut hand = member();
    hand.challenged(AT(100));
    hand.relay.handle_timeout(AT(3000));
    hand.outputs();
    let outputs = nothing_new(&mut hand, AT(3000));
    assert_eq!(token_used(&outputs), Some("token"));
    let outputs = hand.done(Done::Offered(Offered::TokenRejected), AT(3000));
    assert!(asks_for_ready(&outputs) && !opens_a_session(&outputs), "{outputs:?}");
    let outputs = hand.speaks_up(AT(3001));
    assert!(opens_a_session(&outputs), "it has none: {outputs:?}");
}

#[test]
fn a_lone_bridge_whose_token_has_run_out_opens_a_session_at_once() {
    let mut hand = Hand::new();
    hand.challenged(AT(100));
    hand.relay.handle_timeout(AT(3000));
    hand.outputs();
    nothing_new(&mut hand, AT(3000));
    let outputs = hand.done(Done::Offered(Offered::TokenRejected), AT(3000));
    assert!(opens_a_session(&outputs), "{outputs:?}");
}

/// A device that passed here and has not been heard for five intervals; its status is being read.
pub(crate) fn overdue() -> (Hand, Offer, Vec<Output>) {
    let mut hand = Hand::new();
    let offer = hand.challenged(AT(100));
    hand.submitted(&offer, AT(101));
    hand.relay.handle_timeout(AT(102));
    hand.read(Verdict::Pass, 1, AT(102));
    hand.relay.handle_timeout(AT(112));
    let offer = hand.offer(AT(112));
    hand.done(Done::Offered(Offered::Opened(offer.clone())), AT(112));
    for second in 113..151 {
        hand.relay.handle_timeout(AT(second));
    }
    hand.outputs();
    hand.relay.handle_timeout(AT(153));
    let outputs = hand.outputs();
    (hand, offer, outputs)
}

fn verdicts(outputs: &[Output]) -> Vec<Verdict> {
    let verdict = |output: &Output| match output {
        Output::Report(report) => Some(report.verdict),
        _ => None,
    };
    outputs.iter().filter_map(verdict).collect()
}

#[test]
fn nothing_is_said_of_an_overdue_device_for_which_another_bridge_attests_and_that_is_said_aloud() {
    let (mut hand, _, outputs) = overdue();
    assert_eq!((token_used(&outputs), verdicts(&outputs)), (Some("token"), Vec::new()));
    let outputs = hand.read(Verdict::Pass, 4, AT(153));
    assert_eq!(verdicts(&outputs), []);
    let aloud = |output: &Output| matches!(output, Output::Notice(Notice::Superseded));
    assert!(outputs.iter().any(aloud), "{outputs:?}");
}

#[test]
fn an_overdue_device_times_out_and_its_challenge_stays_open() {
    for answer in [
        Status::Standing(standing(Verdict::Timeout, 1)),
        Status::TokenRejected,
        Status::Unavailable(Unavailable { retry_after: None }),
    ] {
        let (mut hand, offer, _) = overdue();
        let outputs = hand.done(Done::Status(answer), AT(153));
        assert_eq!(verdicts(&outputs), [Verdict::Timeout], "{answer:?}");
        let evidence = hand.evidence(offer.nonce, offer.pcrs);
        let outputs = hand.says(Up::Evidence(evidence), AT(160));
        assert!(matches!(commands(&outputs)[..], [Command::Restore(_)]), "{outputs:?}");
    }
}
