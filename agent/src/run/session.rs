//! The loop between link, exchange and worker, from the first connection to the end.
//!
//! A device that sleeps goes through it once per wake: the exchange, the TPM and the TLS sessions live on between wakes,
//! so that a wake costs one handshake that resumes and a few bytes for "as before". Nothing of that outlives the process:
//! rustls keeps TLS 1.3 tickets in memory only (`Tls13ClientSessionValue` has no form outside of it), so each new process
//! pays for a whole handshake.

use std::time::Duration;

use keylime_mqtt_broker_config::{CheckedBroker, Incoming, Link, LinkEvent, Qos, Will, connect};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec::encode;
use keylime_mqtt_schemas::exchange::attester::{Done, Input, Output, Report, Settings};
use keylime_mqtt_schemas::exchange::{Attester, Delivery};
use keylime_mqtt_schemas::messages::{LaterReason, Presence, Question, Up};
use keylime_mqtt_schemas::topics::{Topics, Via};
use keylime_mqtt_schemas::wire::{pack_up, unpack_down};
use tokio::time::{Instant, MissedTickBehavior};

use super::ending::Ending;
use super::payload::PayloadLimit;
use super::said::Said;
use super::worker::{Errand, Outcome, Worker};
use super::{Mode, RunError, Stop, reached};
use crate::config::Config;
use crate::evidence::Device;
use crate::tpm::{HOPELESS_AFTER, Tpm};

/// How often the TPM's thread is looked after.
const LOOK_AFTER_TPM: Duration = Duration::from_secs(10);
/// So many unanswered introductions are worth an operator's look: with the usual waits, some ten minutes.
const LONG_UNANSWERED: u32 = 6;

/// A TPM busy with one request for longer is why there was no answer: commands of ours take well below a second.
const SLOW_COMMAND: Duration = Duration::from_secs(2);

/// A bridge names as silence at least two intervals and what repeats take: a quarter is some half of an interval.
const SILENCE_TO_MISSED: u32 = 4;

/// Everything one run needs.
pub(super) struct Session {
    id: AgentId,
    topics: Topics,
    payloads: PayloadLimit,
    settings: Settings,
    mode: Mode,
    broker: CheckedBroker,
    worker: Worker,
    tpm: Tpm,
    attester: Attester,
    epoch: Instant,
    /// Of a single run or of this wake: the latest end.
    deadline: Option<Instant>,
    /// Tells fragmented messages apart.
    message: u32,
    refused_payloads: u64,
    said: Said,
    /// When the bridge wants the next attestation; said in this wake.
    due: Option<Instant>,
    /// In this run or wake.
    told_to_wait: Option<LaterReason>,
    ending: Option<Ending>,
}

/// The connection to the broker, from the first attempt to the orderly end.
struct Line {
    link: Link,
    incoming: Incoming,
    connected: bool,
}

impl Session {
    pub(super) fn start(
        config: &Config,
        broker: CheckedBroker,
        id: AgentId,
        device: Device,
        tpm: Tpm,
        (mode, deadline): (Mode, Option<Instant>),
    ) -> Result<Self, RunError> {
        let topics = config.topics()?;
        let settings = config.attester(rand::random(), mode != Mode::Service);
        let attester = Attester::new(settings.clone(), device.is_enrolled());
        let worker = Worker::spawn(device)
            .map_err(|source| RunError::System { what: "no thread for the device", source })?;
        Ok(Self {
            id,
            topics,
            payloads: PayloadLimit::new(config.payload_bytes),
            settings,
            mode,
            broker,
            worker,
            tpm,
            attester,
            epoch: Instant::now(),
            deadline,
            message: rand::random(),
            refused_payloads: 0,
            said: Said::default(),
            due: None,
            told_to_wait: None,
            ending: None,
        })
    }

