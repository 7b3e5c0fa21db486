//! Both halves, a model of Keylime, a model of a device, a network with faults, and one clock.
//!
//! Everything that happens is an event with a number, so that a fault can be put on any of them and a run repeated.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keylime_mqtt_liar::{Delivery as Lied, Direction, Liar};
use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::attester::{self, Attester};
use keylime_mqtt_schemas::exchange::relay::{
    self, Command, Done, Notice, OpenedTicket, Output, Registered, Relay, Session, Status, Submitted, Token,
    Unavailable,
};
use keylime_mqtt_schemas::exchange::relay::{Activated, Offered, Proven};
use keylime_mqtt_schemas::exchange::{Delivery, Time, relay::Report};
use keylime_mqtt_schemas::fragment::Reassembly;
use keylime_mqtt_schemas::messages::{
    AkName, Digest, LaterReason, Outcome, Presence, Question, RefusedReason, Up, Verdict,
};
use keylime_mqtt_schemas::wire::{pack_down, pack_up, unpack_down, unpack_up};

use super::attest;
use super::device::{self, Device};
use super::keylime::{Keylime, Policy};

const NETWORK: Duration = Duration::from_millis(50);
const HTTP: Duration = Duration::from_millis(20);
const TPM: Duration = Duration::from_millis(30);
const RECONNECT: Duration = Duration::from_secs(2);
const PAYLOAD: usize = 15 * 1024;

/// What can go wrong with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The message, or the answer to a command, never comes. An answer becomes a time-out.
    Lost,
    /// It comes half a minute late.
    Late,
    /// It comes twice; the second time a little later.
    Twice,
    /// What was sent after it comes first.
    Overtaken,
    /// The device's agent dies at this moment and comes back.
    AgentRestarts,
    /// The bridge dies at this moment and comes back.
    BridgeRestarts,
    /// The command never reaches Keylime, and times out.
    Refused,
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::Lost,
    Fault::Late,
    Fault::Twice,
    Fault::Overtaken,
    Fault::AgentRestarts,
    Fault::BridgeRestarts,
    Fault::Refused,
];

#[derive(Debug, Clone)]
enum Event {
    ToBridge(Vec<u8>, Delivery),
    ToDevice(Vec<u8>, Delivery),
    Presence(Vec<u8>),
    DeviceConnected(u32),
    Command(Box<Command>, u32),
    Answer(Box<Done>, u32),
    Worked(Box<attester::Done>, u32),
}

/// A network that loses a part of what is sent lean.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lossy {
    pub(crate) seed: u64,
    /// The last event that may be lost so.
    pub(crate) until: u64,
}

impl Lossy {
    /// One in four.
    fn loses(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33).is_multiple_of(4)
    }
}

