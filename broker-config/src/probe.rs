//! A walk to each broker without MQTT, for an operator who asks why there is no connection.

use std::time::Duration;

use tokio::time::timeout;

use crate::{loss::Loss, path::Milestone, settings::CheckedBroker};

/// What a walk to one broker met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// `host:port`.
    pub broker: String,
    /// The steps that were passed, in order.
    pub passed: Vec<Milestone>,
    /// Why the walk ended before TLS, or the WebSocket, stood: what happened, whose fault it is, what to do.
    pub failure: Option<String>,
}

impl CheckedBroker {
    /// Walks to the first broker and to each fallback, one after the other, each for at most
    /// `connect_timeout_seconds`. Nothing of MQTT is said, so a running client of the same id is left alone; with
    /// TLS 1.3 a broker that refuses this client's certificate says so only afterwards.
    pub async fn probe(&self) -> Vec<Probe> {
        let limit = Duration::from_secs(self.settings.connect_timeout_seconds.into());
        let mut probes = Vec::new();
        for broker in [&self.first].into_iter().chain(&self.fallbacks) {
            let mut passed = Vec::new();
            let way = timeout(limit, broker.route.open(broker.credentials.config(), &mut passed)).await;
            let failure = match way {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(Loss::from_path(error).to_string()),
                Err(_) => Some(Loss::timed_out(&passed).to_string()),
            };
            probes.push(Probe { broker: broker.route.address(), passed, failure });
        }
        probes
    }
}
