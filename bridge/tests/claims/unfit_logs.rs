//! Claims about logs that are not what they should be: refused with a reason, asked for again, never submitted.

use crate::fixtures::{bytes, ima_line};
use crate::logs::{Asked, Gateway, Policies};
use crate::world::World;
use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder, pack_ima, pack_uefi};
use keylime_mqtt_schemas::messages::limits::{MAX_INLINE_IMA, MAX_PART_LINES};
use keylime_mqtt_schemas::messages::{Blob, LogKind, Need, Up};
use std::sync::Arc;

/// Refused with that reason, and the verifier has heard nothing
async fn refused(world: &World, kind: &str, why: &str) {
    world.refused(kind, why).await;
    assert_eq!(world.requests_like("PATCH /v3.0/agents"), 0);
}

/// Lines that pack well and expand to more than `bytes`
fn bomb(bytes: usize) -> Vec<u8> {
    let line = ima_line("/usr/bin/the same again");
    let packed = pack_ima(line.repeat(bytes / line.len() + 1).as_bytes(), None);
    assert!(packed.len() < 60_000, "{}", packed.len());
    packed
}

fn reference() -> Arc<Reference> {
    let mut builder = ReferenceBuilder::new();
    builder.ima_log(&bytes("device-secure/ascii_runtime_measurements"));
    builder.uefi_log(&bytes("device-secure/binary_bios_measurements"));
    Arc::new(Reference::from_file(builder.build().unwrap()).unwrap())
}

/// Asked for the IMA log, with the UEFI log out of the way
async fn needed(world: &World) -> (Gateway, Need) {
    let gateway = Gateway { uefi: None, ..Gateway::new() };
    gateway.arrives(world).await;
    let need = gateway.needed(world).await;
    (gateway, need)
}

async fn quickly() -> World {
    Policies::world(&["exchange.repeat_after_seconds=1"]).await.0
}

fn repacked(blob: &Blob, part: Vec<u8>) -> Up {
    Up::Blob(Blob { part: part.try_into().unwrap(), ..blob.clone() })
}

/// From where it stands to PASS
async fn still_passes(mut gateway: Gateway, world: &World) {
    let (_, challenge) = gateway.sends_logs(world).await;
    gateway.answers(world, &challenge).await;
}

#[tokio::test]
async fn a_part_that_expands_past_its_bound_is_refused() {
    let world = quickly().await;
    let (gateway, need) = needed(&world).await;
    let blob = &gateway.part(&need)[0];
    gateway.says(&world, repacked(blob, bomb(MAX_PART_LINES))).await;
    refused(&world, "Blob", "cannot be unpacked").await;
    still_passes(gateway, &world).await;
}

#[tokio::test]
async fn evidence_whose_lines_expand_past_their_bound_is_refused() {
    let world = quickly().await;
    let mut gateway = Gateway { uefi: None, ..Gateway::new() };
    gateway.arrives(&world).await;
    let (_, challenge) = gateway.sends_logs(&world).await;
    let mut evidence = gateway.evidence(&challenge);
    evidence.ima.as_mut().unwrap().packed = bomb(MAX_INLINE_IMA).try_into().unwrap();
    gateway.says(&world, Up::Evidence(evidence)).await;
    let challenge = gateway.challenged(&world).await;
    refused(&world, "Evidence", "cannot be unpacked").await;
    gateway.answers(&world, &challenge).await;
}

#[tokio::test]
async fn columns_of_unequal_length_are_refused() {
    // a digest more, and a digest less, than there are lines
    for unequal in
        [|whole: &[u8]| [whole, &[7; 32]].concat(), |whole: &[u8]| whole[..whole.len() - 32].to_vec()]
    {
        let world = quickly().await;
        let (gateway, need) = needed(&world).await;
        let blob = &gateway.part(&need)[0];
        gateway.says(&world, repacked(blob, unequal(blob.part.as_slice()))).await;
        refused(&world, "Blob", "cannot be unpacked").await;
        still_passes(gateway, &world).await;
    }
}

