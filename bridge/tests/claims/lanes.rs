//! Claims about the connections to Keylime, against a scripted HTTPS server that counts them.

use crate::scripted::{Play, Scripted, Seen, answer};
use keylime_mqtt_bridge::keylime::{SessionToken, StatusOutcome, Verifier};
use std::time::Duration;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

fn token() -> SessionToken {
    SessionToken::new(Zeroizing::new("uuid.t0k3n".to_owned())).unwrap()
}

fn known(request: &Seen) -> Play {
    let stuck = request.line.contains("/stuck");
    if stuck { Play::Silence } else { answer(200, r#"{"results":{}}"#) }
}

/// Asks for the status of all these at once; the requests under way.
fn asked(verifier: &'static Verifier, ids: impl Iterator<Item = String>) -> JoinSet<StatusOutcome> {
    ids.map(|id| async move { verifier.status(&id, &token()).await }).collect()
}

fn leaked(server: &Scripted, lanes: usize, timeout: Duration) -> &'static Verifier {
    let mut settings = server.settings.clone();
    (settings.lanes, settings.timeout) = (lanes, timeout);
    Box::leak(Box::new(Verifier::new(&settings).unwrap()))
}

#[tokio::test]
async fn devices_of_one_lane_take_turns_on_one_connection() {
    let server = Scripted::answering(|request| Some(known(request))).await;
    let verifier = leaked(&server, 1, Duration::from_secs(20));
    for _ in 0..3 {
        let answers = asked(verifier, (0..8).map(|n| format!("gateway-{n}"))).join_all().await;
        assert!(answers.iter().all(|answer| matches!(answer, StatusOutcome::Known(_))), "{answers:?}");
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn a_request_that_hangs_keeps_others_of_its_lane_waiting_for_a_part_of_its_time_only() {
    let server = Scripted::answering(|request| Some(known(request))).await;
    let verifier = leaked(&server, 2, Duration::from_secs(16));
    let mut stuck = asked(verifier, ["stuck".to_owned()].into_iter());
    crate::eventually(|| !server.seen().is_empty()).await;
    // some of them share its lane
    let others = asked(verifier, (0..32).map(|n| format!("gateway-{n}"))).join_all();
    tokio::select! {
        answers = others => {
            assert!(answers.iter().all(|answer| matches!(answer, StatusOutcome::Known(_))), "{answers:?}");
        }
        _ = stuck.join_next() => panic!("the others waited until the hanging request had ended"),
    }
}