/// A link on which messages take their time one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlowLink {
    pub(crate) one_way: Duration,
    pub(crate) bytes_a_second: u32,
    /// When the last message upwards has been sent.
    pub(crate) up_free: Time,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) device: Device,
    pub(crate) keylime: Keylime,
    pub(crate) policy: Policy,
    /// The operator adds the device as soon as the registrar has it.
    pub(crate) operator: bool,
    /// And again when it waits for that after a reboot.
    pub(crate) adds_again: bool,
    attester: Attester,
    relay: Relay,
    reassembly: Reassembly,
    agent_life: u32,
    bridge_life: u32,
    queue: BTreeMap<(Time, u64), Event>,
    sent: u64,
    pub(crate) events: u64,
    faults: BTreeMap<u64, Fault>,
    pub(crate) lossy: Option<Lossy>,
    pub(crate) slow: Option<SlowLink>,
    /// The device has no connection: what is published for it is gone.
    offline: bool,
    pub(crate) last_fault: Time,
    /// What happened, for a reader of a failed run.
    pub(crate) trace: Vec<String>,
    pub(crate) uefi_cache: Vec<Digest>,
    pub(crate) reports: Vec<(Time, Report)>,
    pub(crate) waiting: Vec<(Time, LaterReason)>,
    pub(crate) accepted: Vec<Outcome>,
    pub(crate) refused: u32,
    pub(crate) bad_notices: Vec<Notice>,
    pub(crate) dropped: Vec<(&'static str, &'static str)>,
    pub(crate) up_messages: BTreeMap<&'static str, u32>,
    /// Everything that was sent, and how.
    pub(crate) said: Vec<(Up, Delivery)>,
    pub(crate) asked_device: Vec<(Question, Delivery)>,
    /// Answers that Keylime gives instead of its own, each once, to the first command of its kind.
    pub(crate) scripted: Vec<(&'static str, Done)>,
    /// Every command that reached Keylime, by kind.
    pub(crate) asked: Vec<(Time, &'static str)>,
    pub(crate) refusals: Vec<RefusedReason>,
    /// Applied to what travels, for lies: returns what arrives instead.
    pub(crate) on_the_way_up: Option<fn(Up) -> Vec<Up>>,
    pub(crate) on_the_way_down: Option<fn(&mut Question)>,
    /// The broker, where it is a hostile one.
    pub(crate) liar: Option<Rc<RefCell<Liar>>>,
    /// What the liar has for the other devices.
    pub(crate) astray: Vec<Lied>,
    /// When the last of what it delayed arrives.
    pub(crate) latest: Time,
    attester_settings: attester::Settings,
    relay_settings: relay::Settings,
}

impl World {
    pub(crate) fn new(device: Device, policy: Policy, faults: BTreeMap<u64, Fault>) -> Self {
        let mut world = Self {
            now: Time::from_secs(100),
            attester: attester(&device, 0, &attester::Settings::default()),
            relay: relay(&device, 0, &relay::Settings::default()),
            attester_settings: attester::Settings::default(),
            relay_settings: relay::Settings::default(),
            device,
            keylime: Keylime::new(),
            policy,
            operator: true,
            adds_again: false,
            reassembly: Reassembly::default(),
            agent_life: 0,
            bridge_life: 0,
            queue: BTreeMap::new(),
            sent: 0,
            events: 0,
            faults,
            lossy: None,
            slow: None,
            offline: false,
            last_fault: Time::ZERO,
            trace: Vec::new(),
            uefi_cache: Vec::new(),
            reports: Vec::new(),
            waiting: Vec::new(),
            accepted: Vec::new(),
            refused: 0,
            bad_notices: Vec::new(),
            dropped: Vec::new(),
            up_messages: BTreeMap::new(),
            said: Vec::new(),
            asked_device: Vec::new(),
            scripted: Vec::new(),
            asked: Vec::new(),
            refusals: Vec::new(),
            on_the_way_up: None,
            on_the_way_down: None,
            liar: None,
            astray: Vec::new(),
            latest: Time::ZERO,
        };
        world.push(Duration::ZERO, Event::DeviceConnected(0));
        world
    }

    /// Before anything has happened: the bridge has these reference files.
    #[must_use]
    pub(crate) fn with_references(mut self, references: Arc<[Reference]>) -> Self {
        self.relay_settings.references = references;
        self.relay = relay(&self.device, 0, &self.relay_settings);
        self
    }

    /// Before anything has happened: both sides are set so, and the broker between them lies.
    #[must_use]
    pub(crate) fn between(
        mut self,
        attester_settings: attester::Settings,
        relay_settings: relay::Settings,
        liar: &Rc<RefCell<Liar>>,
    ) -> Self {
        self.attester = attester(&self.device, 0, &attester_settings);
        self.relay = relay(&self.device, 0, &relay_settings);
        (self.attester_settings, self.relay_settings) = (attester_settings, relay_settings);
        self.liar = Some(Rc::clone(liar));
        self
    }

    /// Something arrives for this device that was another's.
    pub(crate) fn arrive(&mut self, lied: Lied) {
        let event = match lied.on {
            Direction::Up => Event::ToBridge(lied.payload, Delivery::Assured),
            Direction::Down => Event::ToDevice(lied.payload, Delivery::Assured),
            Direction::Presence => Event::Presence(lied.payload),
        };
        self.latest = self.latest.max(self.now + lied.after);
        self.push(NETWORK + lied.after, event);
    }

    /// What was sent so far is of no interest.
    pub(crate) fn listen_anew(&mut self) {
        self.said.clear();
        self.asked_device.clear();
    }

    /// Runs until `done` says so or the time is up; says whether it was done.
    pub(crate) fn run_until(&mut self, limit: Time, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timers = [self.attester.poll_timeout(), self.relay.poll_timeout()];
            let Some(next) = event.into_iter().chain(timers.into_iter().flatten()).min() else {
                return false;
            };
            if next > limit {
                self.now = limit;
                return false;
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                if let Some((_, event)) = self.queue.pop_first() {
                    self.happen(event);
                }
            } else {
                self.attester.handle_timeout(self.now);
                self.relay.handle_timeout(self.now);
            }
            self.drain();
        }
        true
    }

    /// The last things that happened.
    pub(crate) fn tail(&self) -> String {
        let from = self.trace.len().saturating_sub(40);
        self.trace.get(from..).unwrap_or_default().join("\n")
    }

    pub(crate) fn passes(&self) -> usize {
        self.reports.iter().filter(|(_, report)| report.verdict == Verdict::Pass).count()
    }

    pub(crate) fn passes_since(&self, since: Time) -> usize {
        self.reports.iter().filter(|(at, report)| *at > since && report.verdict == Verdict::Pass).count()
    }

    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.reports.iter().map(|(_, report)| report.verdict).collect()
    }

    pub(crate) fn restart_agent(&mut self) {
        self.agent_life += 1;
        self.attester = attester(&self.device, self.agent_life, &self.attester_settings);
        self.device.forget();
        self.offline = false;
        self.push(RECONNECT, Event::DeviceConnected(self.agent_life));
    }

    /// The connection is gone; the agent's process stays.
    pub(crate) fn disconnect(&mut self) {
        self.offline = true;
        self.attester.handle(attester::Input::Disconnected, self.now);
    }

    pub(crate) fn connect(&mut self) {
        self.offline = false;
        self.push(Duration::ZERO, Event::DeviceConnected(self.agent_life));
    }

    /// Bytes of logs that the bridge holds for the device.
    pub(crate) fn held(&self) -> usize {
        self.relay.held()
    }

    pub(crate) fn restart_bridge(&mut self) {
        self.bridge_life += 1;
        self.relay = relay(&self.device, self.bridge_life, &self.relay_settings);
        self.reassembly = Reassembly::default();
        self.uefi_cache.clear();
        // the retained presence
        if self.liar.is_some() {
            self.pass(Direction::Presence, &presence(), RECONNECT);
        } else {
            self.push(RECONNECT, Event::Presence(presence()));
        }
    }

    fn happen(&mut self, event: Event) {
        self.events += 1;
        self.trace.push(format!("{:?} {} {}", self.now, self.events, told(&event)));
        let lost = self.is_lost(&event).then_some(Fault::Lost);
        match self.faults.remove(&self.events).or(lost) {
            None => self.deliver(event),
            Some(fault) => {
                self.last_fault = self.now;
                self.fail(fault, event);
            }
        }
    }

    fn is_lost(&mut self, event: &Event) -> bool {
        let lean = matches!(event, Event::ToBridge(_, Delivery::Lean) | Event::ToDevice(_, Delivery::Lean));
        let events = self.events;
        lean && self.lossy.as_mut().filter(|lossy| events <= lossy.until).is_some_and(Lossy::loses)
    }

    fn fail(&mut self, fault: Fault, event: Event) {
        let timed_out = |command: &Command| answer_unavailable(command);
        match (fault, event) {
            (Fault::Lost, Event::Command(command, life)) => {
                match timed_out(&command) {
                    // Keylime acts, its answer is lost
                    Some(done) => {
                        self.execute(&command, self.now);
                        self.push(Duration::from_secs(60), Event::Answer(Box::new(done), life));
                    }
                    None => self.deliver(Event::Command(command, life)),
                }
            }
            (Fault::Refused, Event::Command(command, life)) => match timed_out(&command) {
                Some(done) => self.push(HTTP, Event::Answer(Box::new(done), life)),
                None => self.deliver(Event::Command(command, life)),
            },
            (Fault::Lost | Fault::Refused, Event::Worked(_, life)) => {
                self.push(TPM, Event::Worked(Box::new(attester::Done::Failed), life));
            }
            // these are the process's own and do not get lost
            (Fault::Lost | Fault::Refused, event @ (Event::Answer(..) | Event::DeviceConnected(_))) => {
                self.deliver(event);
            }
            (
                Fault::Lost | Fault::Refused,
                Event::ToBridge(..) | Event::ToDevice(..) | Event::Presence(_),
            ) => {}
            (Fault::Late, event) => self.push(Duration::from_secs(30), event),
            (Fault::Overtaken, event) => self.push(NETWORK * 3, event),
            (Fault::Twice, event @ (Event::ToBridge(..) | Event::ToDevice(..) | Event::Presence(_))) => {
                self.push(Duration::from_millis(400), event.clone());
                self.deliver(event);
            }
            (Fault::Twice, event) => self.deliver(event),
            (Fault::AgentRestarts, event) => {
                self.restart_agent();
                self.deliver(event);
            }
            (Fault::BridgeRestarts, event) => {
                self.restart_bridge();
                self.deliver(event);
            }
        }
    }

    fn deliver(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::ToBridge(..) | Event::ToDevice(..) if self.offline => {}
            Event::ToBridge(payload, _) => match unpack_up(payload, &mut self.reassembly, now) {
                Ok(Some(up)) => {
                    let lied = match self.on_the_way_up {
                        Some(lie) => lie(up),
                        None => vec![up],
                    };
                    for up in lied {
                        *self.up_messages.entry(up.kind()).or_default() += 1;
                        let ticket = opened(&up, &self.device);
                        self.relay.handle(relay::Input::Received(up, ticket), now);
                    }
                }
                Ok(None) => {}
                Err(_) if self.liar.is_some() => {}
                Err(error) => panic!("the bridge refused a payload of an honest device: {error}"),
            },
            Event::ToDevice(payload, _) => match unpack_down(&payload) {
                Ok(mut down) => {
                    if let Some(lie) = self.on_the_way_down {
                        lie(&mut down.question);
                    }
                    self.attester.handle(attester::Input::Received(down), now);
                }
                Err(_) if self.liar.is_some() => {}
                Err(error) => panic!("a question of an honest bridge: {error}"),
            },
            Event::Presence(payload) => {
                if matches!(decode(&payload), Ok(Presence { online: true })) {
                    self.relay.handle(relay::Input::Present, now);
                }
            }
            Event::DeviceConnected(life) if life == self.agent_life => {
                self.attester.handle(attester::Input::Connected, now);
                self.publish(Direction::Presence, presence(), Delivery::Assured);
            }
            Event::Command(command, life) if life == self.bridge_life => {
                if let Some(done) = self.execute(&command, now) {
                    self.push(HTTP, Event::Answer(Box::new(done), life));
                }
            }
            Event::Answer(done, life) if life == self.bridge_life => {
                self.relay.handle(relay::Input::Done(*done), now);
            }
            Event::Worked(done, life) if life == self.agent_life => {
                self.attester.handle(attester::Input::Done(*done), now);
            }
            // of a life that has ended
            Event::DeviceConnected(_) | Event::Command(..) | Event::Answer(..) | Event::Worked(..) => {}
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.attester.poll_output() {
            match output {
                attester::Output::Send(up, via, delivery) => {
                    // to the bridge that asked; what is said unasked is for any
                    assert!(via.is_none() || via == self.device.via, "{} goes to {via:?}", up.kind());
                    let number = u32::try_from(self.sent).unwrap();
                    for payload in pack_up(&up, number, PAYLOAD).unwrap() {
                        self.publish(Direction::Up, payload, delivery);
                    }
                    self.said.push((up, delivery));
                }
                attester::Output::Work(work) => {
                    let done = self.device.work(work);
                    self.push(TPM, Event::Worked(Box::new(done), self.agent_life));
                }
                attester::Output::Report(report) => self.agent_reports(report),
            }
        }
        while let Some(output) = self.relay.poll_output() {
            match output {
                Output::Send(down, delivery) => {
                    self.publish(Direction::Down, pack_down(&down).unwrap(), delivery);
                    self.asked_device.push((down.question, delivery));
                }
                Output::Command(Command::KeepUefi(digest, log)) => {
                    assert_eq!(Digest::of(&[&log]), digest);
                    self.uefi_cache.push(digest);
                }
                Output::Command(command) => {
                    self.push(HTTP, Event::Command(Box::new(command), self.bridge_life));
                }
                Output::Report(report) => {
                    if let Some(liar) = self.liar.as_ref().filter(|_| report.nonce.is_some()) {
                        liar.borrow_mut().judged(self.device.id.as_str(), self.now);
                    }
                    self.reports.push((self.now, report));
                }
                Output::Notice(notice @ (Notice::Superseded | Notice::Invalid { .. })) => {
                    self.bad_notices.push(notice);
                }
                Output::Notice(Notice::Dropped { kind, why }) => self.dropped.push((kind, why)),
                Output::Notice(
                    Notice::Setback { .. } | Notice::TurnedAway { .. } | Notice::Unexplained { .. },
                ) => {}
            }
        }
    }

    fn publish(&mut self, direction: Direction, payload: Vec<u8>, delivery: Delivery) {
        if self.liar.is_none() {
            let (takes, event) = match direction {
                Direction::Up => (self.takes_up(payload.len()), Event::ToBridge(payload, delivery)),
                Direction::Down => {
                    (self.slow.map_or(NETWORK, |slow| slow.one_way), Event::ToDevice(payload, delivery))
                }
                Direction::Presence => (NETWORK, Event::Presence(payload)),
            };
            return self.push(takes, event);
        }
        self.pass(direction, &payload, Duration::ZERO);
    }

    /// By way of the hostile broker, of which nothing comes before so long.
    fn pass(&mut self, direction: Direction, payload: &[u8], after: Duration) {
        let id = self.device.id.as_str();
        let Some(liar) = &self.liar else { return };
        let arrives = liar.borrow_mut().pass(id, direction, payload, self.now);
        for lied in arrives {
            let lied = Lied { after: after + lied.after, ..lied };
            if lied.device == self.device.id.as_str() {
                self.arrive(lied);
            } else {
                self.astray.push(lied);
            }
        }
    }

    fn agent_reports(&mut self, report: attester::Report) {
        match report {
            attester::Report::Enrolled => self.device.enrolled = true,
            attester::Report::Ticket(ticket) => self.device.ticket = Some(ticket.into_vec()),
            attester::Report::Waiting(later) => {
                self.waiting.push((self.now, later.reason));
                if self.adds_again && later.reason == LaterReason::Rebooted {
                    self.keylime.add(self.policy);
                }
            }
            attester::Report::Refused(refused) => {
                self.refused += 1;
                self.refusals.push(refused.reason);
            }
            attester::Report::Accepted(accepted) => self.accepted.push(accepted.outcome),
            attester::Report::Unanswered(_) | attester::Report::Ignored(_) => {}
        }
    }

    fn execute(&mut self, command: &Command, now: Time) -> Option<Done> {
        self.asked.push((now, kind(command)));
        if let Some(at) = self.scripted.iter().position(|(scripted, _)| *scripted == kind(command)) {
            return Some(self.scripted.remove(at).1);
        }
        Some(match command {
            Command::Register(enrol) => {
                let ek = enrol.ek_public.as_slice();
                // admission: an id is one EK's
                Done::Registered(match AkName::of_public(enrol.ak_public.as_slice()) {
                    _ if enrol.ek_certificate.is_none() => Registered::Refused(RefusedReason::NoCertificate),
                    Some(ak) if ek == self.device.ek_public() => self.keylime.registered(ek, ak),
                    Some(_) => Registered::Refused(RefusedReason::NotAdmitted),
                    None => Registered::Refused(RefusedReason::Malformed),
                })
            }
            Command::Withdraw => {
                self.keylime.activated(&[0; 48]);
                Done::Withdrawn
            }
            Command::Activate { auth_tag } => {
                let activated = self.keylime.activated(auth_tag.as_bytes());
                if self.operator && !self.keylime.is_added() {
                    self.keylime.add(self.policy);
                }
                Done::Activated(activated)
            }
            Command::OpenSession { .. } => Done::Session(self.keylime.session(now)),
            Command::Prove { session, proof, nonce, ak_public } => {
                let unbound = Keylime::unbound(proof, nonce, ak_public.as_slice());
                Done::Proven(unbound.unwrap_or_else(|| self.keylime.proven(session, proof, now)))
            }
            Command::CheckStatement { statement, expected, ak_public } => {
                Done::StatementChecked(device::stated(statement, expected, ak_public.as_slice()))
            }
            Command::ReadStatus { token } => Done::Status(self.keylime.status(token, now)),
            Command::Offer { token, facts } => Done::Offered(self.keylime.offered(token, facts, now)),
            Command::FindUefi(digest) => Done::UefiFound(self.uefi_cache.contains(digest)),
            Command::KeepUefi(..) => return None,
            Command::Unpack(unpack) => Done::Unpacked(unpack.carry_out(&self.relay_settings.references)),
            Command::Restore(restore) => {
                Done::Restored(attest::restored(restore, &self.relay_settings.references))
            }
            Command::Submit { token, offer, restored } => {
                let held = restored.uefi.is_none_or(|log| self.uefi_cache.contains(&log));
                if !held && self.liar.is_some() {
                    return Some(Done::Submitted(Submitted::LogGone));
                }
                assert!(held, "a UEFI log is submitted that the bridge does not have");
                Done::Submitted(self.keylime.submitted(token, offer.index, restored, now))
            }
        })
    }

    /// Until a message of so many bytes has arrived at the bridge.
    fn takes_up(&mut self, bytes: usize) -> Duration {
        let Some(slow) = &mut self.slow else { return NETWORK };
        let sending = Duration::from_secs(bytes as u64) / slow.bytes_a_second;
        slow.up_free = slow.up_free.max(self.now) + sending;
        slow.up_free.saturating_sub(self.now) + slow.one_way
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.sent += 1;
        self.queue.insert((self.now + after, self.sent), event);
    }
}