#[tokio::test]
async fn lines_from_beyond_what_was_asked_for_are_refused() {
    let world = quickly().await;
    let (mut gateway, need) = needed(&world).await;
    let mut blob = gateway.part(&need)[0].clone();
    blob.offset = 1 << 40;
    gateway.says(&world, Up::Blob(blob)).await;
    refused(&world, "Blob", "not the part that comes next").await;
    let (_, challenge) = gateway.sends_logs(&world).await;
    let mut evidence = gateway.evidence(&challenge);
    evidence.ima.as_mut().unwrap().offset = 1 << 40;
    gateway.says(&world, Up::Evidence(evidence)).await;
    refused(&world, "Evidence", "another offset").await;
    let again = gateway.challenged(&world).await;
    gateway.answers(&world, &again).await;
}

#[tokio::test]
async fn a_uefi_log_without_its_digest_is_refused_and_kept_for_nobody() {
    let world = quickly().await;
    let gateway = Gateway { ima: None, ..Gateway::new() };
    gateway.arrives(&world).await;
    let need = gateway.needed(&world).await;
    let mut other = bytes("device-secure/binary_bios_measurements");
    let last = other.len() - 1;
    other[last] ^= 1;
    let packed = pack_uefi(&other, None);
    let blob = gateway.part(&need)[0].clone();
    let blob = Blob { total: Some(packed.len() as u32), part: packed.try_into().unwrap(), ..blob };
    gateway.says(&world, Up::Blob(blob)).await;
    world.later(&gateway.device.id).await;
    refused(&world, "Blob", "digest").await;
    // it says Ready again and is asked for its log again
    gateway.says_ready(&world).await;
    let (needs, challenge) = gateway.sends_logs(&world).await;
    assert_eq!(needs.iter().map(|need| need.log).collect::<Vec<_>>(), [LogKind::Uefi]);
    let mut gateway = gateway;
    gateway.answers(&world, &challenge).await;
}

#[tokio::test]
async fn a_reference_that_the_bridge_does_not_have_is_done_without() {
    let (world, keylime) = Policies::world(&[]).await;
    let mut gateway = Gateway { reference: Some(reference()), ..Gateway::new() };
    gateway.arrives(&world).await;
    let need = gateway.needed(&world).await;
    assert!(!need.reference);
    for blob in gateway.part(&need) {
        gateway.says(&world, Up::Blob(blob)).await;
    }
    let (needs, challenge) = gateway.sends_logs(&world).await;
    assert!(needs.iter().all(|need| !need.reference) && !challenge.reference);
    gateway.answers(&world, &challenge).await;
    assert_eq!(keylime.log("ima_log").into_bytes(), bytes("device-secure/ascii_runtime_measurements"));
    assert_eq!(world.snapshot().await.refused, []);
}

#[tokio::test]
async fn lines_packed_with_another_reference_than_the_named_one_are_refused() {
    let world = quickly().await;
    let (gateway, need) = needed(&world).await;
    let blob = &gateway.part(&need)[0];
    let lines = bytes("device-secure/ascii_runtime_measurements");
    let lines: Vec<&[u8]> = lines.split_inclusive(|byte| *byte == b'\n').take(200).collect();
    gateway.says(&world, repacked(blob, pack_ima(&lines.concat(), Some(&reference())))).await;
    refused(&world, "Blob", "cannot be unpacked").await;
    still_passes(gateway, &world).await;
}

#[tokio::test]
async fn a_reference_that_both_have_saves_nearly_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.ref");
    let mut builder = ReferenceBuilder::new();
    builder.ima_log(&bytes("device-secure/ascii_runtime_measurements"));
    builder.uefi_log(&bytes("device-secure/binary_bios_measurements"));
    std::fs::write(&file, builder.build().unwrap()).unwrap();
    let (world, keylime) = Policies::world(&[&format!("references=[\"{}\"]", file.display())]).await;
    let mut gateway = Gateway { reference: Some(reference()), ..Gateway::new() };
    gateway.arrives(&world).await;
    let mut sent = 0;
    let challenge = loop {
        match gateway.asked(&world).await {
            Asked::Challenge(challenge) => break challenge,
            Asked::Need(need) => {
                assert!(need.reference);
                for blob in gateway.part(&need) {
                    sent += blob.part.as_slice().len();
                    gateway.says(&world, Up::Blob(blob)).await;
                }
            }
        }
    };
    assert!(challenge.reference);
    gateway.answers(&world, &challenge).await;
    assert!(sent < 4000, "{sent} bytes for a UEFI log of 14 kB and 376 IMA lines");
    assert_eq!(keylime.log("ima_log").into_bytes(), bytes("device-secure/ascii_runtime_measurements"));
    assert_eq!(world.snapshot().await.refused, []);
}
