//! Which bytes belong to what: connect, enrolment, first attestation, each steady cycle, and inside a cycle.
//!
//! Phases are cut where a message's TLS record begins, cycles just before a new challenge, when the link has been
//! quiet since the last acknowledgement.

use crate::capture::{Packet, RECORD_OVERHEAD, Record};
use crate::messages::Message;
use crate::rig::Trace;
use crate::statistics::Statistics;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::Duration;

/// PUBLISH around topic and payload: type, length (up to 4 bytes), topic length, packet id (MQTT 3.1.1, 3.3).
const PUBLISH_LEAST: usize = 4;
const PUBLISH_MOST: usize = 9;
/// PUBACK, PINGREQ and PINGRESP, with room for nothing else (MQTT 3.1.1, 3.4 and 3.12).
const ACKNOWLEDGEMENT_MOST: usize = 4;
/// A PINGREQ.
const PING: usize = 2;
/// How far apart observer and link may see one message on a busy machine.
const SLACK: Duration = Duration::from_secs(2);
/// A broker may give the observer a message this much earlier; the link is quiet before a challenge.
const EARLY: Duration = Duration::from_millis(50);

/// What a device's first sessions cost, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Phases {
    /// TCP, TLS in full, CONNECT, SUBSCRIBE, presence
    pub(crate) connect: usize,
    /// `Enrol` to `Enrolled`
    pub(crate) enrolment: usize,
    /// From `Ready` of an enrolled device to its first PASS, the last acknowledgement included
    pub(crate) first: Steady,
}

/// A mean cycle.
#[derive(Clone, Debug)]
pub(crate) struct Steady {
    pub(crate) bytes: Statistics,
    pub(crate) up: f64,
    pub(crate) packets: f64,
    pub(crate) parts: Vec<Part>,
}

/// What some of a cycle's bytes are.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) of: String,
    pub(crate) what: String,
    /// Mean of a cycle
    pub(crate) bytes: f64,
}

impl Trace {
    /// Bytes of all packets in a span of time.
    pub(crate) fn bytes(&self, from: Duration, to: Duration) -> usize {
        self.packets(from, to).map(|packet| packet.bytes).sum()
    }

