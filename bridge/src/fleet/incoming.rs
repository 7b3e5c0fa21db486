//! What comes from the broker: parsed, counted, bounded, and handed to the relay it is for.
//!
//! Invariant: nothing that is refused here changes anything but a counter.

use super::broker::Outbox;
use super::device::Device;
use super::{Fleet, HOUSEKEEPING, LEAST_BETWEEN_EVICTIONS, RECENT};
use keylime_mqtt_broker_config::LinkEvent;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec;
use keylime_mqtt_schemas::exchange::relay::{Input, Settings};
use keylime_mqtt_schemas::exchange::{Delivery, Time};
use keylime_mqtt_schemas::fragment::is_fragment;
use keylime_mqtt_schemas::messages::{Presence, Up};
use keylime_mqtt_schemas::topics::Topic;
use keylime_mqtt_schemas::wire::unpack_up;
use rand::RngCore as _;

impl<O: Outbox> Fleet<O> {
    pub(super) fn handle_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => self.announce(),
            // the driver has logged it
            LinkEvent::Disconnected { reason } => tracing::debug!(reason, "not connected to the broker"),
            LinkEvent::Message { topic, payload, retain } => self.handle_message(&topic, payload, retain),
        }
    }

    fn announce(&self) {
        if let Some((topic, status)) = &self.announcement
            && let Err(error) = self.outbox.publish(topic, status.clone(), Delivery::Assured, true)
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
        let full = is_fragment(&payload) && !self.has_room(id, payload.len(), now);
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
        let asks_too_often = matches!(unpacked, Ok(Some(Up::Hello(_)))) && !device.hellos.take(now);
        self.held = (self.held + after).saturating_sub(before);
        match unpacked {
            Ok(Some(_)) if asks_too_often => self.refuse(id, "Hello", "more than a device may ask"),
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

    /// Whether a fragment has room. Those that have waited longest for the next part of their message make it: they are
    /// the least likely to become whole, and whoever leaves many unfinished keeps out nobody else
    fn has_room(&mut self, sender: &AgentId, wanted: usize, now: Time) -> bool {
        let most = self.limits.max_held_bytes;
        if self.held + wanted <= most {
            return true;
        }
        // looking through all devices again would free as little
        if self.crowded_at.is_some_and(|at| now.saturating_sub(at) < HOUSEKEEPING) {
            return false;
        }
        let others = self.devices.iter().filter(|(id, _)| *id != sender);
        let mut unfinished: Vec<_> =
            others.filter_map(|(id, device)| Some((device.reassembly.touched()?, id.clone()))).collect();
        unfinished.sort();
        let held =
            |(_, id): &(Time, AgentId)| self.devices.get(id).map_or(0, |device| device.reassembly.held());
        let freeable: usize = unfinished.iter().map(held).sum();
        // where it is logs that take the room, nothing is gained by taking fragments away
        if (self.held + wanted).saturating_sub(freeable) > most {
            self.crowded_at = Some(now);
            return false;
        }
        for (_, id) in unfinished {
            // a quarter at once, for it takes a look at all of them
            if self.held + wanted <= most / 4 * 3 {
                break;
            }
            let Some(device) = self.devices.get_mut(&id) else { continue };
            self.held = self.held.saturating_sub(device.reassembly.held());
            device.reassembly.clear();
            self.refuse(&id, "message", "its fragments had to make room for others");
        }
        true
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
}
