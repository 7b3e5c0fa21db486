//! The loop between link, exchange and worker, from the first connection to the end.

use std::time::Duration;

use keylime_mqtt_broker_config::{CheckedBroker, Incoming, Link, LinkEvent, Qos, Will, connect};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec::encode;
use keylime_mqtt_schemas::exchange::Attester;
use keylime_mqtt_schemas::exchange::attester::{Done, Input, Output, Report, Settings};
use keylime_mqtt_schemas::messages::{LaterReason, Outcome as Verdict, Presence, RefusedReason, Up};
use keylime_mqtt_schemas::topics::{Topics, Via};
use keylime_mqtt_schemas::wire::{pack_up, unpack_down};
use tokio::time::{Instant, MissedTickBehavior};

use super::ending::Ending;
use super::worker::{Errand, Outcome, Worker};
use super::{RunError, Stop, reached};
use crate::config::Config;
use crate::evidence::Device;
use crate::tpm::{HOPELESS_AFTER, Tpm};

/// How often the TPM's thread is looked after.
const LOOK_AFTER_TPM: Duration = Duration::from_secs(10);
/// So many unanswered introductions are worth an operator's look: with the usual waits, some ten minutes.
const LONG_UNANSWERED: u32 = 6;

/// Everything one run needs.
pub(super) struct Session {
    id: AgentId,
    topics: Topics,
    payload_bytes: usize,
    settings: Settings,
    link: Link,
    incoming: Incoming,
    worker: Worker,
    tpm: Tpm,
    attester: Attester,
    epoch: Instant,
    /// Once: the latest end.
    deadline: Option<Instant>,
    connected: bool,
    /// Tells fragmented messages apart.
    message: u32,
    refused_payloads: u64,
    said: Said,
    ending: Option<Ending>,
}

/// What was logged last, so that a repeated answer is not a repeated line.
#[derive(Debug, Default)]
struct Said {
    verdict: Option<Verdict>,
    waiting: Option<LaterReason>,
    refused: Option<RefusedReason>,
    attesting: bool,
}

impl Session {
    pub(super) fn start(
        config: &Config,
        broker: CheckedBroker,
        id: AgentId,
        device: Device,
        tpm: Tpm,
        deadline: Option<Instant>,
    ) -> Result<Self, RunError> {
        let topics = config.topics()?;
        let settings = config.attester(rand::random());
        let attester = Attester::new(settings.clone(), device.is_enrolled());
        let worker = Worker::spawn(device)
            .map_err(|source| RunError::System { what: "no thread for the device", source })?;
        let client_id = broker.client_id().unwrap_or(id.as_str()).to_owned();
        let will = Will {
            topic: topics.presence(&id),
            payload: presence(false),
            qos: Qos::AtLeastOnce,
            retain: true,
        };
        let subscriptions = vec![(topics.challenge(&id), Qos::AtLeastOnce)];
        let (link, incoming) = connect(broker, client_id, Some(will), subscriptions);
        let payload_bytes = config.payload_bytes.min(link.payload_limit(&topics.evidence(&id, None)));
        Ok(Self {
            id,
            topics,
            payload_bytes,
            settings,
            link,
            incoming,
            worker,
            tpm,
            attester,
            epoch: Instant::now(),
            deadline,
            connected: false,
            message: rand::random(),
            refused_payloads: 0,
            said: Said::default(),
            ending: None,
        })
    }

    /// Runs until a signal, or until a single run has its result.
    pub(super) async fn run(mut self, stop: &mut Stop) -> Result<Ending, RunError> {
        let mut look_after_tpm = tokio::time::interval(LOOK_AFTER_TPM);
        look_after_tpm.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ending = loop {
            let timeout = self.attester.poll_timeout().map(|at| self.epoch + at);
            tokio::select! {
                event = self.incoming.next() => match event {
                    Some(event) => self.link_event(event),
                    None => break Ok(Ending::Stopped),
                },
                outcome = self.worker.outcome() => match outcome {
                    Some(Outcome::Done(done)) => self.attester.handle(Input::Done(done), self.epoch.elapsed()),
                    Some(Outcome::NewAk) => self.start_over(),
                    None => break Err(RunError::WorkerEnded),
                },
                () = reached(timeout) => self.attester.handle_timeout(self.epoch.elapsed()),
                () = reached(self.deadline) => break Ok(self.at_the_deadline()),
                _ = look_after_tpm.tick() => {
                    if self.tpm.busy_for().is_some_and(|busy| busy > HOPELESS_AFTER) {
                        break Err(RunError::TpmHangs);
                    }
                }
                () = stop.asked() => break Ok(Ending::Stopped),
            }
            self.carry_out();
            if let Some(ending) = self.ending {
                break Ok(ending);
            }
        };
        self.leave().await;
        ending
    }