    /// Runs until a signal, or until a single run has its result.
    pub(super) async fn run(mut self, stop: &mut Stop) -> Result<Ending, RunError> {
        let Mode::Every { seconds, deadline } = self.mode else { return self.wake(stop).await };
        let every = Duration::from_secs(seconds.into());
        loop {
            let woke = Instant::now();
            self.deadline = Some(woke + deadline);
            (self.due, self.told_to_wait) = (None, None);
            let ending = self.wake(stop).await?;
            if ending == Ending::Stopped {
                return Ok(ending);
            }
            let next = next_wake(woke, every, self.due).max(Instant::now());
            tracing::info!(next_in = ?next.duration_since(Instant::now()), "asleep: {ending}");
            if self.stopped_before(next, stop).await? {
                return Ok(Ending::Stopped);
            }
        }
    }

    /// From the connection to the end: of a service with a signal, else with the outcome.
    async fn wake(&mut self, stop: &mut Stop) -> Result<Ending, RunError> {
        let mut look_after_tpm = looks_after_tpm();
        self.ending = None;
        let mut line = self.connect();
        let ending = loop {
            let timeout = self.attester.poll_timeout().map(|at| self.epoch + at);
            tokio::select! {
                event = line.incoming.next() => match event {
                    Some(event) => self.link_event(event, &mut line),
                    None => break Ok(Ending::Stopped),
                },
                outcome = self.worker.outcome() => match self.outcome(outcome, line.connected) {
                    Ok(()) => (),
                    Err(error) => break Err(error),
                },
                () = reached(timeout) => self.attester.handle_timeout(self.epoch.elapsed()),
                () = reached(self.deadline) => break Ok(self.at_the_deadline()),
                _ = look_after_tpm.tick() => if let Err(error) = self.look_after_tpm() { break Err(error) },
                () = stop.asked() => break Ok(Ending::Stopped),
            }
            self.carry_out(&line);
            if let Some(ending) = self.ending {
                break Ok(ending);
            }
        };
        self.leave(line).await;
        ending
    }

