//! A walk to each broker without MQTT, for an operator who asks why there is no connection.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    loss::Loss,
    path::Milestone,
    settings::{Broker, CheckedBroker},
};

/// What a walk to one broker met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    /// `host:port`.
    pub(crate) broker: String,
    /// The steps that were passed, in order.
    pub(crate) passed: Vec<Milestone>,
    /// Why the walk ended before TLS, or the WebSocket, stood: what happened, whose fault it is, what to do.
    pub(crate) failure: Option<String>,
}

impl CheckedBroker {
    /// Walks to one of its brokers, for at most `connect_timeout_seconds`. Nothing of MQTT is said, so a running client of
    /// the same id is left alone; with TLS 1.3 a broker that refuses this client's certificate says so only afterwards.
    pub(crate) async fn walk(&self, broker: &Broker) -> Probe {
        let limit = Duration::from_secs(self.settings.connect_timeout_seconds.into());
        let mut passed = Vec::new();
        let way = timeout(limit, broker.route.open(broker.credentials.config(), &mut passed)).await;
        let failure = match way {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Loss::from_path(error).to_string()),
            Err(_) => Some(Loss::timed_out(&passed).to_string()),
        };
        Probe { broker: broker.route.address(), passed, failure }
    }
}