    fn link_event(&mut self, event: LinkEvent) {
        let now = self.epoch.elapsed();
        match event {
            LinkEvent::Connected { .. } => {
                self.connected = true;
                self.publish(&self.topics.presence(&self.id), presence(true), true);
                self.attester.handle(Input::Connected, now);
            }
            LinkEvent::Disconnected { reason } => {
                tracing::debug!(reason, "disconnected");
                self.connected = false;
                self.attester.handle(Input::Disconnected, now);
            }
            LinkEvent::Message { topic, payload, .. } if topic == self.topics.challenge(&self.id) => {
                match unpack_down(&payload) {
                    Ok(down) => {
                        tracing::debug!(kind = down.question.kind(), bytes = payload.len(), "received");
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

    fn carry_out(&mut self) {
        while let Some(output) = self.attester.poll_output() {
            match output {
                Output::Send(up, via) => self.send(&up, via.as_ref()),
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

    fn send(&mut self, up: &Up, via: Option<&Via>) {
        self.message = self.message.wrapping_add(1);
        if matches!(up, Up::Evidence(_)) {
            self.say_attesting();
        }
        let topic = self.topics.evidence(&self.id, via);
        match pack_up(up, self.message, self.payload_bytes) {
            Ok(payloads) => {
                let bytes: usize = payloads.iter().map(Vec::len).sum();
                tracing::debug!(kind = up.kind(), bytes, parts = payloads.len(), "sent");
                for payload in payloads {
                    self.publish(&topic, payload, false);
                }
            }
            Err(error) => tracing::error!(kind = up.kind(), %error, "a message cannot be sent"),
        }
    }

    /// What the link does not take is not sent; the exchange repeats it.
    fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) {
        if let Err(error) = self.link.publish(topic, payload, Qos::AtLeastOnce, retain) {
            tracing::warn!(topic, %error, "not sent");
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
                self.say_verdict(accepted.outcome);
                self.end_once(Ending::Attested(accepted.outcome));
            }
            Report::Waiting(later) => {
                if self.said.waiting.replace(later.reason) != Some(later.reason) {
                    self.said.attesting = false;
                    tracing::info!(seconds = later.seconds, "told to wait: {}", later.reason);
                }
                let until = Instant::now() + Duration::from_secs(u64::from(later.seconds));
                if self.deadline.is_some_and(|deadline| until >= deadline) {
                    self.end_once(Ending::ToldToWait(later.reason));
                }
            }
            Report::Refused(refused) => {
                if self.said.refused.replace(refused.reason) != Some(refused.reason) {
                    self.said.attesting = false;
                    tracing::warn!(seconds = refused.seconds, "refused: {}", refused.reason);
                }
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

    /// To a device that runs on the bridge tells no verdict, so this is what its log says of success: once, and again
    /// after it was told to wait for something that only an operator mends.
    fn say_attesting(&mut self) {
        let mended = |reason: &mut LaterReason| {
            matches!(reason, LaterReason::NotEnrolled | LaterReason::NoPolicy | LaterReason::Rebooted)
        };
        self.said.waiting.take_if(mended);
        if !std::mem::replace(&mut self.said.attesting, true) {
            tracing::info!("evidence goes to Keylime; the verdict is in this device's result topic");
        }
    }

    fn say_verdict(&mut self, verdict: Verdict) {
        self.said.waiting = None;
        self.said.refused = None;
        if self.said.verdict.replace(verdict) == Some(verdict) {
            return;
        }
        match verdict {
            Verdict::Pass => tracing::info!("Keylime says PASS"),
            Verdict::Fail => tracing::warn!("Keylime says FAIL; the verifier's log says why"),
            Verdict::Unknown => tracing::info!("the evidence was accepted, Keylime has not judged it yet"),
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
        self.said.waiting.map_or(Ending::Unanswered, Ending::ToldToWait)
    }

    /// A new AK is a new device to the registrar; nothing said before holds.
    fn start_over(&mut self) {
        self.attester = Attester::new(self.settings.clone(), false);
        if self.connected {
            self.attester.handle(Input::Connected, self.epoch.elapsed());
        }
    }

    async fn leave(self) {
        let traffic = self.link.traffic();
        tracing::info!(
            messages_sent = traffic.messages_sent,
            bytes_sent = traffic.payload_bytes_sent,
            messages_received = traffic.messages_received,
            bytes_received = traffic.payload_bytes_received,
            "ending"
        );
        if self.connected {
            // An orderly end drops the will, so the device says itself that it goes.
            self.publish(&self.topics.presence(&self.id), presence(false), true);
        }
        self.link.shutdown().await;
    }
}

fn presence(online: bool) -> Vec<u8> {
    encode(&Presence { online }).unwrap_or_default()
}
