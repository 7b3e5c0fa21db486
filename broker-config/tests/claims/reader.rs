//! Waiting for what a link says, never for ever.

use std::{collections::BTreeSet, time::Duration};

use keylime_mqtt_broker_config::{CheckedBroker, Incoming, Link, LinkEvent, Qos, Will, connect};
use tokio::time::timeout;

/// Far beyond anything these tests wait for; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(40);

/// The outcome, or a failed test: no wait of these tests may hang.
pub(crate) async fn within_patience<T>(waiting: impl Future<Output = T>) -> T {
    timeout(PATIENCE, waiting).await.expect("waited in vain")
}

pub(crate) struct Client {
    pub(crate) link: Link,
    pub(crate) incoming: Incoming,
}

impl Client {
    pub(crate) fn start(broker: CheckedBroker, id: &str, topics: &[&str]) -> Self {
        Self::start_with_will(broker, id, topics, None)
    }

    pub(crate) fn start_with_will(
        broker: CheckedBroker,
        id: &str,
        topics: &[&str],
        will: Option<Will>,
    ) -> Self {
        let topics = topics.iter().map(|topic| ((*topic).to_owned(), Qos::AtLeastOnce)).collect();
        let (link, incoming) = connect(broker, id.to_owned(), will, topics);
        Self { link, incoming }
    }

    /// Started and connected.
    pub(crate) async fn connected(broker: CheckedBroker, id: &str, topics: &[&str]) -> Self {
        let mut client = Self::start(broker, id, topics);
        client.is_connected().await;
        client
    }

    pub(crate) async fn event(&mut self) -> LinkEvent {
        within_patience(self.next()).await
    }

    async fn next(&mut self) -> LinkEvent {
        self.incoming.next().await.expect("the link ended")
    }

    /// Skips everything before the next connection that is ready.
    pub(crate) async fn is_connected(&mut self) {
        within_patience(async { while !matches!(self.next().await, LinkEvent::Connected { .. }) {} }).await;
    }

    /// The reason of the next loss; nothing but messages may come before it.
    pub(crate) async fn loss(&mut self) -> String {
        within_patience(async {
            loop {
                match self.next().await {
                    LinkEvent::Disconnected { reason } => return reason,
                    LinkEvent::Message { .. } => {}
                    LinkEvent::Connected { .. } => panic!("connected where a refusal was expected"),
                }
            }
        })
        .await
    }

    /// The reason of the next loss, of a connection that may not have lived long enough to be announced: a broker sends
    /// a retained message before or after its SUBACK, as it likes.
    pub(crate) async fn loss_after_connecting(&mut self) -> String {
        within_patience(async {
            loop {
                if let LinkEvent::Disconnected { reason } = self.next().await {
                    return reason;
                }
            }
        })
        .await
    }

    /// The next message, whatever happens to the connection meanwhile.
    pub(crate) async fn message(&mut self) -> (String, Vec<u8>) {
        within_patience(self.next_message()).await
    }

    async fn next_message(&mut self) -> (String, Vec<u8>) {
        loop {
            if let LinkEvent::Message { topic, payload, .. } = self.next().await {
                return (topic, payload);
            }
        }
    }

    /// Messages until one has this payload, which is left out.
    pub(crate) async fn messages_until(&mut self, last: &[u8]) -> Vec<(String, Vec<u8>)> {
        within_patience(async {
            let mut messages = Vec::new();
            loop {
                let message = self.next_message().await;
                if message.1 == last {
                    return messages;
                }
                messages.push(message);
            }
        })
        .await
    }

    /// Reads numbers until all of `0..count` came, calling `at` after each that had not come before.
    pub(crate) async fn numbers(&mut self, count: u32, mut at: impl FnMut(usize)) {
        within_patience(async {
            let mut seen = BTreeSet::new();
            while seen.len() < count as usize {
                let (_, payload) = self.next_message().await;
                let number = u32::from_be_bytes(payload.try_into().unwrap());
                assert!(number < count);
                if seen.insert(number) {
                    at(seen.len());
                }
            }
        })
        .await;
    }

    pub(crate) fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.link.publish(topic, payload.into(), Qos::AtLeastOnce, false).unwrap();
    }

    pub(crate) fn publish_numbers(&self, topic: &str, count: u32) {
        for number in 0..count {
            self.publish(topic, number.to_be_bytes());
        }
    }

    /// A message to itself and back: the broker has dealt with everything sent before.
    pub(crate) async fn round_trip(&mut self, topic: &str) {
        self.publish(topic, *b"round trip");
        assert_eq!(self.messages_until(b"round trip").await, []);
    }
}