fn presence() -> Vec<u8> {
    encode(&Presence { online: true }).unwrap()
}

fn told(event: &Event) -> String {
    match event {
        Event::ToBridge(payload, _) => {
            match unpack_up(payload.clone(), &mut Reassembly::default(), Time::ZERO) {
                Ok(Some(up)) => format!("up {}", up.kind()),
                _ => "up fragment".to_owned(),
            }
        }
        Event::ToDevice(payload, _) => {
            unpack_down(payload).map_or_else(|_| "down ?".to_owned(), |down| Beginning::of(&down.question))
        }
        other => Beginning::of(other),
    }
}

/// The first words of a value's `Debug`. Logs are in there, and to write them out would take most of a run's time.
struct Beginning(String);

impl Beginning {
    fn of(value: &impl Debug) -> String {
        let mut beginning = Self(String::new());
        // it ends in an error where it is cut, which is what is wanted
        if write!(beginning, "{value:?}").is_err() {
            beginning.0.push_str("..");
        }
        beginning.0
    }
}

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.push_str(text);
        if self.0.len() > 120 { Err(std::fmt::Error) } else { Ok(()) }
    }
}

fn attester(device: &Device, life: u32, settings: &attester::Settings) -> Attester {
    let seed = u64::from(life) + 1;
    let settings = attester::Settings {
        seed,
        sleeps: device.sleep.is_some(),
        enrol_again_after: device.enrol_again_after,
        ..settings.clone()
    };
    Attester::new(settings, device.enrolled)
}

