//! A device does what it need do and no more, whoever asks: a broker that lies may ask for anything, and each answer
//! costs the TPM's time and bytes on a metered link.

use std::time::Duration;

use keylime_mqtt_schemas::exchange::attester::{Attester, Input, Output, Report, Settings, Work};
use keylime_mqtt_schemas::messages::{
    Accepted, BootTag, Challenge, Down, LogKind, Need, Nonce, Outcome, PcrMask, Question, Ready, State, Up,
};

use super::device::{Device, dense_log};
use super::hand::{AT, plain_challenge};

/// A device that has introduced itself.
struct Asked {
    attester: Attester,
    device: Device,
    ready: Ready,
}

impl Asked {
    fn new(device: Device, settings: Settings) -> Self {
        Self::offering(device, settings, PcrMask::ALL)
    }

    fn offering(mut device: Device, settings: Settings, pcrs: PcrMask) -> Self {
        let mut attester = Attester::new(settings, true);
        attester.handle(Input::Connected, AT(0));
        let mut ready = None;
        while let Some(output) = attester.poll_output() {
            if let Output::Work(work) = output {
                let mut done = device.work(work);
                if let keylime_mqtt_schemas::exchange::attester::Done::Described(described) = &mut done {
                    described.pcrs = pcrs;
                    ready = Some(described.clone());
                }
                attester.handle(Input::Done(done), AT(0));
            }
        }
        Self { attester, device, ready: ready.unwrap() }
    }

    /// What the device sends and does upon a question.
    fn asked(&mut self, question: Question, now: Duration) -> (Vec<Up>, Vec<Work>, Vec<&'static str>) {
        self.attester.handle(Input::Received(Down { question, via: None }), now);
        self.does(now)
    }

