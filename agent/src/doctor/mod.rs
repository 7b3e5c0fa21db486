//! `doctor`: walks the way of the data and says of each step whether it works and, where not, what to do.
//!
//! ```text
//! configuration, state -> TPM, logs -> clock, certificates -> name, proxy, TCP, TLS -> login -> own topics, bridge
//! ```
//!
//! It may run beside an agent: it takes neither its client id nor its AK, and of what it sends nothing changes how the
//! device stands. It makes and keeps nothing.

mod broker;
mod device;

use keylime_mqtt_broker_config::{Report, Step};
use keylime_mqtt_schemas::AgentId;

use crate::config::{Config, ConfiguredId};
use crate::store::Store;
use broker::Examined;

/// The name in the report.
pub const PROGRAM: &str = "keylime-mqtt-agent doctor";

/// What an operator asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Leave out the packet of `max_packet_bytes`, which costs as much as it says.
    pub spare_link: bool,
}

/// Walks; false when the configuration is wrong.
pub async fn examine(config: &Config, wishes: Wishes, report: &mut Report) -> bool {
    let broker = config.broker();
    let mut is_configured = broker.is_ok();
    report.add(match &broker {
        Ok(_) => Step::ok("configuration", "read, and so are its certificates and key"),
        Err(error) => Step::error("configuration", error),
    });
    if let Err(error) = config.reference() {
        is_configured = false;
        report.add(Step::error("reference", &error));
    }
    let is_running = Store::is_in_use(&config.state_dir);
    let found = device::examine(config, is_running, report).await;
    let Ok(broker) = broker else {
        report.add(Step::not_checked("broker", "it waits for the configuration"));
        return false;
    };
    let common_name = broker.check_certificates(report);
    let open = broker.check_ways(report).await;
    let id = agent_id(config, found.ek_hash.as_deref(), common_name.as_deref(), report);
    let (Some(id), Ok(topics)) = (id, config.topics()) else {
        report.add(Step::not_checked("login", "it waits for the id"));
        return is_configured;
    };
    for nth in open {
        let examined = Examined {
            broker: &broker,
            nth,
            id: &id,
            common_name: common_name.as_deref(),
            topics: &topics,
            payload_bytes: config.payload_bytes,
            is_running,
            wishes,
        };
        examined.examine(report).await;
    }
    is_configured
}

/// Step `id`: as configured, or the hash of the EK. Where the TPM does not say that, the common name stands in, so that
/// the rest can be looked at.
fn agent_id(
    config: &Config,
    ek_hash: Option<&str>,
    common_name: Option<&str>,
    report: &mut Report,
) -> Option<AgentId> {
    let id = match (config.id(), ek_hash) {
        (Ok(ConfiguredId::Given(id)), _) => Some(id),
        (_, Some(hash)) => hash.parse().ok(),
        (_, None) => {
            let stands_in: Option<AgentId> = common_name.and_then(|name| name.parse().ok());
            let says = match &stands_in {
                Some(id) => format!(
                    "it is the hash of the EK, which the TPM did not say; gone on with the certificate's {id}"
                ),
                None => "it is the hash of the EK, which the TPM did not say".to_owned(),
            };
            report.add(Step::not_checked("id", says));
            return stands_in;
        }
    };
    report.add(match (&id, common_name) {
        (None, _) => Step::failed("id", "no agent id can be made of it", "set id in the configuration"),
        (Some(id), Some(name)) if name != id.as_str() => Step::finding(
            "id",
            format!("{id}, and the certificate's common name is {name}"),
            "brokers' ACLs most often go by the common name: issue the certificate to the id, or see that the ACL knows both",
        ),
        (Some(id), _) => Step::ok("id", id.to_string()),
    });
    id
}