fn relay(device: &Device, life: u32, settings: &relay::Settings) -> Relay {
    let settings = relay::Settings { seed: u64::from(life) + 1, via: device.via.clone(), ..settings.clone() };
    Relay::new(device.id.clone(), settings)
}

/// The model's seal: the ticket says its token and the AK, and opens for the device that has this AK alone.
fn opened(up: &Up, device: &Device) -> Option<OpenedTicket> {
    let Up::Ready(ready) = up else { return None };
    let ticket = String::from_utf8(ready.ticket.clone()?.into_vec()).ok()?;
    let (ak, token) = ticket.strip_prefix("ticket:")?.split_once(':')?;
    let own = ak == hex::encode(device.ak().as_bytes());
    own.then(|| OpenedTicket { token: Token::new(token.to_owned()), ak: device.ak() })
}

/// A command as a word.
pub(crate) fn kind(command: &Command) -> &'static str {
    match command {
        Command::Register(_) => "Register",
        Command::Activate { .. } => "Activate",
        Command::Withdraw => "Withdraw",
        Command::OpenSession { .. } => "OpenSession",
        Command::Prove { .. } => "Prove",
        Command::CheckStatement { .. } => "CheckStatement",
        Command::ReadStatus { .. } => "ReadStatus",
        Command::Offer { .. } => "Offer",
        Command::FindUefi(_) => "FindUefi",
        Command::KeepUefi(..) => "KeepUefi",
        Command::Unpack(_) => "Unpack",
        Command::Restore(_) => "Restore",
        Command::Submit { .. } => "Submit",
    }
}

fn answer_unavailable(command: &Command) -> Option<Done> {
    let unavailable = Unavailable { retry_after: None };
    Some(match command {
        Command::Register(_) => Done::Registered(Registered::Unavailable(unavailable)),
        Command::Activate { .. } => Done::Activated(Activated::Unavailable(unavailable)),
        Command::OpenSession { .. } => Done::Session(Session::Unavailable(unavailable)),
        Command::Prove { .. } => Done::Proven(Proven::Unavailable(unavailable)),
        Command::ReadStatus { .. } => Done::Status(Status::Unavailable(unavailable)),
        Command::Offer { .. } => Done::Offered(Offered::Unavailable(unavailable)),
        Command::Submit { .. } => Done::Submitted(Submitted::Unavailable(unavailable)),
        // these are the bridge's own and do not time out
        Command::CheckStatement { .. }
        | Command::Withdraw
        | Command::FindUefi(_)
        | Command::KeepUefi(..)
        | Command::Unpack(_)
        | Command::Restore(_) => {
            return None;
        }
    })
}
