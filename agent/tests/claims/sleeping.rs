//! Devices that connect only to attest, in one process.

use keylime_mqtt_schemas::messages::{
    Accepted, Later, LaterReason, Outcome, Question, Quote, Ready, Refused, RefusedReason, Up,
};

use crate::bridge::{Bridge, Site};
use crate::run::{attest, challenge, enrol, ready};
use crate::swtpm::Swtpm;

const EVERY_SECOND: [&str; 5] = ["run", "--every", "1", "--deadline", "60"];

fn accepted() -> Question {
    Question::Accepted(Accepted { seconds: 1, outcome: Outcome::Pass })
}

async fn unchanged(bridge: &mut Bridge, ready: &Ready) {
    match bridge.hear().await {
        Up::Unchanged(unchanged) => assert_eq!(unchanged.ready, ready.tag()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_sleeps_says_as_before_resumes_tls_and_leaves_no_presence() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&EVERY_SECOND);
    let first = enrol(&site, &mut bridge).await;
    assert_eq!(first.sleep, Some(1));
    attest(&mut bridge, &first, 1).await;
    bridge.say(accepted());
    for nonce in 2..5 {
        unchanged(&mut bridge, &first).await;
        let evidence = attest(&mut bridge, &first, nonce).await;
        assert!(matches!(evidence.quote, Quote::Brief(_)));
        bridge.say(accepted());
    }
    unchanged(&mut bridge, &first).await;
    let connections = site.counted.connections();
    assert!(connections.len() >= 5, "a connection for each wake: {connections:?}");
    // A resumed handshake carries no certificates: neither the broker's down nor the device's up.
    for resumed in &connections[1..4] {
        assert!(resumed.down + 500 < connections[0].down && resumed.up < 2500, "{connections:?}");
    }
    assert!(!bridge.says_presence().await, "presence of a device that sleeps says nothing");
    agent.terminate();
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("asleep: Keylime says PASS"), "{log}");
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "a healthy run warns of nothing:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_without_success_is_said_and_the_next_one_comes() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run", "--every", "1", "--deadline", "8"]);
    let first = enrol(&site, &mut bridge).await;
    for answer in [
        Question::Refused(Refused { seconds: 3600, reason: RefusedReason::Offer }),
        Question::Later(Later { seconds: 3600, reason: LaterReason::NoPolicy }),
        Question::Accepted(Accepted { seconds: 3600, outcome: Outcome::Fail }),
    ] {
        bridge.say(answer);
        // whatever the bridge says, the device wakes again
        match bridge.hear().await {
            Up::Ready(_) | Up::Unchanged(_) => (),
            other => panic!("{other:?}"),
        }
    }
    // And now nobody answers, for a whole wake.
    while !agent.said("asleep: no bridge answered") {
        tokio::task::yield_now().await;
    }
    loop {
        match bridge.hear().await {
            Up::Ready(again) => {
                assert_eq!(again.boot, first.boot);
                break;
            }
            Up::Unchanged(_) => (),
            other => panic!("{other:?}"),
        }
    }
    agent.terminate();
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(0), "asleep or awake, a signal ends it: {log}");
    for words in ["asleep: refused: ", "asleep: told to wait: ", "asleep: Keylime says FAIL"] {
        assert!(log.contains(words), "{words:?} is not in: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_of_the_tpm_between_wakes_is_said_with_a_ready() {
    let (site, mut swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let _agent = site.agent(&EVERY_SECOND);
    let before = enrol(&site, &mut bridge).await;
    attest(&mut bridge, &before, 1).await;
    bridge.say(accepted());
    unchanged(&mut bridge, &before).await;
    swtpm.power_off();
    swtpm.power_on();
    // The wake under way gets a challenge for the boot before.
    bridge.say(Question::Challenge(challenge(&before, 2)));
    let after = loop {
        match bridge.hear().await {
            Up::Ready(after) if after.boot != before.boot => break after,
            Up::Ready(_) | Up::Unchanged(_) => (),
            other => panic!("{other:?}"),
        }
    };
    assert_ne!(after.statement, before.statement);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_leaves_no_presence_either() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run", "--once", "--deadline", "60"]);
    enrol(&site, &mut bridge).await;
    bridge.say(accepted());
    assert_eq!(agent.end().0.code(), Some(0));
    let agent = site.agent(&["run", "--once", "--deadline", "60"]);
    ready(&mut bridge).await;
    bridge.say(accepted());
    assert_eq!(agent.end().0.code(), Some(0));
    assert!(!bridge.says_presence().await);
}
