//! From the outbox to rumqttc: as much as may go now, and why not more.

use rumqttc::{AsyncClient, ClientError, Request};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::{
    ledger::Ledger,
    limits::Limits,
    link::{Counters, Letter, Qos},
    pace::Pace,
    queue::Queue,
};

/// Letters inside rumqttc's channel: enough to keep it busy, few to carry back.
pub(crate) const CHANNEL: usize = 8;
/// One place in the channel stays free for DISCONNECT.
const MOST_HANDED: usize = CHANNEL - 1;

/// Why what is queued does not go to rumqttc yet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Held {
    /// The connection is to end.
    Leaving,
    /// Only an event of rumqttc's helps: something is written or acknowledged.
    Event,
    /// The pace.
    Until(Instant),
}

/// Ends when the pace lets the next letter go, and never for any other reason.
pub(crate) async fn held_until(held: Option<Held>) {
    match held {
        Some(Held::Until(at)) => sleep_until(at).await,
        _ => std::future::pending().await,
    }
}

/// Hands over what may go now; `None` when the outbox is empty.
pub(crate) fn hand_over(
    client: &AsyncClient,
    ledger: &mut Ledger,
    outbox: &Queue<Letter>,
    counters: &Counters,
    limits: &Limits,
    pace: &mut Pace,
) -> Option<Held> {
    while ledger.handed() < MOST_HANDED && ledger.has_room() {
        if outbox.is_empty() {
            return None;
        }
        if let Some(at) = pace.wait_until() {
            return Some(Held::Until(at));
        }
        let in_flight = ledger.in_flight();
        let fits = |letter: &Letter| {
            letter.qos == Qos::AtMostOnce
                || in_flight == 0
                || in_flight + letter.packet_size() <= limits.in_flight_bytes
        };
        let Some(letter) = outbox.try_pop_if(fits) else { return Some(Held::Event) };
        let entry = (letter.packet_size(), letter.qos);
        let Letter { topic, payload, qos, retain } = letter;
        let bytes = payload.len();
        match client.try_publish(topic, qos.into(), retain, payload) {
            Ok(()) => {
                ledger.hand_over(entry);
                pace.sent(entry.0);
                counters.sent(bytes);
            }
            Err(
                ClientError::Request(Request::Publish(publish))
                | ClientError::TryRequest(Request::Publish(publish)),
            ) => {
                outbox.put_back(vec![publish.into()]);
                return Some(Held::Event);
            }
            Err(error) => {
                debug!(%error, "rumqttc took no message");
                return Some(Held::Event);
            }
        }
    }
    Some(Held::Event)
}
