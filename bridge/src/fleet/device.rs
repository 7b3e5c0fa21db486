//! One device's place in the fleet.

use super::inbound::Allowance;
use super::report::{Waiting, unix_now};
use super::services::Memory;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{Relay, Report, Settings};
use keylime_mqtt_schemas::fragment::Reassembly;
use keylime_mqtt_schemas::messages::Verdict;

/// A device: its half of the exchange and what the shell keeps beside it
#[derive(Debug)]
pub(super) struct Device {
    pub(super) relay: Relay,
    pub(super) reassembly: Reassembly,
    pub(super) allowance: Allowance,
    pub(super) memory: Memory,
    /// When its relay wants to be called, as it stands in the fleet's timers
    pub(super) timer: Option<Time>,
    /// Last time it sent anything
    pub(super) heard: Time,
    /// Since when Keylime does not answer for it
    pub(super) setback: Option<Setback>,
    /// The last verdict published, and what it waits for
    pub(super) verdict: Option<Verdict>,
    pub(super) waiting: Option<(String, u64)>,
    /// A result that the broker's queue had no room for
    pub(super) unpublished: Option<Report>,
}

/// A time in which Keylime does not answer for a device
#[derive(Debug, Clone, Copy)]
pub(super) struct Setback {
    pub(super) since: Time,
    pub(super) last: Time,
}

impl Device {
    pub(super) fn new(id: &AgentId, settings: Settings, now: Time) -> Self {
        Self {
            relay: Relay::new(id.clone(), settings),
            reassembly: Reassembly::default(),
            allowance: Allowance::new(now),
            memory: Memory::default(),
            timer: None,
            heard: now,
            setback: None,
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
        let (reason, since) = self.waiting.clone()?;
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
