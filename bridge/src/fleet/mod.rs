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

mod broker;
mod budget_file;
mod device;
mod inbound;
mod incoming;
mod lifetimes;
mod outcome;
mod outgoing;
mod report;
mod restoring;
mod services;
mod uefi_cache;
mod upkeep;

pub use broker::{Inbox, Outbox, Unsent};
pub use report::{Snapshot, Waiting};

use crate::config::{Checked, Limits};
use device::Device;
use inbound::Refusals;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{Done, Input, Output, Settings};
use keylime_mqtt_schemas::topics::{Topics, Via};
use services::{Memory, Services};
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
    /// When unfinished messages could not make room for one more fragment
    crowded_at: Option<Time>,
    /// Changes of the admission list that the relays know of
    admission_changes: u64,
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
            crowded_at: None,
            admission_changes: 0,
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
        events: &mut impl Inbox,
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
                event = events.next() => match event {
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

    /// Hands an input to a relay and does what it asks for
    fn drive(&mut self, id: &AgentId, input: Input, now: Time) {
        let Some(device) = self.devices.get_mut(id) else { return };
        device.relay.handle(input, now);
        self.settle(id, now);
    }

    fn settle(&mut self, id: &AgentId, now: Time) {
        while let Some(output) = self.devices.get_mut(id).and_then(|device| device.relay.poll_output()) {
            match output {
                Output::Send(down, delivery) => self.send(id, &down, delivery),
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
}