    fn does(&mut self, now: Duration) -> (Vec<Up>, Vec<Work>, Vec<&'static str>) {
        let (mut sent, mut worked, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(output) = self.attester.poll_output() {
            match output {
                Output::Send(up, _, _) => sent.push(up),
                Output::Work(work) => {
                    worked.push(work.clone());
                    let done = self.device.work(work);
                    self.attester.handle(Input::Done(done), now);
                }
                Output::Report(Report::Ignored(why)) => ignored.push(why),
                Output::Report(_) => {}
            }
        }
        (sent, worked, ignored)
    }

    fn challenge(&self, number: u32) -> Challenge {
        let mut nonce = [0; 16];
        nonce[..4].copy_from_slice(&number.to_be_bytes());
        plain_challenge(Nonce::from(nonce), self.ready.boot.tag(), PcrMask::try_from(7).unwrap())
    }
}

#[test]
fn a_device_asked_a_hundred_times_a_second_answers_as_often_as_it_is_set_to_and_no_oftener() {
    let settings = Settings { answers_per_minute: 30, ..Settings::default() };
    let mut asked = Asked::new(Device::new("device-1", 1), settings);
    let (mut quotes, mut sent) = (0, 0);
    for number in 0..6000 {
        let question = Question::Challenge(asked.challenge(number));
        let (up, worked, _) = asked.asked(question, AT(1) + Duration::from_millis(u64::from(number) * 10));
        sent += up.len();
        quotes += worked.iter().filter(|work| matches!(work, Work::Collect(_))).count();
    }
    // a minute's worth, and twice that for the burst
    assert!((85..=90).contains(&quotes) && sent == quotes, "{quotes} quotes, {sent} messages");
}

#[test]
fn a_challenge_repeated_a_thousand_times_costs_one_quote_and_no_flood_of_answers() {
    let settings = Settings { answers_per_minute: 30, ..Settings::default() };
    let mut asked = Asked::new(Device::new("device-1", 1), settings);
    let question = Question::Challenge(asked.challenge(1));
    let came: Vec<_> = (0..1000).map(|_| asked.asked(question.clone(), AT(10))).collect();
    assert_eq!(came.iter().map(|(_, worked, _)| worked.len()).sum::<usize>(), 1);
    assert_eq!(came.iter().map(|(sent, ..)| sent.len()).sum::<usize>(), 60);
}

#[test]
fn a_challenge_for_another_boot_is_met_with_ready_and_no_quote() {
    let mut asked = Asked::new(Device::new("device-1", 1), Settings::default());
    let challenge = Challenge { boot: [9; 4].into(), ..asked.challenge(1) };
    // it has been heard before, so it is not waiting for an answer to its introduction
    asked.asked(Question::Challenge(asked.challenge(0)), AT(9));
    let (sent, worked, _) = asked.asked(Question::Challenge(challenge), AT(10));
    assert!(matches!(sent[..], [Up::Ready(_) | Up::Unchanged(_)]), "{sent:?}");
    assert!(worked.iter().all(|work| matches!(work, Work::Describe)), "{worked:?}");
}

#[test]
fn pcrs_and_logs_that_a_device_does_not_offer_are_neither_quoted_nor_sent() {
    let offered = PcrMask::try_from(0x0f).unwrap();
    let mut asked = Asked::offering(Device::new("device-1", 1), Settings::default(), offered);
    let boot = asked.ready.boot.tag();
    let need = |log| Question::Need(Need { log, boot, offset: 0, upto: 100, reference: false });
    let beyond = PcrMask::try_from(0x10).unwrap();
    let question = Question::Challenge(Challenge { pcrs: beyond, ..asked.challenge(1) });
    let (sent, worked, ignored) = asked.asked(question, AT(10));
    assert_eq!((sent.len(), worked.len(), ignored.len()), (0, 0, 1));
    // whoever asks for these was told of them by somebody else, and is told better
    for question in [
        Question::Challenge(Challenge { ima_offset: Some(0), ..asked.challenge(2) }),
        need(LogKind::Uefi),
        need(LogKind::Ima),
    ] {
        asked.asked(Question::Accepted(Accepted { seconds: 60, outcome: Outcome::Pass }), AT(10));
        let (sent, worked, _) = asked.asked(question.clone(), AT(10));
        assert!(matches!(sent[..], [Up::Ready(_) | Up::Unchanged(_)]), "{question:?}: {sent:?}");
        assert!(matches!(worked[..], [Work::Describe]), "{question:?}: {worked:?}");
    }
    let (sent, ..) = asked.asked(Question::Challenge(asked.challenge(3)), AT(10));
    assert!(matches!(sent[..], [Up::Evidence(_)]), "what it offers is answered");
}

#[test]
fn a_log_is_sent_twice_at_once_and_then_only_as_fast_as_is_set() {
    let mut device = Device::new("device-1", 1);
    device.uefi = Some(dense_log(30_000));
    let mut asked = Asked::new(device, Settings::default());
    let boot = asked.ready.boot.tag();
    let need = Question::Need(Need { log: LogKind::Uefi, boot, offset: 0, upto: u64::MAX, reference: false });
    let mut parts = 0;
    for number in 0..60_000 {
        let (sent, ..) = asked.asked(need.clone(), AT(10) + Duration::from_millis(number));
        parts += sent.iter().filter(|up| matches!(up, Up::Blob(_))).count();
    }
    assert!((1024..=1024 + 61).contains(&parts), "{parts} parts in a minute");
}

#[test]
fn a_part_that_was_asked_for_too_soon_comes_in_its_time_and_of_more_the_last() {
    let mut device = Device::new("device-1", 1);
    device.uefi = Some(dense_log(30_000));
    let mut asked = Asked::new(device, Settings::default());
    let boot = asked.ready.boot.tag();
    let need = |offset| Question::Need(Need { log: LogKind::Uefi, boot, offset, upto: 1, reference: false });
    let blobs = |sent: &[Up]| -> Vec<u64> {
        let offset = |up: &Up| if let Up::Blob(blob) = up { Some(blob.offset) } else { None };
        sent.iter().filter_map(offset).collect()
    };
    let now = AT(10);
    // what may be sent at once
    while !blobs(&asked.asked(need(0), now).0).is_empty() {}
    for offset in [1, 2, 3] {
        let (sent, _, ignored) = asked.asked(need(offset), now);
        assert_eq!((blobs(&sent), ignored.len()), (vec![], 1), "the one before it is not answered");
    }
    let due = asked.attester.poll_timeout().unwrap();
    assert_eq!(due, now + Duration::from_secs(1));
    asked.attester.handle_timeout(due);
    assert_eq!(blobs(&asked.does(due).0), [3]);
    assert!(asked.attester.poll_timeout().is_some_and(|next| next > due), "and only once");
}

#[test]
fn questions_for_parts_of_another_boot_or_of_no_log_are_answered_no_oftener_than_others() {
    let mut device = Device::new("device-1", 1);
    device.grow(10);
    let mut asked = Asked::new(device, Settings { answers_per_minute: 30, ..Settings::default() });
    let (boot, other) = (asked.ready.boot.tag(), BootTag::from([9; 4]));
    let need =
        |boot, offset| Question::Need(Need { log: LogKind::Ima, boot, offset, upto: 11, reference: false });
    let mut described = 0;
    for number in 0..6000 {
        let now = AT(10) + Duration::from_millis(number * 10);
        for question in [need(boot, 0), need(other, 0), need(boot, 0), need(boot, 9999)] {
            let (_, worked, _) = asked.asked(question, now);
            described += worked.iter().filter(|work| matches!(work, Work::Describe)).count();
        }
    }
    assert!((30..=91).contains(&described), "{described} in a minute");
}

/// The bridge waits for a statement that this device cannot make any more, because somebody had it answer another question since.
#[test]
fn asked_to_state_evidence_that_it_does_not_keep_a_device_says_where_it_stands() {
    let mut asked = Asked::new(Device::new("device-1", 1), Settings::default());
    let first = asked.challenge(1);
    asked.asked(Question::Challenge(first.clone()), AT(10));
    asked.asked(Question::Challenge(asked.challenge(2)), AT(11));
    let state = Question::State(State { tag: first.nonce.tag(), ima_from: None });
    let (sent, worked, _) = asked.asked(state, AT(12));
    assert!(matches!(sent[..], [Up::Ready(_) | Up::Unchanged(_)]), "{sent:?}");
    assert!(matches!(worked[..], [Work::Describe]), "{worked:?}");
}
