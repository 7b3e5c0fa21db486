//! What agent and bridge hold: a [`Link`] to publish on and an [`Incoming`] to read from.
//!
//! Neither ever waits for the network in the caller's stead: publishing enters a bounded queue or is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rumqttc::{LastWill, QoS, valid_topic};
use tokio::sync::watch;

use crate::{
    driver::Driver,
    packet_limit::PacketLimit,
    queue::{Queue, Refused, Weigh},
    settings::CheckedBroker,
};

/// A bridge hands out one message per device at a time; an agent needs a few.
const OUTBOX_MESSAGES: usize = 4096;
/// Enough for a bulk log on its way up, small on a device with 64 MB.
const OUTBOX_BYTES: usize = 8 * 1024 * 1024;
/// What the reader may fall behind before the broker is made to wait.
const INBOX_MESSAGES: usize = 4096;
/// As [`OUTBOX_BYTES`], in the other direction.
const INBOX_BYTES: usize = 16 * 1024 * 1024;
/// MQTT 3.1.1 §1.5.3: a string has a length of two bytes.
const LONGEST_TOPIC: usize = u16::MAX as usize;
/// [`Link::shutdown`] sends what is queued for this long, then lets go.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// Delivery promise between this client and the broker. There is no exactly-once: many brokers lack it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Sent once, on the connection there is or the next one, and not acknowledged: whoever sends it repeats it when
    /// no answer comes. What was written to a connection that is dead already is lost, and that it is dead is seen at
    /// the latest by two keep-alive intervals without a ping's answer.
    AtMostOnce,
    /// Sent again until the broker acknowledged it; may arrive twice.
    AtLeastOnce,
}

/// What the broker publishes when this client vanishes without saying so.
#[derive(Debug, Clone)]
pub struct Will {
    /// Topic without wildcards.
    pub topic: String,
    /// Payload in bytes.
    pub payload: Vec<u8>,
    /// Delivery to the subscribers.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

/// What happened on the link, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The broker accepted the client and has answered all its subscriptions, or a message came already.
    Connected {
        /// As the broker says; false for the clean sessions this crate makes.
        session_present: bool,
    },
    /// A connection was lost or could not be made; another attempt follows by itself.
    Disconnected {
        /// For the operator: what happened, whose fault it is, what to do.
        reason: String,
    },
    /// A message on a subscribed topic. Hostile until parsed.
    Message {
        /// As the broker says: a routing claim, no proof of the sender.
        topic: String,
        /// At most `max_packet_bytes`.
        payload: Vec<u8>,
        /// Whether it is the broker's stored copy from before the subscription.
        retain: bool,
    },
}

/// Why a message was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Sending it would end the connection. Make fragments of at most [`Link::payload_limit`].
    #[error(
        "a packet of {size} bytes exceeds {limit}, which is broker.max_packet_bytes or what the broker was found to take"
    )]
    TooLarge {
        /// Bytes of the whole MQTT packet.
        size: usize,
        /// The limit of now.
        limit: usize,
    },
    /// More is queued than the network takes. Try again later, or leave it to the exchange's repetition.
    #[error("the queue to the broker is full: the broker is away or slower than what is published")]
    QueueFull,
    /// After [`Link::shutdown`].
    #[error("the link to the broker was shut down")]
    Stopped,
    /// Empty, too long, or with a wildcard: a mistake of the caller.
    #[error("a message cannot be published to this topic: it is empty, too long or holds a wildcard")]
    BadTopic,
}

/// Counters since the start, of application messages without MQTT and TLS overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Publishes handed to the network, repetitions included.
    pub messages_sent: u64,
    /// Their payload bytes.
    pub payload_bytes_sent: u64,
    /// Messages received, dropped ones included.
    pub messages_received: u64,
    /// Their payload bytes.
    pub payload_bytes_received: u64,
    /// Received messages that were dropped: too large, or the reader was too slow for too long.
    pub messages_dropped: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

/// The sending half. Clones share one connection, which lives until [`Link::shutdown`] or the last clone is
/// dropped.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outbox: Arc<Queue<Letter>>,
    packets: Arc<PacketLimit>,
    /// Whether the broker keeps messages for later subscribers.
    retain: bool,
    counters: Arc<Counters>,
    missed_after: Arc<MissedAfter>,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Incoming {
    inbox: Arc<Queue<LinkEvent>>,
}

