//! Both halves of the exchange, driven by a fuzzer's bytes: every byte is an event, a time, or what somebody answers.
//!
//! Messages travel encoded, through queues in which any of them may be lost, doubled, changed or made up; commands and work
//! are answered with anything of their kind, or of another. Whatever happens, each half asks and says within its bounds,
//! and evidence goes only to the verifier's offer for which it was found bound.

mod answers;

use std::collections::VecDeque;
use std::time::Duration;

use answers::{Answers, Facts};
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::exchange::attester::{self, Attester, Work};
use keylime_mqtt_schemas::exchange::relay::{self, Command, Done, Relay, Restoring};
use keylime_mqtt_schemas::exchange::{Time, attester::Done as Worked};
use keylime_mqtt_schemas::messages::{Down, Nonce, Up};
use keylime_mqtt_schemas::wire::{pack_down, unpack_down};

use crate::bytes::Bytes;
use crate::wire::sendable;

/// What one event may bring about at most; a few messages and a piece of work are usual.
const MOST_OUTPUTS: usize = 32;
/// What waits on the way; more than that is lost, as a broker would have it.
const MOST_ON_THE_WAY: usize = 16;
/// What a relay may hold for one device: 32 MiB of IMA lines, a UEFI log of 4 MiB, and what is around them.
const MOST_HELD: usize = 40 * 1024 * 1024;
/// Steps of time, in milliseconds: from the same moment to above every cap of the exchange.
const STEPS: [u64; 8] = [0, 50, 1_000, 5_000, 30_000, 120_000, 900_000, 7_200_000];

struct World {
    now: Time,
    attester: Attester,
    relay: Relay,
    up: VecDeque<Vec<u8>>,
    down: VecDeque<Vec<u8>>,
    work: Option<Work>,
    command: Option<Command>,
    /// Offers for which evidence was found bound, and whether only a statement may let it pass.
    bound: Vec<(Nonce, Unstated)>,
    facts: Facts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unstated {
    Explained,
    StatementNeeded,
    Stated,
}

pub(crate) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut world = World::new(bytes.byte());
    while !bytes.is_empty() {
        world.event(&mut bytes);
        world.settle();
    }
}

impl World {
    fn new(kind: u8) -> Self {
        let settings = attester::Settings { sleeps: kind & 1 == 1, seed: 7, ..attester::Settings::default() };
        let via = (kind & 2 == 2).then(|| "b1".parse().expect("a name"));
        let relay = relay::Settings { via, hold_after_reboot: kind & 4 == 4, ..relay::Settings::default() };
        Self {
            now: Duration::from_secs(100),
            attester: Attester::new(settings, kind & 8 == 8),
            relay: Relay::new("device".parse().expect("an id"), relay),
            up: VecDeque::new(),
            down: VecDeque::new(),
            work: None,
            command: None,
            bound: Vec::new(),
            facts: Facts::default(),
        }
    }

    fn event(&mut self, bytes: &mut Bytes) {
        let choice = bytes.byte();
        match choice % 16 {
            0 | 1 => self.pass_time(bytes.byte()),
            2 | 3 => {
                let message = self.up.pop_front();
                self.bridge_hears(message, bytes);
            }
            4 | 5 => {
                let message = self.down.pop_front();
                self.device_hears(message);
            }
            6 => drop(self.up.pop_front()),
            7 => drop(self.down.pop_front()),
            8 => self.changed(bytes),
            9 => {
                let (up, down) = (self.up.front().cloned(), self.down.front().cloned());
                self.bridge_hears(up, bytes);
                self.settle();
                self.device_hears(down);
            }
            10 | 11 => self.worked(bytes),
            12 | 13 => self.answered(bytes),
            14 => match bytes.byte() % 4 {
                0 => self.attester.handle(attester::Input::Connected, self.now),
                1 => self.attester.handle(attester::Input::Disconnected, self.now),
                2 => self.relay.handle(relay::Input::Present, self.now),
                _ => {
                    self.relay.shed();
                }
            },
            _ => {
                let made_up = bytes.piece().to_vec();
                if choice & 16 == 0 {
                    self.bridge_hears(Some(made_up), bytes);
                } else {
                    self.device_hears(Some(made_up));
                }
            }
        }
    }

    fn pass_time(&mut self, step: u8) {
        let step = STEPS.get(usize::from(step) % STEPS.len()).copied().unwrap_or_default();
        self.now += Duration::from_millis(step);
        self.attester.handle_timeout(self.now);
        self.settle();
        self.relay.handle_timeout(self.now);
    }