    /// Sleeps. True when told to stop; an answer of the TPM that comes late is still taken.
    async fn stopped_before(&mut self, next: Instant, stop: &mut Stop) -> Result<bool, RunError> {
        let mut look_after_tpm = looks_after_tpm();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => return Ok(false),
                outcome = self.worker.outcome() => self.outcome(outcome, false)?,
                _ = look_after_tpm.tick() => self.look_after_tpm()?,
                () = stop.asked() => return Ok(true),
            }
        }
    }

    fn connect(&mut self) -> Line {
        let client_id = self.broker.client_id().unwrap_or(self.id.as_str()).to_owned();
        // That a device which sleeps is not connected says nothing, and would be said at each wake.
        let will = self.is_a_service().then(|| Will {
            topic: self.topics.presence(&self.id),
            payload: presence(false),
            qos: Qos::AtLeastOnce,
            retain: true,
        });
        let subscriptions = vec![(self.topics.challenge(&self.id), Qos::AtLeastOnce)];
        let (link, incoming) = connect(self.broker.clone(), client_id, will, subscriptions);
        Line { link, incoming, connected: false }
    }

    fn is_a_service(&self) -> bool {
        self.mode == Mode::Service
    }

    fn outcome(&mut self, outcome: Option<Outcome>, connected: bool) -> Result<(), RunError> {
        match outcome {
            Some(Outcome::Done(done)) => self.attester.handle(Input::Done(*done), self.epoch.elapsed()),
            Some(Outcome::NewAk) => self.start_over(connected),
            None => return Err(RunError::WorkerEnded),
        }
        Ok(())
    }

    fn look_after_tpm(&self) -> Result<(), RunError> {
        if self.tpm.busy_for().is_some_and(|busy| busy > HOPELESS_AFTER) {
            return Err(RunError::TpmHangs);
        }
        Ok(())
    }

    fn link_event(&mut self, event: LinkEvent, line: &mut Line) {
        let now = self.epoch.elapsed();
        match event {
            LinkEvent::Connected { .. } => {
                line.connected = true;
                if self.is_a_service() {
                    line.publish(&self.topics.presence(&self.id), presence(true), Qos::AtLeastOnce, true);
                }
                self.attester.handle(Input::Connected, now);
            }
            LinkEvent::Disconnected { reason } => {
                tracing::debug!(reason, "disconnected");
                line.connected = false;
                self.attester.handle(Input::Disconnected, now);
            }
            LinkEvent::Message { topic, payload, .. } if topic == self.topics.challenge(&self.id) => {
                match unpack_down(&payload) {
                    Ok(down) => {
                        tracing::debug!(kind = down.question.kind(), bytes = payload.len(), "received");
                        self.payloads.asked(&down.question, line.link.is_acknowledged());
                        if let Question::Challenge(challenge) = &down.question {
                            line.link.is_missed_after(
                                Duration::from_secs(challenge.silence.into()) / SILENCE_TO_MISSED,
                            );
                        }
                        self.attester.handle(Input::Received(down), now);
                    }
                    Err(error) => self.refuse(&error),
                }
            }
            LinkEvent::Message { .. } => self.refuse(&"a topic that was not subscribed to"),
        }
    }

    /// Counted, and logged at the first, second, fourth, eighth …: a flood of rubbish must not become a flood of lines.
    fn refuse(&mut self, why: &dyn std::fmt::Display) {
        self.refused_payloads += 1;
        if self.refused_payloads.is_power_of_two() {
            tracing::info!(%why, count = self.refused_payloads, "refused a payload from the broker");
        }
    }

    fn carry_out(&mut self, line: &Line) {
        while let Some(output) = self.attester.poll_output() {
            match output {
                Output::Send(up, via, delivery) => self.send(&up, via.as_ref(), delivery, line),
                Output::Work(work) => {
                    if let Err(error) = self.worker.give(Errand::Work(work)) {
                        tracing::warn!(%error, "the device is too busy");
                        self.attester.handle(Input::Done(Done::Failed), self.epoch.elapsed());
                    }
                }
                Output::Report(report) => self.report(report),
            }
        }
    }

    fn send(&mut self, up: &Up, via: Option<&Via>, delivery: Delivery, line: &Line) {
        self.message = self.message.wrapping_add(1);
        if matches!(up, Up::Evidence(_)) {
            self.said.attesting();
        }
        let topic = self.topics.evidence(&self.id, via);
        match pack_up(up, self.message, self.payloads.bytes().min(line.link.payload_limit(&topic))) {
            Ok(payloads) => {
                self.payloads.sent(payloads.iter().map(Vec::len).max().unwrap_or(0));
                let bytes: usize = payloads.iter().map(Vec::len).sum();
                tracing::debug!(kind = up.kind(), bytes, parts = payloads.len(), ?delivery, "sent");
                let qos = qos(delivery, payloads.len());
                for payload in payloads {
                    line.publish(&topic, payload, qos, false);
                }
            }
            Err(error) => tracing::error!(kind = up.kind(), %error, "a message cannot be sent"),
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Enrolled => {
                tracing::info!("the registrar knows this device's AK");
                self.keep(Errand::KeepEnrolled);
            }
            Report::Ticket(ticket) => self.keep(Errand::KeepTicket(ticket)),
            Report::Accepted(accepted) => {
                self.said.verdict(accepted.outcome);
                self.due = Some(Instant::now() + Duration::from_secs(u64::from(accepted.seconds)));
                self.end_once(Ending::Attested(accepted.outcome));
            }
            Report::Waiting(later) => {
                self.said.waiting(later);
                self.told_to_wait = Some(later.reason);
                let until = Instant::now() + Duration::from_secs(u64::from(later.seconds));
                if self.deadline.is_some_and(|deadline| until >= deadline) {
                    self.end_once(Ending::ToldToWait(later.reason));
                }
            }
            Report::Refused(refused) => {
                self.said.refused(refused);
                self.end_once(Ending::Refused(refused.reason));
            }
            Report::Unanswered(LONG_UNANSWERED) => tracing::warn!(
                "no bridge answers: does one run with this topic prefix, and is {} the common name in broker.cert_file, by which the broker's ACL goes?",
                self.id
            ),
            Report::Unanswered(times) => tracing::info!(times, "no bridge has answered yet"),
            Report::Ignored(why) => tracing::debug!(why, "ignored a question"),
        }
    }

    fn keep(&self, errand: Errand) {
        if let Err(error) = self.worker.give(errand) {
            tracing::debug!(%error, "not kept; it is only an optimization");
        }
    }

    fn end_once(&mut self, ending: Ending) {
        if self.deadline.is_some() {
            self.ending = Some(ending);
        }
    }

    fn at_the_deadline(&self) -> Ending {
        if self.tpm.busy_for().is_some_and(|busy| busy > SLOW_COMMAND) {
            return Ending::NoTpm;
        }
        self.told_to_wait.map_or(Ending::Unanswered, Ending::ToldToWait)
    }

    /// A new AK is a new device to the registrar; nothing said before holds.
    fn start_over(&mut self, connected: bool) {
        self.attester = Attester::new(self.settings.clone(), false);
        if connected {
            self.attester.handle(Input::Connected, self.epoch.elapsed());
        }
    }

    async fn leave(&mut self, line: Line) {
        let traffic = line.link.traffic();
        tracing::info!(
            messages_sent = traffic.messages_sent,
            bytes_sent = traffic.payload_bytes_sent,
            messages_received = traffic.messages_received,
            bytes_received = traffic.payload_bytes_received,
            "disconnecting"
        );
        if line.connected && self.is_a_service() {
            // An orderly end drops the will, so the device says itself that it goes.
            line.publish(&self.topics.presence(&self.id), presence(false), Qos::AtLeastOnce, true);
        }
        self.payloads.lower_to(line.link.payload_limit(&self.topics.evidence(&self.id, None)));
        line.link.shutdown().await;
        self.attester.handle(Input::Disconnected, self.epoch.elapsed());
    }
}

