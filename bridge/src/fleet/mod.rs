//! The fleet: all relays, in one place, driven by what comes in.
//!
//! One task owns every [`Relay`](keylime_mqtt_schemas::exchange::Relay) and does nothing that takes time: it parses, asks the relays, publishes, and hands commands to tasks of
//! their own. Invariants: a relay has at most one command under way; a device that is slow, absent or hostile delays no other; what
//! is held is bounded per device and in total; and every message that was of no use is counted.
//!
//! ```text
//! broker -> handle_link -> Relay -> Output::Send, Report -> broker
//!                            |  ^
//!                    Command v  | Done
//!                          services (tasks) -> Keylime
//! ```

mod device;
mod inbound;
mod outbox;
mod outcome;
mod report;
mod restoring;
mod services;
mod uefi_cache;

pub use outbox::{Outbox, Unsent};
pub use report::{Snapshot, Waiting};

use crate::config::{Checked, Limits};
use device::Device;
use inbound::Refusals;
use keylime_mqtt_broker_config::LinkEvent;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{Command, Done, Input, Notice, Output, Report, Settings};
use keylime_mqtt_schemas::fragment::is_fragment;
use keylime_mqtt_schemas::messages::{Down, Presence, Up, Verdict};
use keylime_mqtt_schemas::topics::{Topic, Topics, Via};
use keylime_mqtt_schemas::wire::{pack_down, unpack_up};
use rand::RngCore as _;
use report::result_of;
use services::{Memory, Services, broken, is_unavailable};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Finished commands that wait for the fleet's attention; tasks wait for room
const FINISHED: usize = 1024;
/// How often the fleet looks after itself
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often the total of what is held is counted, and room is made
const LEAST_BETWEEN_EVICTIONS: Duration = Duration::from_secs(10);
/// A device that was heard within this time is not forgotten to make room
const RECENT: Duration = Duration::from_secs(60);
/// Keylime may be away for so long before an operator is called
const PATIENCE: Duration = Duration::from_secs(60);

/// A question to the fleet
pub type SnapshotRequest = oneshot::Sender<Snapshot>;

/// All devices of a bridge
#[derive(Debug)]
pub struct Fleet<O> {
    services: Arc<Services>,
    outbox: O,
    topics: Topics,
    via: Option<Via>,
    settings: Settings,
    limits: Limits,
    devices: HashMap<AgentId, Device>,
    timers: BTreeSet<(Time, AgentId)>,
    refusals: Refusals,
    /// Bytes held, as counted last
    held: usize,
    evicted_at: Option<Time>,
    in_trouble: bool,
    warned_at: Option<Time>,
    summed_at: Time,
    finished: mpsc::Sender<Finished>,
    finishing: mpsc::Receiver<Finished>,
    /// Where and what the bridge says of itself at each connection
    announcement: Option<(String, Vec<u8>)>,
}

/// A command that was carried out
#[derive(Debug)]
struct Finished {
    id: AgentId,
    done: Option<Done>,
    memory: Memory,
}

impl<O: Outbox> Fleet<O> {
    /// An empty fleet; devices appear as they speak or show up
    pub fn new(checked: Checked, outbox: O) -> Self {
        let (finished, finishing) = mpsc::channel(FINISHED);
        Self {
            topics: checked.topics.clone(),
            via: checked.via.clone(),
            settings: checked.relay.clone(),
            limits: checked.config.limits,
            services: Arc::new(Services::new(checked, Instant::now())),
            outbox,
            devices: HashMap::new(),
            timers: BTreeSet::new(),
            refusals: Refusals::default(),
            held: 0,
            evicted_at: None,
            in_trouble: false,
            warned_at: None,
            summed_at: Time::ZERO,
            finished,
            finishing,
            announcement: None,
        }
    }

    /// Publishes this, retained, at each connection: the broker has published the last will of the connection before
    #[must_use]
    pub fn announced_as(mut self, topic: String, status: Vec<u8>) -> Self {
        self.announcement = Some((topic, status));
        self
    }

    /// Serves until the events end or `stop` resolves
    pub async fn run(
        &mut self,
        mut events: impl AsyncFnMut() -> Option<LinkEvent>,
        requests: &mut mpsc::Receiver<SnapshotRequest>,
        stop: impl Future<Output = ()>,
    ) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            let due = self.timers.first().map(|(at, _)| at.saturating_sub(self.services.now()));
            tokio::select! {
                () = &mut stop => return,
                event = events() => match event {
                    Some(event) => self.handle_link(event),
                    None => return,
                },
                Some(finished) = self.finishing.recv() => self.handle_finished(finished),
                Some(request) = requests.recv() => self.answer(request),
                () = tokio::time::sleep(due.unwrap_or(HOUSEKEEPING)), if due.is_some() => self.handle_timers(),
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
    }

    fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => self.announce(),
            // the driver has logged it
            LinkEvent::Disconnected { reason } => tracing::debug!(reason, "not connected to the broker"),
            LinkEvent::Message { topic, payload, retain } => self.handle_message(&topic, payload, retain),
        }
    }

    fn announce(&self) {
        if let Some((topic, status)) = &self.announcement
            && let Err(error) = self.outbox.publish(topic, status.clone(), true)
        {
            tracing::info!(%error, "the bridge's status was not published");
        }
    }

    fn handle_message(&mut self, topic: &str, payload: Vec<u8>, retained: bool) {
        let now = self.services.now();
        match self.topics.parse(topic) {
            Ok(Topic::Presence(id)) => self.handle_presence(&id, &payload, now),
            Ok(Topic::Evidence(id, via)) if via.is_none() || via == self.via => {
                if retained {
                    // nobody keeps a word for later: it would be said again at each restart
                    self.refusals.count("evidence", "retained");
                } else {
                    self.handle_evidence(&id, payload, now);
                }
            }
            Ok(_) => self.refusals.count("topic", "not for a bridge, or for another"),
            Err(_) => self.refusals.count("topic", "foreign or with an invalid id"),
        }
    }

    fn handle_presence(&mut self, id: &AgentId, payload: &[u8], now: Time) {
        match codec::decode::<Presence>(payload) {
            Ok(Presence { online: true }) => {
                if let Some(device) = self.device(id, now)
                    && device.allowance.take(now)
                {
                    self.drive(id, Input::Present, now);
                }
            }
            Ok(Presence { online: false }) => {}
            // an empty retained message is how a presence is removed
            Err(_) if payload.is_empty() => {}
            Err(_) => self.refusals.count("presence", "not a presence"),
        }
    }

    fn handle_evidence(&mut self, id: &AgentId, payload: Vec<u8>, now: Time) {
        let full = is_fragment(&payload) && self.held + payload.len() > self.limits.max_held_bytes;
        let Some(device) = self.device(id, now) else { return };
        device.heard = now;
        if !device.allowance.take(now) {
            return self.refuse(id, "message", "more than a device may send");
        }
        if full {
            device.reassembly.clear();
            return self.refuse(id, "message", "no room for fragments");
        }
        let before = device.reassembly.held();
        let unpacked = unpack_up(payload, &mut device.reassembly, now);
        let after = device.reassembly.held();
        self.held = (self.held + after).saturating_sub(before);
        match unpacked {
            Ok(Some(up)) => {
                let ticket = match &up {
                    Up::Ready(ready) => ready.ticket.as_ref(),
                    _ => None,
                };
                let opened = ticket.and_then(|sealed| self.services.open_ticket(id, sealed.as_slice()));
                if ticket.is_some() && opened.is_none() {
                    self.refuse(id, "ticket", "does not open here");
                }
                self.drive(id, Input::Received(up, opened), now);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(agent = %id, %error, "message refused");
                self.refusals.count("message", "not a message of this protocol");
            }
        }
    }

    /// The device, made if there is room for one more
    fn device(&mut self, id: &AgentId, now: Time) -> Option<&mut Device> {
        if !self.devices.contains_key(id) {
            if self.devices.len() >= self.limits.max_devices && !self.make_room(now) {
                self.refusals.count("device", "no room for one more");
                return None;
            }
            let settings = Settings { seed: rand::rng().next_u64(), ..self.settings.clone() };
            self.devices.insert(id.clone(), Device::new(id, settings, now));
        }
        self.devices.get_mut(id)
    }

    /// Forgets devices of which nothing would be missed
    fn make_room(&mut self, now: Time) -> bool {
        if self.evicted_at.is_some_and(|at| now.saturating_sub(at) < LEAST_BETWEEN_EVICTIONS) {
            return false;
        }
        self.evicted_at = Some(now);
        let before = self.devices.len();
        self.devices
            .retain(|_, device| !device.is_forgettable() || now.saturating_sub(device.heard) < RECENT);
        self.devices.len() < before
    }

    /// Hands an input to a relay and does what it asks for
    fn drive(&mut self, id: &AgentId, input: Input, now: Time) {
        let Some(device) = self.devices.get_mut(id) else { return };
        device.relay.handle(input, now);
        self.settle(id, now);
    }

    fn settle(&mut self, id: &AgentId, now: Time) {
        while let Some(output) = self.devices.get_mut(id).and_then(|device| device.relay.poll_output()) {
            match output {
                Output::Send(down) => self.send(id, &down),
                Output::Command(command) => self.perform(id, command),
                Output::Report(report) => self.report(id, report),
                Output::Notice(notice) => self.notice(id, notice, now),
            }
        }
        let Some(device) = self.devices.get_mut(id) else { return };
        let timer = device.relay.poll_timeout();
        if device.timer != timer {
            if let Some(old) = device.timer {
                self.timers.remove(&(old, id.clone()));
            }
            if let Some(new) = timer {
                self.timers.insert((new, id.clone()));
            }
            device.timer = timer;
        }
    }

    fn handle_timers(&mut self) {
        let now = self.services.now();
        while let Some((_, id)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.timers.pop_first();
            let Some(device) = self.devices.get_mut(&id) else { continue };
            device.timer = None;
            device.relay.handle_timeout(now);
            self.settle(&id, now);
            // a relay that wants the same moment again would keep all others waiting
            if self.timers.contains(&(now, id)) {
                break;
            }
        }
    }

    fn send(&mut self, id: &AgentId, down: &Down) {
        let sent = pack_down(down)
            .map_err(|_| Unsent::Invalid)
            .and_then(|payload| self.outbox.publish(&self.topics.challenge(id), payload, false));
        match sent {
            Ok(()) => tracing::debug!(agent = %id, question = down.question.kind(), "asked"),
            // the relay repeats its question
            Err(Unsent::Full) => self.refuse(id, "question", "the queue to the broker is full"),
            Err(Unsent::Invalid) => self.refuse(id, "question", "cannot be published"),
        }
    }

    fn perform(&mut self, id: &AgentId, command: Command) {
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

    fn handle_finished(&mut self, finished: Finished) {
        let Finished { id, done, memory } = finished;
        let now = self.services.now();
        let Some(device) = self.devices.get_mut(&id) else { return };
        device.memory = memory;
        let Some(done) = done else { return };
        if matches!(done, Done::Submitted(_)) {
            device.memory.uefi = None;
        }
        if !is_unavailable(&done) {
            device.setback_since = None;
        }
        self.drive(&id, Input::Done(done), now);
    }

    fn report(&mut self, id: &AgentId, report: Report) {
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
            .and_then(|json| self.outbox.publish(&self.topics.result(id), json, true));
        device.unpublished = match published {
            Ok(()) => None,
            Err(Unsent::Full) => Some(report),
            Err(Unsent::Invalid) => {
                self.refusals.count("result", "cannot be published");
                None
            }
        };
    }

    fn notice(&mut self, id: &AgentId, notice: Notice, now: Time) {
        match notice {
            Notice::Dropped { kind, why } => self.refuse(id, kind, why),
            Notice::Setback { what, wait } => {
                tracing::debug!(agent = %id, what, ?wait, "Keylime did not answer");
                if let Some(device) = self.devices.get_mut(id) {
                    device.setback_since.get_or_insert(now);
                }
                if !self.in_trouble {
                    self.in_trouble = true;
                    tracing::info!(agent = %id, what, "Keylime does not answer; it is tried again");
                }
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

    fn refuse(&mut self, id: &AgentId, kind: &'static str, why: &'static str) {
        tracing::debug!(agent = %id, kind, why, "dropped");
        self.refusals.count(kind, why);
    }

    fn answer(&mut self, request: SnapshotRequest) {
        let mut waiting: Vec<_> = self.devices.iter().filter_map(|(id, device)| device.waiting(id)).collect();
        waiting.sort_by(|a, b| a.id.cmp(&b.id));
        let refused = self.refusals.all().into_iter();
        let snapshot = Snapshot {
            devices: self.devices.len(),
            waiting,
            refused: refused.map(|(kind, why, n)| (kind.to_owned(), why.to_owned(), n)).collect(),
            unavailable: self.services.unavailable_counts(),
        };
        if request.send(snapshot).is_err() {
            tracing::debug!("who asked for the status has gone");
        }
    }

    fn keep_house(&mut self) {
        let now = self.services.now();
        self.services.refresh_admission();
        let mut held = 0;
        let mut troubled = 0usize;
        let mut longest = Duration::ZERO;
        let mut unpublished = Vec::new();
        for (id, device) in &mut self.devices {
            if device.reassembly.expire(now) {
                self.refusals.count("message", "its fragments never completed");
            }
            held += device.held();
            if let Some(since) = device.setback_since {
                troubled += 1;
                longest = longest.max(now.saturating_sub(since));
            }
            if let Some(report) = device.unpublished.take() {
                unpublished.push((id.clone(), report));
            }
        }
        self.held = held;
        for (id, report) in unpublished {
            self.report(&id, report);
        }
        self.watch_keylime(troubled, longest, now);
        if now.saturating_sub(self.summed_at) >= PATIENCE {
            self.summed_at = now;
            let dropped = self.refusals.since_last();
            if dropped > 0 {
                tracing::info!(
                    dropped,
                    "messages of no use in the last minute; `waiting` shows of which kind"
                );
            }
        }
    }

    fn watch_keylime(&mut self, troubled: usize, longest: Duration, now: Time) {
        if troubled == 0 && self.in_trouble {
            self.in_trouble = false;
            self.warned_at = None;
            tracing::info!("Keylime answers again");
        }
        let quiet = self.warned_at.is_none_or(|at| now.saturating_sub(at) >= PATIENCE);
        if longest >= PATIENCE && quiet {
            self.warned_at = Some(now);
            let unavailable = self.services.unavailable_counts();
            tracing::warn!(devices = troubled, ?unavailable, "Keylime has not answered for over a minute");
        }
    }
}
