//! Times and sizes of a connection, from the settings.

use std::time::Duration;

use rumqttc::Codec;

use crate::{pace::Pace, settings::BrokerSettings};

/// Room for the fixed header, a topic of at most 256 bytes and the packet id.
pub(crate) const PACKET_HEADROOM: usize = 1024;
/// `Enrol` and `Ready` never fragment and take up to 8 KiB.
pub(crate) const SMALLEST_PACKET_LIMIT: usize = 8 * 1024 + PACKET_HEADROOM;
/// QoS 1 messages sent and not yet acknowledged. Mosquitto's default inflight is the same; more would gain
/// nothing for an exchange with one message per device under way.
pub(crate) const IN_FLIGHT: u16 = 20;
/// What is read at all. The codec cannot skip a packet, only die of it, and a retained message would come again
/// on every connection; so larger packets than the settings allow are read and dropped, up to this size. It
/// covers the default limits of brokers that have one (2 MB mosquitto 2.1, 1 MB EMQX, 128 KB AWS).
const LARGEST_SKIPPED: usize = 4 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    /// Two keep-alive intervals: a live connection has an event, if only a ping, in each.
    pub(crate) silence: Duration,
    pub(crate) ack: Duration,
    pub(crate) keep_alive: Duration,
    pub(crate) max_packet: usize,
    pub(crate) in_flight_bytes: usize,
    /// As a connection begins with it.
    pub(crate) pace: Pace,
}

impl Limits {
    pub(crate) fn codec(&self) -> Codec {
        Codec { max_incoming_size: LARGEST_SKIPPED, max_outgoing_size: self.max_packet }
    }
}

impl From<&BrokerSettings> for Limits {
    fn from(settings: &BrokerSettings) -> Self {
        let keep_alive = Duration::from_secs(settings.keep_alive_seconds.into());
        Self {
            connect: Duration::from_secs(settings.connect_timeout_seconds.into()),
            silence: keep_alive * 2,
            ack: Duration::from_secs(settings.ack_timeout_seconds.into()),
            keep_alive,
            max_packet: settings.max_packet_bytes,
            in_flight_bytes: settings.max_in_flight_bytes,
            pace: Pace::new(settings),
        }
    }
}