impl Line {
    /// What the link does not take is not sent; the exchange repeats it.
    fn publish(&self, topic: &str, payload: Vec<u8>, qos: Qos, retain: bool) {
        if let Err(error) = self.link.publish(topic, payload, qos, retain) {
            tracing::warn!(topic, %error, "not sent");
        }
    }
}

/// An acknowledgement costs as much as a small message, and the exchange repeats what is lost. Of a message in parts each
/// has to arrive, so there the acknowledgements are cheaper than saying it all again.
fn qos(delivery: Delivery, payloads: usize) -> Qos {
    match delivery {
        Delivery::Lean if payloads == 1 => Qos::AtMostOnce,
        Delivery::Lean | Delivery::Assured => Qos::AtLeastOnce,
    }
}

/// Each interval from wake to wake, or a little later when the verifier wants nothing before: a wake too early costs as
/// much as one in time and brings no attestation. Never later than one interval more, whatever the bridge says.
fn next_wake(woke: Instant, every: Duration, due: Option<Instant>) -> Instant {
    let earliest = woke + every;
    due.map_or(earliest, |due| due.clamp(earliest, earliest + every))
}

fn looks_after_tpm() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(LOOK_AFTER_TPM);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn presence(online: bool) -> Vec<u8> {
    encode(&Presence { online }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_one_lost_packet_can_lose_whole_goes_without_acknowledgement() {
        assert_eq!(qos(Delivery::Lean, 1), Qos::AtMostOnce);
        assert_eq!(qos(Delivery::Lean, 2), Qos::AtLeastOnce);
        assert_eq!(qos(Delivery::Assured, 1), Qos::AtLeastOnce);
    }

    #[test]
    fn the_next_wake_is_an_interval_on_and_waits_for_the_verifier_no_longer_than_another() {
        let (woke, every) = (Instant::now(), Duration::from_secs(60));
        let after = |seconds| Some(woke + Duration::from_secs(seconds));
        for (due, expected) in [(None, 60), (after(5), 60), (after(63), 63), (after(100_000), 120)] {
            assert_eq!(next_wake(woke, every, due), woke + Duration::from_secs(expected), "{due:?}");
        }
    }
}
