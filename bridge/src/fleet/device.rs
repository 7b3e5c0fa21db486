//! One device's place in the fleet.

use super::inbound::Allowance;
use super::report::{Waiting, unix_now};
use super::services::Memory;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{Relay, Report, Settings};
use keylime_mqtt_schemas::fragment::Reassembly;
use keylime_mqtt_schemas::messages::{LaterReason, Verdict};
use std::time::Duration;

/// A device that is still there is tried again so soon after its wait
const TRIED_AGAIN: Duration = Duration::from_secs(150);

/// A device: its half of the exchange and what the shell keeps beside it
#[derive(Debug)]
pub(super) struct Device {
    pub(super) relay: Relay,
    pub(super) reassembly: Reassembly,
    pub(super) allowance: Allowance,
    pub(super) hellos: Allowance,
    pub(super) memory: Memory,
    /// When its relay wants to be called, as it stands in the fleet's timers
    pub(super) timer: Option<Time>,
    /// Last time it sent anything
    pub(super) heard: Time,
    /// Since when Keylime is of no use for it
    pub(super) setback: Option<HeldBack>,
    /// Since when there was no session for it, or no room to register
    pub(super) turned_away: Option<HeldBack>,
    /// The last verdict published, and what it waits for
    pub(super) verdict: Option<Verdict>,
    pub(super) waiting: Option<(String, u64)>,
    /// A result that the broker's queue had no room for
    pub(super) unpublished: Option<Report>,
}

/// A time in which a device gets no further
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldBack {
    pub(super) since: Time,
    pub(super) last: Time,
    /// It is tried again by then
    until: Time,
    /// As [`Self::since`], in Unix seconds
    since_unix: u64,
}

impl HeldBack {
    /// Once more, or for the first time
    pub(super) fn note(held_back: &mut Option<Self>, wait: Duration, now: Time) {
        let first = Self { since: now, last: now, until: now, since_unix: unix_now() };
        let held_back = held_back.get_or_insert(first);
        held_back.last = now;
        held_back.until = now + wait;
    }

    /// Whether the device has gone away since, and has no trouble any more
    pub(super) fn is_over(&self, now: Time) -> bool {
        now.saturating_sub(self.until) > TRIED_AGAIN
    }
}

impl Device {
    pub(super) fn new(id: &AgentId, settings: Settings, now: Time) -> Self {
        Self {
            relay: Relay::new(id.clone(), settings),
            reassembly: Reassembly::default(),
            allowance: Allowance::new(now),
            hellos: Allowance::of_hellos(now),
            memory: Memory::default(),
            timer: None,
            heard: now,
            setback: None,
            turned_away: None,
            verdict: None,
            waiting: None,
            unpublished: None,
        }
    }

    /// Bytes held for it
    pub(super) fn held(&self) -> usize {
        self.relay.held() + self.reassembly.held() + self.memory.held()
    }

    /// Gives back what [`Self::held`] counts, save what a command under way needs; says whether there was any
    pub(super) fn shed(&mut self) -> bool {
        if self.held() == 0 {
            return false;
        }
        let fragments = self.reassembly.held() > 0;
        self.reassembly.clear();
        let logs = self.relay.shed();
        if logs {
            self.memory.uefi = None;
        }
        fragments || logs
    }

    /// Whether it can be forgotten without loss
    pub(super) fn is_forgettable(&self) -> bool {
        self.relay.is_idle() && self.reassembly.held() == 0 && self.unpublished.is_none()
    }

    /// Notes what is published; true if the verdict is another than before
    pub(super) fn note(&mut self, report: &Report) -> bool {
        self.waiting = match (report.verdict, &report.reason) {
            (Verdict::Unknown | Verdict::Pending, Some(reason)) => {
                let since = self.waiting.take().filter(|(same, _)| same == reason).map(|(_, since)| since);
                Some((reason.clone(), since.unwrap_or_else(unix_now)))
            }
            _ => None,
        };
        self.verdict.replace(report.verdict) != Some(report.verdict)
    }

    /// For `waiting`
    pub(super) fn waiting(&self, id: &AgentId) -> Option<Waiting> {
        let held_back = [(self.setback, LaterReason::Keylime), (self.turned_away, LaterReason::Busy)]
            .into_iter()
            .find_map(|(held_back, reason)| Some((reason.to_string(), held_back?.since_unix)));
        let (reason, since) = held_back.or_else(|| self.waiting.clone())?;
        let admitted = self.memory.admitted.as_ref();
        Some(Waiting {
            id: id.to_string(),
            reason,
            remedy: admitted.and_then(|admitted| admitted.remedy.clone()),
            ek_hash: admitted.and_then(|admitted| admitted.ek_hash.clone()),
            since,
        })
    }
}
