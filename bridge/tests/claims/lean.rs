//! Claims about what need not travel, and what happens to what travels wrongly: a device with real logs, Keylime by a script.

use crate::fixtures::{bytes, ima_line, text};
use crate::logs::{Gateway, Policies};
use crate::world::World;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keylime_mqtt_schemas::messages::{Evidence, LogKind, Question, Quote, Up, Verdict};

fn submissions(world: &World) -> usize {
    world.requests_like("PATCH /v3.0/agents")
}

#[tokio::test]
async fn logs_travel_once_and_then_only_what_is_new() {
    let (world, keylime) = Policies::world(&[]).await;
    let mut gateway = Gateway::new();
    let needs = gateway.passes(&world).await;
    assert_eq!(needs.iter().map(|need| need.log).collect::<Vec<_>>(), [LogKind::Uefi, LogKind::Ima]);
    assert_eq!(keylime.log("uefi_log"), BASE64.encode(bytes("device-secure/binary_bios_measurements")));
    assert_eq!(keylime.log("ima_log"), text("device-secure/ascii_runtime_measurements"));

    // steady: nothing new at all
    let challenge = gateway.challenged(&world).await;
    assert!(challenge.held.is_some() && !challenge.full);
    let evidence = gateway.evidence(&challenge);
    assert!(matches!(evidence.quote, Quote::Brief(_)) && evidence.pcrs.is_none(), "{evidence:?}");
    gateway.says(&world, Up::Evidence(evidence)).await;
    let next = gateway.challenged(&world).await;
    assert_eq!(keylime.log("ima_log"), "");
    assert_eq!(keylime.log("uefi_log"), BASE64.encode(bytes("device-secure/binary_bios_measurements")));

    // ten files more, and one PCR
    let news: String = (0..10).map(|n| ima_line(&format!("/usr/bin/new {n}"))).collect();
    news.split_inclusive('\n').for_each(|line| gateway.measures(line));
    gateway.extends(13, [5; 32]);
    let evidence = gateway.evidence(&next);
    assert_eq!(evidence.pcrs.as_ref().map(|pcrs| u32::from(pcrs.mask())), Some(1 << 13));
    gateway.says(&world, Up::Evidence(evidence)).await;
    gateway.challenged(&world).await;
    assert_eq!(keylime.log("ima_log"), news);
    let blob = BASE64.decode(keylime.quote()["subject_data"].as_str().unwrap()).unwrap();
    assert_eq!(blob, keylime_mqtt_bridge::restore::pcr_blob(&gateway.pcrs));
    assert_eq!(world.snapshot().await.refused, []);
}

#[tokio::test]
async fn a_guess_that_the_signature_refutes_is_repaired_by_the_full_form() {
    let (world, _) = Policies::world(&[]).await;
    let mut gateway = Gateway::new();
    gateway.passes(&world).await;
    let challenge = gateway.challenged(&world).await;
    // PCR 13 has another value than the bridge holds, and the device does not say so
    gateway.extends(13, [5; 32]);
    let mut evidence = gateway.evidence(&challenge);
    evidence.pcrs = None;
    let before = submissions(&world);
    gateway.says(&world, Up::Evidence(evidence)).await;
    let again = gateway.challenged(&world).await;
    assert!(again.full && again.nonce == challenge.nonce);
    assert_eq!(submissions(&world), before);
    world.refused("Evidence", "brief form").await;
    let evidence = gateway.evidence(&again);
    gateway.says(&world, Up::Evidence(evidence)).await;
    assert!(!gateway.challenged(&world).await.full);
    assert_eq!(submissions(&world), before + 1);
}

#[tokio::test]
async fn a_device_that_is_as_it_was_need_not_say_it_again() {
    let (world, _) = Policies::world(&[]).await;
    let mut gateway = Gateway { ima: None, ..Gateway::new() };
    gateway.passes(&world).await;
    gateway.says(&world, gateway.unchanged()).await;
    let challenge = gateway.challenged(&world).await;
    gateway.answers(&world, &challenge).await;
    // a bridge that was not there asks for the whole
    let second = world.next_bridge();
    gateway.says(&second, gateway.unchanged()).await;
    second.later(&gateway.device.id).await;
    gateway.passes(&second).await;
}

#[tokio::test]
async fn lines_that_say_more_than_pcr_10_covers_are_submitted_once_the_device_has_stated_them() {
    let (world, keylime) = Policies::world(&[]).await;
    let mut gateway = Gateway::recorded("device-secure-violations");
    gateway.arrives(&world).await;
    let (_, challenge) = gateway.sends_logs(&world).await;
    let evidence = gateway.evidence(&challenge);
    assert!(matches!(evidence.quote, Quote::Brief(_)));
    gateway.says(&world, Up::Evidence(evidence.clone())).await;
    let asked = world.question(&gateway.device.id, "State", |question| match question {
        Question::State(state) => Some(state),
        _ => None,
    });
    let state = asked.await;
    assert_eq!((state.tag, state.ima_from), (challenge.nonce.tag(), Some(0)));
    assert_eq!(submissions(&world), 0);
    gateway.says(&world, gateway.statement(&challenge.nonce, &evidence, 0)).await;
    world.result(&gateway.device.id, Verdict::Pass).await;
    assert_eq!(keylime.log("ima_log").into_bytes(), gateway.ima.unwrap());
}

#[tokio::test]
async fn lines_that_a_broker_takes_out_after_a_restart_of_the_bridge_never_lack_at_the_verifier() {
    let (world, keylime) = Policies::world(&[]).await;
    let mut gateway = Gateway::new();
    gateway.passes(&world).await;
    let id = gateway.device.id.clone();
    // without the memory of where the log stood
    let second = world.next_bridge();
    drop(world);
    let news: String = (0..2).map(|n| ima_line(&format!("/usr/bin/new {n}"))).collect();
    news.split_inclusive('\n').for_each(|line| gateway.measures(line));
    gateway.arrives(&second).await;
    let before = submissions(&second);
    let mut stated = 0;
    let mut lies = true;
    let mut sent = None;
    while submissions(&second) == before {
        let asked = second.question(&id, "a question", Some);
        match asked.await {
            Question::Need(need) => {
                for blob in gateway.part(&need) {
                    gateway.says(&second, Up::Blob(blob)).await;
                }
            }
            Question::Challenge(challenge) => {
                let honest = gateway.evidence(&challenge);
                let ima = honest.ima.clone().filter(|_| !lies);
                gateway.says(&second, Up::Evidence(Evidence { ima, ..honest.clone() })).await;
                sent = Some((challenge, honest));
            }
            Question::State(_) => {
                let (challenge, honest) = sent.as_ref().unwrap();
                let from = usize::try_from(challenge.ima_offset.unwrap()).unwrap();
                gateway.says(&second, gateway.statement(&challenge.nonce, honest, from)).await;
                stated += 1;
                if !lies {
                    break;
                }
                assert_eq!(submissions(&second), before);
            }
            _ => {
                lies = false;
                gateway.says_ready(&second).await;
            }
        }
    }
    assert!(!lies && stated == 3, "stated {stated} times");
    second.result(&id, Verdict::Pass).await;
    assert_eq!(keylime.log("ima_log"), news);
}
