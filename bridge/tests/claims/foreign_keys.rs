//! Claims about what another device's AK has signed, and signed well: none of it reaches the verifier, and the device itself passes.

use crate::fixtures::{TestAk, certify};
use crate::logs::{Gateway, Policies};
use crate::world::{Device, World};
use keylime_mqtt_schemas::messages::{Nonce, Proof, Question, Quote, RefusedReason, Up, Verdict};

/// Whoever holds a device of this fleet, speaking as another
fn forger() -> Device {
    Device { ak: TestAk::other(), ..Device::new("gateway-1") }
}

async fn challenge(world: &World, device: &Device) -> Nonce {
    let nonce = world.question(&device.id, "Challenge", |question| match question {
        Question::Challenge(challenge) => Some(challenge.nonce),
        _ => None,
    });
    nonce.await
}

fn submissions(world: &World) -> usize {
    world.requests_like("PATCH /v3.0/agents")
}

#[tokio::test]
async fn a_quote_by_the_ak_of_another_device_is_not_submitted() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let nonce = device.until_challenged(&world).await;
    world.says(&device.id, &forger().evidence(&nonce, 0)).await;
    assert!(challenge(&world, &device).await == nonce, "asked the same again");
    world.refused("Evidence", "not signed by the trusted AK").await;
    assert_eq!(submissions(&world), 0);
    world.says(&device.id, &device.evidence(&nonce, 0)).await;
    world.result(&device.id, Verdict::Pass).await;
    assert_eq!(submissions(&world), 1);
}

#[tokio::test]
async fn a_brief_quote_by_the_ak_of_another_device_is_not_submitted() {
    let (world, _) = Policies::world(&[]).await;
    let mut gateway = Gateway { ima: None, ..Gateway::new() };
    gateway.passes(&world).await;
    let asked = gateway.challenged(&world).await;
    let before = submissions(&world);
    let mut impostor = Gateway { device: forger(), said: gateway.said.clone(), ima: None, ..Gateway::new() };
    let forged = impostor.evidence(&asked);
    assert!(matches!(forged.quote, Quote::Brief(_)));
    gateway.says(&world, Up::Evidence(forged)).await;
    let again = gateway.challenged(&world).await;
    assert!(again.full && again.nonce == asked.nonce);
    world.refused("Evidence", "brief form").await;
    assert_eq!(submissions(&world), before);
    gateway.answers(&world, &again).await;
    assert_eq!(submissions(&world), before + 1);
}

#[tokio::test]
async fn a_proof_by_the_ak_of_another_device_is_not_handed_on() {
    let world = World::passing().await;
    let (device, forger) = (Device::new("gateway-1"), forger());
    world.says(&device.id, &device.ready()).await;
    let nonce = world.question(&device.id, "Prove", |question| match question {
        Question::Prove(prove) => Some(prove.nonce),
        _ => None,
    });
    let nonce = nonce.await;
    world.says(&device.id, &forger.proof(&nonce)).await;
    world.refused("Proof", "about another key").await;
    // about the right key, and signed by the wrong one
    let signed = forger.signed(certify(nonce.as_bytes(), &device.ak));
    world.says(&device.id, &Up::Proof(Proof { tag: nonce.tag(), signed })).await;
    world.refused("Proof", "not signed by the trusted AK").await;
    assert_eq!(world.requests_like("PATCH /v3.0/sessions"), 0);
    world.says(&device.id, &device.proof(&nonce)).await;
    challenge(&world, &device).await;
    assert_eq!(world.requests_like("PATCH /v3.0/sessions"), 1);
}

#[tokio::test]
async fn a_statement_of_the_boot_by_the_ak_of_another_device_opens_no_attestation() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let (Up::Ready(ready), Up::Ready(forged)) = (device.ready(), forger().ready()) else { panic!() };
    let mut changed = ready.clone();
    changed.statement = forged.statement;
    world.says(&device.id, &Up::Ready(changed)).await;
    let nonce = world.question(&device.id, "Prove", |question| match question {
        Question::Prove(prove) => Some(prove.nonce),
        _ => None,
    });
    world.says(&device.id, &device.proof(&nonce.await)).await;
    let reason = world.question(&device.id, "Refused", |question| match question {
        Question::Refused(refused) => Some(refused.reason),
        _ => None,
    });
    assert_eq!(reason.await, RefusedReason::Boot);
    assert_eq!(world.requests_like("POST /v3.0/agents"), 0);
    world.says(&device.id, &Up::Ready(ready)).await;
    let nonce = challenge(&world, &device).await;
    world.says(&device.id, &device.evidence(&nonce, 0)).await;
    world.result(&device.id, Verdict::Pass).await;
}

#[tokio::test]
async fn a_statement_of_evidence_by_the_ak_of_another_device_lets_nothing_through() {
    let (world, keylime) = Policies::world(&[]).await;
    let machine = "device-secure-violations";
    let mut gateway = Gateway::recorded(machine);
    let impostor = Gateway { device: forger(), ..Gateway::recorded(machine) };
    gateway.arrives(&world).await;
    let (_, asked) = gateway.sends_logs(&world).await;
    let evidence = gateway.evidence(&asked);
    gateway.says(&world, Up::Evidence(evidence.clone())).await;
    let id = gateway.device.id.clone();
    let state = |question| match question {
        Question::State(state) => Some(state),
        _ => None,
    };
    world.question(&id, "State", state).await;
    gateway.says(&world, impostor.statement(&asked.nonce, &evidence, 0)).await;
    world.refused("Statement", "does not verify under the AK").await;
    assert_eq!(submissions(&world), 0);
    // all is asked for once more, for any of it may have been changed
    let (_, again) = gateway.sends_logs(&world).await;
    let evidence = gateway.evidence(&again);
    gateway.says(&world, Up::Evidence(evidence.clone())).await;
    world.question(&id, "State", state).await;
    gateway.says(&world, gateway.statement(&again.nonce, &evidence, 0)).await;
    world.result(&id, Verdict::Pass).await;
    assert_eq!(keylime.log("ima_log").into_bytes(), gateway.ima.unwrap());
}
