//! `run`: from a checked configuration to a serving bridge, until SIGTERM or SIGINT.

use crate::config::Checked;
use crate::fleet::Fleet;
use crate::status_socket::{StatusError, StatusSocket};
use keylime_mqtt_broker_config::{Qos, Will, connect};
use keylime_mqtt_schemas::codec::CodecError;
use keylime_mqtt_schemas::messages::BridgeStatus;
use keylime_mqtt_schemas::topics::Via;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Name on the broker of a bridge that serves alone
const ALONE: &str = "bridge";
/// Client id without a name; two clients of one id throw each other out
const CLIENT_ID: &str = "keylime-mqtt-bridge";
/// A whole fleet waits for a bridge, which is on no metered link
const MISSED_AFTER: Duration = Duration::from_secs(30);
/// Questions that may wait for the fleet; there is one operator
const QUESTIONS: usize = 4;

/// Why a bridge could not start
#[derive(Debug, Error)]
pub enum RunError {
    /// The status socket
    #[error(transparent)]
    Status(#[from] StatusError),
    /// No signals
    #[error("the system gives no signals: {0}")]
    Signals(#[from] std::io::Error),
    /// A message of its own that cannot be encoded: a defect of this program
    #[error("the bridge's status cannot be encoded: {0}")]
    Encode(#[from] CodecError),
    /// A built-in name that is none: a defect of this program
    #[error(transparent)]
    Name(#[from] keylime_mqtt_schemas::topics::TopicError),
}

/// Serves until told to stop, then says so to the broker
///
/// # Errors
/// When it cannot start.
pub async fn run(checked: Checked) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let socket = StatusSocket::bind(&checked.config.status_socket)?;
    let (ask, mut requests) = mpsc::channel(QUESTIONS);
    let serving = tokio::spawn(socket.serve(ask));

    let name: Via = checked.via.clone().map_or_else(|| ALONE.parse(), Ok)?;
    let status_topic = checked.topics.bridge(&name);
    let status =
        |online, since| serde_json::to_vec(&BridgeStatus { online, since }).map_err(|_| CodecError::Encode);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (online, offline) = (status(true, since)?, status(false, 0)?);
    let will =
        Will { topic: status_topic.clone(), payload: offline.clone(), qos: Qos::AtLeastOnce, retain: true };
    let client_id = client_id(&checked);
    tracing::info!(
        broker = checked.broker.address(),
        verifier = %checked.config.verifier.url,
        registrar = %checked.config.registrar.url,
        client_id,
        "bridge starts"
    );
    for unused in checked.admission.unused_certificates() {
        tracing::warn!("{unused}");
    }
    for danger in dangers(&checked) {
        tracing::info!("{danger}");
    }
    let (link, mut incoming) = connect(checked.broker.clone(), client_id, Some(will), filters(&checked));
    link.is_missed_after(MISSED_AFTER);
    let mut fleet = Fleet::new(checked, link.clone()).announced_as(status_topic.clone(), online);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    };
    fleet.run(&mut incoming, &mut requests, stop).await;
    drop(fleet);
    serving.abort();
    if let Err(error) = link.publish(&status_topic, offline, Qos::AtLeastOnce, true) {
        tracing::info!(%error, "the broker was not told that this bridge stops");
    }
    link.shutdown().await;
    tracing::info!("bridge stopped");
    Ok(())
}

/// What the operator has chosen, said at each start
fn dangers(checked: &Checked) -> impl Iterator<Item = &'static str> {
    let config = &checked.config;
    let plaintext = config.registrar.danger_plaintext_registrar.then_some(
        "danger_plaintext_registrar: whoever is on the way to the registrar can enrol a TPM of their own",
    );
    let any_id = config.admission.danger_any_id_of_trusted_ca.then_some(
        "danger_any_id_of_trusted_ca: any TPM of a trusted maker can take any id that is not in the list",
    );
    plaintext.into_iter().chain(any_id)
}

/// One name per bridge: two clients of one id throw each other out of the broker for ever
pub(crate) fn client_id(checked: &Checked) -> String {
    match (checked.broker.client_id(), &checked.via) {
        (Some(id), _) => id.to_owned(),
        (None, Some(via)) => format!("{CLIENT_ID}-{via}"),
        (None, None) => CLIENT_ID.to_owned(),
    }
}

/// What devices say, shared among bridges where several serve, but for the answers to this one
fn filters(checked: &Checked) -> Vec<(String, Qos)> {
    let own = checked.via.as_ref().map(|via| format!("/evidence/{via}"));
    let shared = |filter: String| match (&checked.config.topics.share_group, &own) {
        (Some(group), Some(own)) if !filter.ends_with(own.as_str()) => format!("$share/{group}/{filter}"),
        _ => filter,
    };
    let filters = checked.topics.bridge_filters(checked.via.as_ref());
    filters.into_iter().map(|filter| (shared(filter), Qos::AtLeastOnce)).collect()
}
