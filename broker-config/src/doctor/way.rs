//! The way to each broker as steps: name, TCP, proxy, TLS, WebSocket.

use std::time::SystemTime;

use super::certificate::Certificate;
use super::report::{Report, Step};
use crate::path::{Leaf, Milestone};
use crate::probe::Probe;
use crate::settings::{Broker, CheckedBroker};

impl CheckedBroker {
    /// Walks to every broker, a step for each part of the way. Gives those, by their place in the settings, to which it
    /// is open.
    pub async fn check_ways(&self, report: &mut Report) -> Vec<usize> {
        let mut open = Vec::new();
        for (nth, broker) in self.brokers().enumerate() {
            let probe = self.walk(broker).await;
            if probe.failure.is_none() {
                open.push(nth);
            }
            for step in steps(broker, &probe) {
                report.add(step.of(&probe.broker));
            }
        }
        open
    }

    /// In the order in which they are tried.
    pub(crate) fn brokers(&self) -> impl Iterator<Item = &Broker> {
        [&self.first].into_iter().chain(&self.fallbacks)
    }
}

/// The milestones in order, of which the first that was not passed is where the way ended.
fn steps(broker: &Broker, probe: &Probe) -> Vec<Step> {
    let mut names = vec!["name", "tcp"];
    names.extend(broker.route.proxy.as_ref().map(|_| "proxy"));
    names.push("tls");
    names.extend(broker.route.websocket.as_ref().map(|_| "websocket"));
    let mut steps: Vec<Step> =
        names.iter().zip(&probe.passed).map(|(name, milestone)| passed(name, milestone, broker)).collect();
    let mut left = names.into_iter().skip(steps.len());
    if let (Some(failure), Some(name)) = (&probe.failure, left.next()) {
        steps.push(Step::error(name, failure));
        steps.extend(left.map(|later| Step::not_checked(later, format!("it waits for {name}"))));
    }
    steps
}

fn passed(name: &'static str, milestone: &Milestone, broker: &Broker) -> Step {
    match milestone {
        Milestone::Resolved { name: of, addresses } => {
            let addresses: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            Step::ok(name, format!("{of} is {}", addresses.join(", ")))
        }
        Milestone::Secured { version, alpn, certificate } => {
            secured(name, version, alpn.as_deref(), certificate.as_ref(), broker)
        }
        other => Step::ok(name, other.to_string()),
    }
}

fn secured(
    name: &'static str,
    version: &str,
    alpn: Option<&str>,
    certificate: Option<&Leaf>,
    broker: &Broker,
) -> Step {
    let now = SystemTime::now();
    let certificate = certificate.and_then(|leaf| Certificate::from_der(&leaf.0));
    let offered = &broker.credentials.config().alpn_protocols;
    let alpn = match alpn {
        Some(alpn) => format!(", ALPN {}", alpn.escape_debug()),
        None if offered.is_empty() => String::new(),
        None => ", and it chose none of broker.alpn".to_owned(),
    };
    let validity = certificate.as_ref().map(|certificate| certificate.validity(now)).unwrap_or_default();
    let says =
        format!("{version}{alpn}; the broker's certificate is of a CA in ca_file, for this host, {validity}");
    if certificate.is_some_and(|certificate| certificate.ends_soon(now)) {
        return Step::finding(name, says, "have the broker's certificate renewed");
    }
    Step::ok(name, says)
}