/// Starts the driver task on the current tokio runtime and returns at once; the first connection is an event
/// like any other. `subscriptions` are topic filters.
///
/// # Panics
/// Outside a tokio runtime.
pub fn connect(
    broker: CheckedBroker,
    client_id: String,
    will: Option<Will>,
    subscriptions: Vec<(String, Qos)>,
) -> (Link, Incoming) {
    let outbox = Arc::new(Queue::new(OUTBOX_MESSAGES, OUTBOX_BYTES));
    let inbox = Arc::new(Queue::new(INBOX_MESSAGES, INBOX_BYTES));
    let counters = Arc::new(Counters::default());
    let (stop, stop_asked) = watch::channel(false);
    let (done, stopped) = watch::channel(false);
    let packets = Arc::new(PacketLimit::new(broker.settings.max_packet_bytes));
    let retain = broker.settings.retain;
    let missed_after = Arc::new(MissedAfter::default());
    let driver = Driver::new(
        broker,
        client_id,
        will,
        subscriptions,
        Arc::clone(&outbox),
        Arc::clone(&inbox),
        Arc::clone(&counters),
        Arc::clone(&packets),
        Arc::clone(&missed_after),
        stop_asked,
        done,
    );
    tokio::spawn(driver.run());
    let shared = Arc::new(Shared { outbox, packets, retain, counters, missed_after, stop, stopped });
    (Link { shared }, Incoming { inbox })
}

impl Link {
    /// Queues a message and returns at once.
    pub fn publish(&self, topic: &str, payload: Vec<u8>, qos: Qos, retain: bool) -> Result<(), PublishError> {
        if topic.is_empty() || topic.len() > LONGEST_TOPIC || topic.contains('\0') || !valid_topic(topic) {
            return Err(PublishError::BadTopic);
        }
        let letter = Letter { topic: topic.to_owned(), payload, qos, retain: retain && self.shared.retain };
        let (size, limit) = (letter.packet_size(), self.shared.packets.bytes());
        if size > limit {
            return Err(PublishError::TooLarge { size, limit });
        }
        self.shared.counters.owe(letter.qos);
        self.shared.outbox.try_push(letter).map_err(|(refused, letter)| {
            self.shared.counters.settle(letter.qos);
            match refused {
                Refused::Full => PublishError::QueueFull,
                Refused::Closed => PublishError::Stopped,
            }
        })
    }

    /// Whether the broker has acknowledged all that was published at QoS 1.
    pub fn is_acknowledged(&self) -> bool {
        self.shared.counters.owed.load(Ordering::Relaxed) == 0
    }

    /// The largest payload in bytes that [`Link::publish`] takes for this topic now. It becomes smaller when the broker
    /// closes connections over larger ones.
    pub fn payload_limit(&self, topic: &str) -> usize {
        Letter::payload_limit(self.shared.packets.bytes(), topic)
    }

    /// Whoever is on the other side misses this client after so long: a lost connection is tried again at least as often, if not
    /// oftener than every 30 s. So a link that is back is found in time, at the cost of no more than what the client says anyway.
    pub fn is_missed_after(&self, time: Duration) {
        self.shared.missed_after.set(time);
    }

    /// Sends what is queued, for at most ten seconds, says DISCONNECT so that the will is not published, and
    /// ends. Every clone is stopped with it.
    pub async fn shutdown(self) {
        self.shared.outbox.close();
        self.shared.stop.send_replace(true);
        let mut stopped = self.shared.stopped.clone();
        // an error means that the driver is gone already
        if stopped.wait_for(|done| *done).await.is_err() {
            tracing::debug!("the link had ended before it was shut down");
        }
    }

    /// Counters as of now.
    pub fn traffic(&self) -> Traffic {
        self.shared.counters.read()
    }
}

impl Incoming {
    /// The next event; `None` after the link was shut down and everything was read. Cancel safe.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.inbox.pop().await
    }
}

