//! One connection to a broker that does what it is told and nothing by itself: no repetition, no reconnect. A doctor
//! wants to see what one attempt meets.

use std::collections::VecDeque;
use std::time::Duration;

use rumqttc::{
    AsyncClient, Connect, Event, Outgoing, Packet, Request, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::eventloop::EventLoop;
use crate::limits::{IN_FLIGHT, Limits};
use crate::link::{Letter, Qos};
use crate::loss::Loss;
use crate::pulse::Patience;
use crate::settings::CheckedBroker;

/// Requests that wait inside rumqttc: a visit makes one at a time.
const CHANNEL: usize = 4;
/// Messages kept until they are asked for; a topic that is open to all must not fill the memory.
const MOST_KEPT: usize = 256;

/// Why a visit, or a step of it, failed: what happened, whose fault it is, what to do.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct VisitError(#[from] Loss);

impl VisitError {
    /// Whether the broker ended the connection, without a word as MQTT 3.1.1 has none for it.
    pub fn is_closed(&self) -> bool {
        matches!(self.0, Loss::Closed | Loss::ClosedBeforeConnack | Loss::Network(_))
    }
}

/// A message that came during a visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Where. A broker's word.
    pub topic: String,
    /// What. Hostile until parsed.
    pub payload: Vec<u8>,
}

/// A broker that took this client in.
pub struct Visit {
    eventloop: EventLoop,
    client: AsyncClient,
    arrived: VecDeque<Arrived>,
    limits: Limits,
    patience: Patience,
    /// Time that the broker took for its last acknowledgement.
    round_trip: Duration,
    is_over: bool,
}

impl CheckedBroker {
    /// The client id for a visit: the client's own, or, where that client runs just now, another that does not throw it
    /// out. (A broker that takes the client id from the certificate does so all the same.)
    pub fn visitor_id(&self, client_id: &str, is_running: bool) -> String {
        if is_running { format!("{client_id}-doctor") } else { client_id.to_owned() }
    }

    /// Logs in at the broker at this place in the settings, without a last will and with a clean session.
    pub async fn visit(&self, nth: usize, client_id: &str) -> Result<Visit, VisitError> {
        let limits = Limits::from(&self.settings);
        let began = Instant::now();
        let broker = self.brokers().nth(nth).unwrap_or(&self.first);
        let (client, mut eventloop) = EventLoop::new(IN_FLIGHT, limits.keep_alive, limits.ack, CHANNEL);
        let mut hello = Connect::new(client_id.to_owned());
        hello.clean_session = true;
        hello.keep_alive = self.settings.keep_alive_seconds;
        let mut patience = Patience::new(limits.keep_alive);
        let mut passed = Vec::new();
        let attempt = async {
            let stream =
                broker.route.open(broker.credentials.config(), &mut passed).await.map_err(Loss::from_path)?;
            eventloop.greet(stream, limits.codec(), hello, &mut patience).await
        };
        match timeout(limits.connect, attempt).await {
            Ok(answer) => answer?,
            Err(_) => return Err(Loss::timed_out(&passed).into()),
        };
        let round_trip = began.elapsed();
        Ok(Visit {
            eventloop,
            client,
            arrived: VecDeque::new(),
            limits,
            patience,
            round_trip,
            is_over: false,
        })
    }

    /// `host:port` of the broker at this place in the settings.
    pub fn address_of(&self, nth: usize) -> String {
        self.brokers().nth(nth).unwrap_or(&self.first).route.address()
    }

    /// The largest payload, in bytes, that `max_packet_bytes` lets this client send to a topic.
    pub fn payload_limit(&self, topic: &str) -> usize {
        Letter::payload_limit(self.settings.max_packet_bytes, topic)
    }
}

impl Visit {
    /// Subscribes; says for each filter whether the broker granted it. A 3.1.1 broker may grant what it then withholds.
    pub async fn subscribe(&mut self, filters: &[String]) -> Result<Vec<bool>, VisitError> {
        let filters =
            filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), Qos::AtLeastOnce.into()));
        self.eventloop.pending.push_back(Request::Subscribe(Subscribe::new_many(filters)));
        let mut sent = None;
        self.until_acknowledged(|event| match event {
            Event::Outgoing(Outgoing::Subscribe(id)) => {
                sent = Some(*id);
                None
            }
            Event::Incoming(Packet::SubAck(answer)) if sent == Some(answer.pkid) => {
                let granted = |code: &SubscribeReasonCode| *code != SubscribeReasonCode::Failure;
                Some(answer.return_codes.iter().map(granted).collect())
            }
            _ => None,
        })
        .await
    }

    /// Publishes at QoS 1 and waits for the acknowledgement, which proves that the broker has it and nothing more.
    pub async fn publish(&mut self, topic: &str, payload: Vec<u8>) -> Result<(), VisitError> {
        self.client
            .try_publish(topic, Qos::AtLeastOnce.into(), false, payload)
            .map_err(|error| Loss::Protocol(error.to_string()))?;
        let mut sent = None;
        self.until_acknowledged(|event| match event {
            Event::Outgoing(Outgoing::Publish(id)) => {
                sent = Some(*id);
                None
            }
            Event::Incoming(Packet::PubAck(answer)) if sent == Some(answer.pkid) => Some(()),
            _ => None,
        })
        .await
    }

    /// The next message, or nothing within the time.
    pub async fn message(&mut self, within: Duration) -> Result<Option<Arrived>, VisitError> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(arrived) = self.arrived.pop_front() {
                return Ok(Some(arrived));
            }
            // nothing is being sent meanwhile, so dropping the poll leaves no packet cut in two
            match timeout_at(deadline, self.poll()).await {
                Ok(event) => self.keep(event?),
                Err(_) => return Ok(None),
            }
        }
    }

    /// How long the broker took for its last acknowledgement: what a link makes of an answer.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Whether the connection has ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Says DISCONNECT.
    pub async fn leave(mut self) {
        if self.is_over || self.client.try_disconnect().is_err() {
            return;
        }
        let gone = async { while self.eventloop.poll(&mut self.patience).await.is_ok() {} };
        if timeout(Duration::from_secs(2), gone).await.is_err() {
            tracing::debug!("the broker keeps the connection open after DISCONNECT");
        }
    }

    async fn until_acknowledged<T>(
        &mut self,
        mut fits: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, VisitError> {
        let began = Instant::now();
        let deadline = began + self.limits.ack;
        loop {
            let Ok(event) = timeout_at(deadline, self.poll()).await else {
                return Err(Loss::Unanswered { seconds: self.limits.ack.as_secs() }.into());
            };
            let event = event?;
            if let Some(found) = fits(&event) {
                self.round_trip = began.elapsed();
                return Ok(found);
            }
            self.keep(event);
        }
    }

    async fn poll(&mut self) -> Result<Event, VisitError> {
        let polled = self.eventloop.poll(&mut self.patience).await;
        self.is_over |= polled.is_err();
        Ok(polled?)
    }

    fn keep(&mut self, event: Event) {
        if let Event::Incoming(Packet::Publish(publish)) = event
            && self.arrived.len() < MOST_KEPT
            && publish.payload.len() <= self.limits.max_packet
        {
            self.arrived.push_back(Arrived { topic: publish.topic, payload: publish.payload.into() });
        }
    }
}
