//! The broker as the fleet sees it: somewhere to publish, somewhere to hear from.

use keylime_mqtt_broker_config::{Incoming, Link, LinkEvent, PublishError, Qos};
use keylime_mqtt_schemas::exchange::Delivery;

/// Gives what comes from the broker
pub trait Inbox: Send {
    /// The next event; `None` when there will be none. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Option<LinkEvent>> + Send;
}

impl Inbox for Incoming {
    async fn next(&mut self) -> Option<LinkEvent> {
        Incoming::next(self).await
    }
}

/// Takes messages for the broker, without waiting
pub trait Outbox: Send {
    /// Queues a message
    ///
    /// # Errors
    /// When there is no room, or the message can never be sent.
    fn publish(&self, topic: &str, payload: Vec<u8>, delivery: Delivery, retain: bool) -> Result<(), Unsent>;
}

/// Why a message was not queued
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// No room: later again
    #[error("the queue to the broker is full")]
    Full,
    /// Too large, or to no topic: never
    #[error("the message cannot be published")]
    Invalid,
}

impl Outbox for Link {
    fn publish(&self, topic: &str, payload: Vec<u8>, delivery: Delivery, retain: bool) -> Result<(), Unsent> {
        let qos = match delivery {
            Delivery::Lean => Qos::AtMostOnce,
            Delivery::Assured => Qos::AtLeastOnce,
        };
        Link::publish(self, topic, payload, qos, retain).map_err(|error| match error {
            PublishError::QueueFull | PublishError::Stopped => Unsent::Full,
            PublishError::TooLarge { .. } | PublishError::BadTopic => Unsent::Invalid,
        })
    }
}