impl Drop for Incoming {
    /// The driver must not wait for a reader that is gone.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// The least that [`Link::is_missed_after`] heeds, seconds.
const LEAST_MISSED: u64 = 30;

/// Seconds; nothing was said as long as it is 0.
#[derive(Debug, Default)]
pub(crate) struct MissedAfter(AtomicU64);

impl MissedAfter {
    fn set(&self, time: Duration) {
        self.0.store(time.as_secs().max(LEAST_MISSED), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        let seconds = self.0.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

/// A message on its way out, as often as that takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

/// MQTT 3.1.1 §2.2: type and flags, then up to four bytes of remaining length.
const LARGEST_FIXED_HEADER: usize = 5;
/// MQTT 3.1.1 §1.5.3.
const TOPIC_LENGTH: usize = 2;
/// MQTT 3.1.1 §2.3.1.
const PACKET_ID: usize = 2;
/// The least an event counts for in a queue, so that empty ones are bounded too.
const EVENT_OVERHEAD: usize = 64;

impl Letter {
    /// The largest payload to this topic that a packet of `max_packet` bytes has room for.
    pub(crate) fn payload_limit(max_packet: usize, topic: &str) -> usize {
        max_packet.saturating_sub(LARGEST_FIXED_HEADER + TOPIC_LENGTH + topic.len() + PACKET_ID)
    }

    /// An upper bound, exact but for the few bytes a small packet saves in its length field.
    pub(crate) fn packet_size(&self) -> usize {
        LARGEST_FIXED_HEADER + TOPIC_LENGTH + self.topic.len() + PACKET_ID + self.payload.len()
    }
}

impl From<rumqttc::Publish> for Letter {
    /// Without the packet id, which belonged to a connection.
    fn from(publish: rumqttc::Publish) -> Self {
        let qos = match publish.qos {
            QoS::AtMostOnce => Qos::AtMostOnce,
            QoS::AtLeastOnce | QoS::ExactlyOnce => Qos::AtLeastOnce,
        };
        Self { topic: publish.topic, payload: publish.payload.into(), qos, retain: publish.retain }
    }
}

impl From<Qos> for QoS {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::AtMostOnce,
            Qos::AtLeastOnce => Self::AtLeastOnce,
        }
    }
}

impl From<Will> for LastWill {
    fn from(will: Will) -> Self {
        Self::new(will.topic, will.payload, will.qos.into(), will.retain)
    }
}

impl Weigh for Letter {
    fn weight(&self) -> usize {
        self.packet_size() + EVENT_OVERHEAD
    }
}

impl Weigh for LinkEvent {
    fn weight(&self) -> usize {
        let text = match self {
            Self::Connected { .. } => 0,
            Self::Disconnected { reason } => reason.len(),
            Self::Message { topic, payload, .. } => topic.len() + payload.len(),
        };
        text + EVENT_OVERHEAD
    }
}

/// [`Traffic`] while it is being counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    messages_sent: AtomicU64,
    payload_bytes_sent: AtomicU64,
    messages_received: AtomicU64,
    payload_bytes_received: AtomicU64,
    messages_dropped: AtomicU64,
    connections: AtomicU64,
    /// Letters of QoS 1 that were accepted and not acknowledged.
    owed: AtomicU64,
}

impl Counters {
    fn owe(&self, qos: Qos) {
        self.owed.fetch_add(u64::from(qos == Qos::AtLeastOnce), Ordering::Relaxed);
    }

    /// Acknowledged, or given up.
    pub(crate) fn settle(&self, qos: Qos) {
        self.owed.fetch_sub(u64::from(qos == Qos::AtLeastOnce), Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, payload: usize) {
        self.messages_sent.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes_sent.fetch_add(payload as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, payload: usize) {
        self.messages_received.fetch_add(1, Ordering::Relaxed);
        self.payload_bytes_received.fetch_add(payload as u64, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.messages_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            messages_sent: now(&self.messages_sent),
            payload_bytes_sent: now(&self.payload_bytes_sent),
            messages_received: now(&self.messages_received),
            payload_bytes_received: now(&self.payload_bytes_received),
            messages_dropped: now(&self.messages_dropped),
            reconnects: now(&self.connections).saturating_sub(1),
        }
    }
}