    /// Packets in a span of time.
    pub(crate) fn packets(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Packet> {
        self.capture.packets.iter().filter(move |packet| (from..to).contains(&packet.at))
    }

    /// PINGREQs in a span of time (MQTT 3.1.1, 3.12: two bytes).
    pub(crate) fn pings(&self, from: Duration, to: Duration) -> usize {
        let sent = |record: &Record| self.capture.packets.get(record.packet).map(|packet| packet.at);
        let records = self.capture.records.iter().filter(|record| record.up && record.plain == PING);
        records.filter(|record| sent(record).is_some_and(|at| (from..to).contains(&at))).count()
    }

    /// Cuts the sessions that began at `enrolling` and at `attesting`; the first attestation ends before `end`.
    pub(crate) fn phases(&self, enrolling: Duration, attesting: Duration, end: Duration) -> Result<Phases> {
        let (opened, enrol) = (self.opens(enrolling)?, self.begins("Enrol", enrolling)?);
        let registered = self.begins("Ready", enrolling)?;
        let ready = self.begins("Ready", attesting)?;
        Ok(Phases {
            connect: self.bytes(opened, enrol),
            enrolment: self.bytes(enrol, registered),
            first: self.breakdown(&[(ready, end)])?,
        })
    }

    /// When the first connection after `after` was opened.
    fn opens(&self, after: Duration) -> Result<Duration> {
        let mut packets = self.capture.packets.iter();
        Ok(packets.find(|packet| packet.syn && packet.up && packet.at > after).context("no connection")?.at)
    }

    /// When the packet was sent that begins the first message of this kind after `after`.
    pub(crate) fn begins(&self, kind: &str, after: Duration) -> Result<Duration> {
        let mut messages = self.messages.iter();
        let message = messages.find(|message| message.kind == kind && message.at > after);
        self.sent(message.with_context(|| format!("no {kind} was sent"))?)
    }

    /// When the packet was sent that begins this message: the nearest with a record of its size, else, as two messages written at
    /// once share a record, the nearest with a larger one.
    fn sent(&self, message: &Message) -> Result<Duration> {
        let least = message.topic + message.payload.len() + PUBLISH_LEAST;
        let most = message.topic + message.payload.len() + PUBLISH_MOST;
        let alone = self.nearest(message, |plain| (least..=most).contains(&plain));
        let shared = || self.nearest(message, |plain| plain > most);
        alone.or_else(shared).with_context(|| format!("no record on the link is this {}", message.kind))
    }

    fn nearest(&self, message: &Message, fits: impl Fn(usize) -> bool) -> Option<Duration> {
        let records =
            self.capture.records.iter().filter(|record| record.up == message.up && fits(record.plain));
        let times =
            records.filter_map(|record| self.capture.packets.get(record.packet).map(|packet| packet.at));
        let nearest = times.min_by_key(|at| at.abs_diff(message.at));
        nearest.filter(|at| at.abs_diff(message.at) < SLACK)
    }

    /// When each new challenge after `after` was sent, and a little before that; repeats are not new.
    pub(crate) fn challenges(&self, after: Duration) -> Result<Vec<Duration>> {
        let mut last = None;
        let mut starts = Vec::new();
        let after = self.messages.iter().filter(|message| message.kind == "Challenge" && message.at > after);
        for message in after {
            let nonce = message.nonce();
            if nonce != last {
                starts.push(self.sent(message)?.saturating_sub(EARLY));
            }
            last = nonce;
        }
        Ok(starts)
    }

    /// Cycles between these cuts, and what a mean one consists of.
    pub(crate) fn steady(&self, cuts: &[Duration]) -> Result<Steady> {
        let spans: Vec<_> = cuts.iter().copied().zip(cuts.iter().copied().skip(1)).collect();
        self.breakdown(&spans)
    }

    /// What the mean of these spans consists of.
    pub(crate) fn breakdown(&self, spans: &[(Duration, Duration)]) -> Result<Steady> {
        ensure!(!spans.is_empty(), "nothing passed");
        let cycles: Vec<f64> = spans.iter().map(|(from, to)| whole(self.bytes(*from, *to))).collect();
        let mean = |total: usize| whole(total) / whole(cycles.len());
        let within = |at: Duration| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
        let span = || self.capture.packets.iter().filter(|packet| within(packet.at));
        let mut parts = Vec::new();
        let mut part = |of: &str, what: &str, total: usize| {
            parts.push(Part { of: of.to_owned(), what: what.to_owned(), bytes: mean(total) });
        };
        let mut fields: BTreeMap<(&str, String), usize> = BTreeMap::new();
        let (mut payloads, mut topics, mut published) = (0, 0, 0);
        for message in self.messages.iter().filter(|message| within(message.at)) {
            for (field, size) in message.fields()? {
                *fields.entry((message.kind.as_str(), field)).or_default() += size;
            }
            payloads += message.payload.len();
            topics += message.topic;
            published += 1;
        }
        for ((kind, field), total) in fields {
            part(kind, &field, total);
        }
        let inside = |index: usize| self.capture.packets.get(index).is_some_and(|packet| within(packet.at));
        let records: Vec<usize> =
            self.capture.records.iter().filter(|r| inside(r.packet)).map(|r| r.plain).collect();
        let acknowledging: usize = records.iter().filter(|plain| **plain <= ACKNOWLEDGEMENT_MOST).sum();
        let plain: usize = records.iter().sum();
        let around = plain.checked_sub(acknowledging + payloads + topics);
        part("MQTT", "topics", topics);
        part("MQTT", "headers of PUBLISH", around.context("records smaller than their messages")?);
        part("MQTT", "PUBACK, PINGREQ, PINGRESP", acknowledging);
        part("TLS", "record headers and tags", records.len() * RECORD_OVERHEAD);
        let fresh = || span().filter(|packet| !packet.again);
        let data: usize = fresh().map(|packet| packet.payload).sum();
        ensure!(data >= plain + records.len() * RECORD_OVERHEAD, "records larger than their packets");
        part("TLS", "other records", data - plain - records.len() * RECORD_OVERHEAD);
        let carrying = fresh().filter(|packet| packet.payload > 0);
        part(
            "TCP/IP",
            "headers of packets with data",
            carrying.map(|packet| packet.bytes - packet.payload).sum(),
        );
        let empty = span().filter(|packet| packet.payload == 0);
        part("TCP/IP", "packets that only acknowledge", empty.map(|packet| packet.bytes).sum());
        let again = span().filter(|packet| packet.again);
        part("TCP/IP", "packets sent again", again.map(|packet| packet.bytes).sum());
        ensure!(published >= cycles.len(), "fewer messages than spans");
        parts.retain(|part| part.bytes > 0.0);
        Ok(Steady {
            bytes: Statistics::of(&cycles),
            up: mean(span().filter(|packet| packet.up).map(|packet| packet.bytes).sum()),
            packets: mean(span().count()),
            parts,
        })
    }
}

/// As a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "bytes of a run are far below 2^52")]
pub(crate) fn whole(count: usize) -> f64 {
    count as f64
}
