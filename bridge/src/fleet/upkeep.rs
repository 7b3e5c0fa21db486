//! What the fleet does by itself: forgets what will never be whole, publishes what had no room, watches Keylime, tells who asks.

use super::broker::Outbox;
use super::device::Device;
use super::{Fleet, PATIENCE, Snapshot, SnapshotRequest};
use keylime_mqtt_schemas::exchange::Time;
use std::time::Duration;

impl<O: Outbox> Fleet<O> {
    pub(super) fn answer(&mut self, request: SnapshotRequest) {
        let mut waiting: Vec<_> = self.devices.iter().filter_map(|(id, device)| device.waiting(id)).collect();
        waiting.sort_by(|a, b| a.id.cmp(&b.id));
        let refused = self.refusals.all().into_iter();
        let snapshot = Snapshot {
            devices: self.devices.len(),
            held: self.devices.values().map(Device::held).sum(),
            waiting,
            refused: refused.map(|(kind, why, n)| (kind.to_owned(), why.to_owned(), n)).collect(),
            unavailable: self.services.unavailable_counts(),
        };
        if request.send(snapshot).is_err() {
            tracing::debug!("who asked for the status has gone");
        }
    }

    pub(super) fn keep_house(&mut self) {
        let now = self.services.now();
        self.services.refresh_admission();
        let changes = self.services.admission_changes();
        if changes != self.admission_changes {
            self.admission_changes = changes;
            self.devices.values_mut().for_each(|device| device.relay.reconsider());
        }
        let mut held = 0;
        let mut troubled = 0usize;
        let mut longest = Duration::ZERO;
        let mut unpublished = Vec::new();
        for (id, device) in &mut self.devices {
            if device.reassembly.expire(now) {
                self.refusals.count("message", "its fragments never completed");
            }
            held += device.held();
            device.setback.take_if(|setback| setback.is_over(now));
            device.turned_away.take_if(|turned_away| turned_away.is_over(now));
            if let Some(setback) = device.setback {
                troubled += 1;
                longest = longest.max(setback.last.saturating_sub(setback.since));
            }
            if let Some(report) = device.unpublished.take() {
                unpublished.push((id.clone(), report));
            }
        }
        self.held = held;
        self.make_space(now);
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
                    "messages of no use in the last minute; `waiting --json` shows of which kind"
                );
            }
        }
    }

    /// Gives back logs gathered of the devices not heard for longest, so that the others can finish
    fn make_space(&mut self, now: Time) {
        if self.held <= self.limits.max_held_bytes {
            return;
        }
        let mut holding: Vec<_> =
            self.devices.iter().map(|(id, device)| (device.heard, id.clone())).collect();
        holding.sort();
        for (_, id) in holding {
            if self.held <= self.limits.max_held_bytes / 4 * 3 {
                break;
            }
            let Some(device) = self.devices.get_mut(&id) else { continue };
            let before = device.held();
            if !device.shed() {
                continue;
            }
            self.held = self.held.saturating_sub(before.saturating_sub(device.held()));
            self.refuse(&id, "log", "no room for all logs at once");
            self.settle(&id, now);
        }
    }

    fn watch_keylime(&mut self, troubled: usize, longest: Duration, now: Time) {
        if troubled == 0 && self.in_trouble {
            self.in_trouble = false;
            self.warned_at = None;
            tracing::info!("Keylime is of use again");
        }
        let quiet = self.warned_at.is_none_or(|at| now.saturating_sub(at) >= PATIENCE);
        if longest >= PATIENCE && quiet {
            self.warned_at = Some(now);
            let unavailable = self.services.unavailable_counts();
            tracing::warn!(
                devices = troubled,
                ?unavailable,
                "Keylime has been of no use for over a minute; `waiting` shows for which devices"
            );
        }
    }
}
