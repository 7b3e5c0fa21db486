//! What relays ask for: questions and results to the broker, commands to tasks of their own, notices to the log.
//!
//! Invariant: nothing here waits. A command's task always reports back, even if the code that carries it out fails.

use super::broker::{Outbox, Unsent};
use super::device::HeldBack;
use super::outcome::{broken, served};
use super::report::result_of;
use super::{Finished, Fleet};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::relay::{Command, Done, Input, Notice, Report, Session, Submitted};
use keylime_mqtt_schemas::exchange::{Delivery, Time};
use keylime_mqtt_schemas::messages::{Down, Verdict};
use keylime_mqtt_schemas::wire::pack_down;
use std::sync::Arc;

impl<O: Outbox> Fleet<O> {
    pub(super) fn send(&mut self, id: &AgentId, down: &Down, delivery: Delivery) {
        let sent = pack_down(down)
            .map_err(|_| Unsent::Invalid)
            .and_then(|payload| self.outbox.publish(&self.topics.challenge(id), payload, delivery, false));
        match sent {
            Ok(()) => tracing::debug!(agent = %id, question = down.question.kind(), "asked"),
            // the relay repeats its question
            Err(Unsent::Full) => self.refuse(id, "question", "the queue to the broker is full"),
            Err(Unsent::Invalid) => self.refuse(id, "question", "cannot be published"),
        }
    }

    pub(super) fn perform(&mut self, id: &AgentId, command: Command) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if let Command::KeepUefi(digest, log) = command {
            // at once, because the next command relies on it
            return self.services.keep_uefi(digest, log, &mut device.memory);
        }
        let mut memory = device.memory.clone();
        let (services, finished, id) = (Arc::clone(&self.services), self.finished.clone(), id.clone());
        let fallback = broken(&command);
        let former = memory.clone();
        tokio::spawn(async move {
            let agent = id.clone();
            let work = tokio::spawn(async move {
                let done = services.perform(&agent, command, &mut memory).await;
                (done, memory)
            });
            let (done, memory) = work.await.unwrap_or((fallback, former));
            // the receiver goes only with the fleet itself
            if finished.send(Finished { id, done, memory }).await.is_err() {
                tracing::debug!("a command ended after the fleet");
            }
        });
    }

    pub(super) fn handle_finished(&mut self, finished: Finished) {
        let Finished { id, done, memory } = finished;
        let now = self.services.now();
        let Some(device) = self.devices.get_mut(&id) else { return };
        device.memory = memory;
        let Some(done) = done else { return };
        // the others are submitted again
        let again = matches!(done, Done::Submitted(Submitted::TokenRejected | Submitted::Unavailable(_)));
        if matches!(done, Done::Submitted(_)) && !again {
            device.memory.uefi = None;
        }
        if served(&done) {
            device.setback = None;
            device.turned_away = None;
        } else if matches!(done, Done::Session(Session::Opened { .. })) {
            device.turned_away = None;
        }
        self.drive(&id, Input::Done(done), now);
    }

    pub(super) fn report(&mut self, id: &AgentId, report: Report) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.note(&report) {
            let (verdict, reason) = (report.verdict, report.reason.as_deref());
            match verdict {
                Verdict::Fail | Verdict::Timeout => tracing::warn!(agent = %id, ?verdict, reason, "result"),
                Verdict::Pass | Verdict::Pending | Verdict::Unknown => {
                    tracing::info!(agent = %id, ?verdict, reason, "result");
                }
            }
        }
        let published = serde_json::to_vec(&result_of(id, &report))
            .map_err(|_| Unsent::Invalid)
            .and_then(|json| self.outbox.publish(&self.topics.result(id), json, Delivery::Assured, true));
        device.unpublished = match published {
            Ok(()) => None,
            Err(Unsent::Full) => Some(report),
            Err(Unsent::Invalid) => {
                self.refusals.count("result", "cannot be published");
                None
            }
        };
    }

    pub(super) fn notice(&mut self, id: &AgentId, notice: Notice, now: Time) {
        match notice {
            Notice::Dropped { kind, why } => self.refuse(id, kind, why),
            Notice::Setback { what, wait } => {
                tracing::debug!(agent = %id, what, ?wait, "Keylime did not answer");
                if let Some(device) = self.devices.get_mut(id) {
                    HeldBack::note(&mut device.setback, wait, now);
                }
                if !self.in_trouble {
                    self.in_trouble = true;
                    tracing::info!(agent = %id, what, "Keylime does not answer; it is tried again");
                }
            }
            Notice::TurnedAway { wait } => {
                tracing::debug!(agent = %id, ?wait, "no room for it just now");
                if let Some(device) = self.devices.get_mut(id) {
                    HeldBack::note(&mut device.turned_away, wait, now);
                }
            }
            // as intended where several serve: the device has gone over to another
            Notice::Superseded if self.via.is_some() => {
                tracing::info!(agent = %id, "another bridge attests for this device now");
            }
            Notice::Superseded => {
                tracing::warn!(agent = %id, "another bridge or agent attests for this device");
            }
            Notice::Invalid { what, detail } => {
                tracing::warn!(agent = %id, what, detail, "Keylime cannot use what the device gave");
            }
            Notice::Unexplained { what } => {
                tracing::info!(agent = %id, what, "the device is asked to state what it sent");
            }
        }
    }

    pub(super) fn refuse(&mut self, id: &AgentId, kind: &'static str, why: &'static str) {
        tracing::debug!(agent = %id, kind, why, "dropped");
        self.refusals.count(kind, why);
    }
}
