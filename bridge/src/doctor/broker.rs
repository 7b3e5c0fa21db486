//! At each broker: login and the bridge's topics
//!
//! What a bridge says it cannot hear, and nobody answers it without being asked, so a 3.1.1 broker that acknowledges what it forbids is not found out
//! from here. A device's doctor does that: its answer has been through both directions.

use super::Wishes;
use crate::config::Checked;
use crate::run;
use keylime_mqtt_broker_config::{Report, Step, Visit, VisitError};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::messages::{Down, Heard, HelloTag, Question};
use keylime_mqtt_schemas::topics::Topic;
use keylime_mqtt_schemas::wire::pack_down;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What a broker needs to hand out what it has retained, and some; links make it longer
const RETAINED: Duration = Duration::from_millis(500);
/// See [`RETAINED`]
const ROUND_TRIPS: u32 = 4;
/// The device that this bridge says something to: there is none of this name
const NOBODY: &str = "keylime-mqtt-doctor";

pub(super) async fn examine(
    checked: &Checked,
    open: &[usize],
    is_running: bool,
    wishes: &Wishes,
    report: &mut Report,
) {
    if is_running && !wishes.login_too {
        let why = "a bridge runs here, whose connection a broker that takes client ids from certificates would end for a moment: \
                   ask with --login-too, or stop it; or ask keylime-mqtt-agent doctor on a device, to which the running bridge answers";
        for step in ["login", "topics", "challenge"] {
            report.add(Step::not_checked(step, why));
        }
        return;
    }
    for nth in open {
        let address = checked.broker.address_of(*nth);
        let client_id = checked.broker.visitor_id(&run::client_id(checked), is_running);
        match checked.broker.visit(*nth, &client_id).await {
            Ok(mut visit) => {
                report.add(Step::ok("login", format!("as {client_id}")).of(&address));
                report.add(topics(checked, &mut visit).await.of(&address));
                report.add(challenge(checked, &mut visit).await.of(&address));
                visit.leave().await;
            }
            Err(error) => {
                report.add(Step::error("login", &error).of(&address));
                for step in ["topics", "challenge"] {
                    report.add(Step::not_checked(step, "it waits for login").of(&address));
                }
            }
        }
    }
}

/// Whether what devices say is granted, and comes
async fn topics(checked: &Checked, visit: &mut Visit) -> Step {
    // without a share group: in it, this visit would take the running bridges' messages
    let filters = checked.topics.bridge_filters(checked.via.as_ref());
    match heard(checked, visit, &filters).await {
        Err(error) => refused("topics", &error, &filters),
        Ok((refused, _)) if !refused.is_empty() => Step::failed(
            "topics",
            format!("the broker refuses the subscription to {}", refused.join(", ")),
            "let the bridge's name read it in the broker's ACL",
        ),
        Ok((_, devices)) if devices.is_empty() => Step::not_checked(
            "topics",
            format!(
                "the broker grants {}, which one of MQTT 3.1.1 may do with what it withholds, and no device has left its presence there: \
                 keylime-mqtt-agent doctor on a device tells",
                filters.join(", ")
            ),
        ),
        Ok((_, devices)) => Step::ok(
            "topics",
            format!("the broker hands over what devices say; {} were heard of", devices.len()),
        ),
    }
}

/// Filters that were refused, and devices of which something came
async fn heard(
    checked: &Checked,
    visit: &mut Visit,
    filters: &[String],
) -> Result<(Vec<String>, BTreeSet<AgentId>), VisitError> {
    let granted = visit.subscribe(filters).await?;
    let refused = filters.iter().zip(granted).filter(|(_, granted)| !granted);
    let refused: Vec<String> = refused.map(|(filter, _)| filter.clone()).collect();
    let until = Instant::now() + RETAINED + visit.round_trip() * ROUND_TRIPS;
    let mut devices = BTreeSet::new();
    while let Some(arrived) = visit.message(until.saturating_duration_since(Instant::now())).await? {
        if let Ok(topic @ (Topic::Evidence(..) | Topic::Presence(_))) = checked.topics.parse(&arrived.topic) {
            devices.insert(topic.agent_id().clone());
        }
    }
    Ok((refused, devices))
}

/// Whether something can be said to a device: to one that is not there
async fn challenge(checked: &Checked, visit: &mut Visit) -> Step {
    let question = Question::Heard(Heard { tag: HelloTag::from([0; 8]), told: None });
    let (Ok(id), Ok(payload)) = (NOBODY.parse(), pack_down(&Down { question, via: checked.via.clone() }))
    else {
        return Step::not_checked("challenge", "this build cannot make the message");
    };
    let topic = checked.topics.challenge(&id);
    match visit.publish(&topic, payload).await {
        Ok(()) => Step::not_checked(
            "challenge",
            "the broker acknowledges what is said to a device, which one of MQTT 3.1.1 does with what it forbids too: \
             keylime-mqtt-agent doctor on a device tells",
        ),
        Err(error) => refused("challenge", &error, &[topic]),
    }
}

fn refused(step: &'static str, error: &VisitError, topics: &[String]) -> Step {
    if error.is_closed() {
        let says = format!("the broker ended the connection at {}", topics.join(", "));
        return Step::failed(step, says, "let the bridge's name use it in the broker's ACL or policy");
    }
    Step::error(step, error)
}