    fn bridge_hears(&mut self, message: Option<Vec<u8>>, bytes: &mut Bytes) {
        let Some(message) = message.and_then(|message| decode::<Up>(&message).ok()) else { return };
        let ticket = if let Up::Ready(ready) = &message { Facts::ticket(ready, bytes) } else { None };
        self.relay.handle(relay::Input::Received(message, ticket), self.now);
    }

    fn device_hears(&mut self, message: Option<Vec<u8>>) {
        let Some(message) = message.and_then(|message| unpack_down(&message).ok()) else { return };
        self.attester.handle(attester::Input::Received(message), self.now);
    }

    /// One byte of the next message, either way, is another.
    fn changed(&mut self, bytes: &mut Bytes) {
        let (at, to) = (usize::from(bytes.u16()), bytes.byte());
        let queue = if to & 1 == 0 { &mut self.up } else { &mut self.down };
        if let Some(message) = queue.front_mut() {
            let length = message.len().max(1);
            if let Some(byte) = message.get_mut(at % length) {
                *byte = to;
            }
        }
    }

    fn worked(&mut self, bytes: &mut Bytes) {
        let Some(work) = self.work.take() else { return };
        let done: Worked = self.facts.work(&work, bytes);
        self.attester.handle(attester::Input::Done(done), self.now);
    }

    fn answered(&mut self, bytes: &mut Bytes) {
        let Some(command) = self.command.take() else { return };
        let done = Answers { facts: &mut self.facts, now: self.now }.to(&command, bytes);
        self.note(&command, &done);
        self.relay.handle(relay::Input::Done(done), self.now);
    }

    /// What an answer lets the relay do.
    fn note(&mut self, command: &Command, done: &Done) {
        match (command, done) {
            (Command::Restore(restore), Done::Restored(Restoring::Explained { .. })) => {
                self.bound.push((restore.offer.nonce, Unstated::Explained));
            }
            (Command::Restore(restore), Done::Restored(Restoring::Unexplained { .. })) => {
                self.bound.push((restore.offer.nonce, Unstated::StatementNeeded));
            }
            (Command::CheckStatement { .. }, Done::StatementChecked(Some(_))) => {
                for (_, unstated) in &mut self.bound {
                    if *unstated == Unstated::StatementNeeded {
                        *unstated = Unstated::Stated;
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes all that both halves put out, and holds it against what they may.
    fn settle(&mut self) {
        for count in 0.. {
            let Some(output) = self.attester.poll_output() else { break };
            assert!(count < MOST_OUTPUTS, "a device that does not stop: {output:?}");
            match output {
                attester::Output::Send(message, _, _) => keep(&mut self.up, sendable(&message)),
                attester::Output::Work(work) => {
                    assert!(self.work.replace(work).is_none(), "two pieces of work at once");
                }
                attester::Output::Report(_) => {}
            }
        }
        for count in 0.. {
            let Some(output) = self.relay.poll_output() else { break };
            assert!(count < MOST_OUTPUTS, "a relay that does not stop: {output:?}");
            match output {
                relay::Output::Send(message, _) => keep(&mut self.down, packed(&message)),
                // a UEFI log to be kept is not answered
                relay::Output::Command(Command::KeepUefi(..))
                | relay::Output::Report(_)
                | relay::Output::Notice(_) => {}
                relay::Output::Command(command) => self.commanded(command),
            }
        }
        assert!(self.relay.held() <= MOST_HELD, "{} bytes held for one device", self.relay.held());
        let due = [self.attester.poll_timeout(), self.relay.poll_timeout()];
        assert!(due.into_iter().flatten().all(|at| at < self.now + Duration::from_secs(400 * 24 * 3600)));
    }

    fn commanded(&mut self, command: Command) {
        if let Command::Submit { offer, .. } = &command {
            let may = self
                .bound
                .iter()
                .any(|(nonce, unstated)| *nonce == offer.nonce && *unstated != Unstated::StatementNeeded);
            assert!(may, "submitted what was not found bound: {offer:?}");
        }
        assert!(self.command.replace(command).is_none(), "two commands at once");
    }
}

fn keep(queue: &mut VecDeque<Vec<u8>>, message: Vec<u8>) {
    if queue.len() < MOST_ON_THE_WAY {
        queue.push_back(message);
    }
}

fn packed(message: &Down) -> Vec<u8> {
    let packed = pack_down(message).expect("the bridge says what can be sent");
    assert_eq!(unpack_down(&packed).as_ref(), Ok(message), "the device cannot read what the bridge says");
    packed
}
