//! Claims about many devices at once: each by hand-made messages, Keylime by a script, the broker by two queues.

use crate::fixtures::{EK_HASH, TestAk, bytes};
use crate::scripted::{Play, Seen, answer};
use crate::world::{Device, World, keylime};
use keylime_mqtt_broker_config::LinkEvent;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec;
use keylime_mqtt_schemas::fragment::{MAX_PAYLOAD, split};
use keylime_mqtt_schemas::messages::limits::MAX_PADDING;
use keylime_mqtt_schemas::messages::{
    Blob, BootMarker, Bounded, Enrol, Heard, Hello, HelloTag, LaterReason, LogKind, Presence, Question,
    RefusedReason, Up, Verdict,
};
use keylime_mqtt_schemas::wire::pack_up;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

#[tokio::test]
async fn a_device_that_proves_itself_and_quotes_is_reported_as_keylime_judged_it() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let result = device.passes(&world).await;
    assert_eq!(result.agent_id, device.id);
    assert_eq!(result.attestation_count, Some(1));
    assert!(result.valid_until > result.time);
    let snapshot = world.snapshot().await;
    assert_eq!((snapshot.devices, snapshot.waiting.len()), (1, 0));
    assert_eq!(snapshot.refused, []);
}

#[tokio::test]
async fn evidence_that_another_key_signed_never_reaches_the_verifier() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let nonce = device.until_challenged(&world).await;
    let Up::Evidence(mut evidence) = device.evidence(&nonce, 0) else { panic!() };
    let keylime_mqtt_schemas::messages::Quote::Full(quote) = &mut evidence.quote else { panic!() };
    let mut attest = quote.attest.as_slice().to_vec();
    let last = attest.len() - 1;
    attest[last] ^= 1;
    quote.attest = attest.try_into().unwrap();
    world.says(&device.id, &Up::Evidence(evidence)).await;
    // asked again for the same nonce, and the true answer is taken
    let again = world.question(&device.id, "the same challenge", |question| match question {
        Question::Challenge(challenge) => Some(challenge.nonce),
        _ => None,
    });
    assert!(again.await == nonce);
    assert_eq!(world.requests_like("PATCH /v3.0/agents"), 0);
    world.says(&device.id, &device.evidence(&nonce, 0)).await;
    world.result(&device.id, Verdict::Pass).await;
    let refused = world.snapshot().await.refused;
    assert!(refused.iter().any(|(kind, why, _)| kind == "Evidence" && why.contains("AK")), "{refused:?}");
}

#[tokio::test]
async fn hostile_messages_are_counted_and_change_nothing_for_anybody() {
    let world = World::passing().await;
    let hostile: [&[u8]; 8] = [
        b"",
        b"\xff\xff\xff\xff",
        b"\xa1\x02\x40",
        b"\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f\x9f",
        b"\x84\x01\x05\x02\x41\x00",
        b"\x84\x01\x00\x02\x41\x00",
        b"{\"json\":true}",
        &[0xBB; 2000],
    ];
    for topic in ["keylime/v1/evil/evidence", "keylime/v1/gateway-1/evidence"] {
        for payload in hostile {
            world.message(topic, payload.to_vec()).await;
        }
    }
    for topic in [
        "keylime/v1/a/b/evidence",
        "keylime/v1/../evidence",
        "keylime/v1/+/evidence",
        "$SYS/x",
        "keylime/v1/x/evidence/other",
    ] {
        world.message(topic, vec![1]).await;
    }
    world.message("keylime/v1/gateway-1/presence", vec![0xFF]).await;
    let retained = LinkEvent::Message {
        topic: "keylime/v1/gateway-1/evidence".to_owned(),
        payload: vec![],
        retain: true,
    };
    world.events.send(retained).await.unwrap();
    Device::new("gateway-1").passes(&world).await;
    Device::new("gateway-2").passes(&world).await;
    let refused = world.snapshot().await.refused;
    let count = |kind: &str| refused.iter().filter(|(of, ..)| of == kind).map(|(.., n)| n).sum::<u64>();
    // one of the eight is a fragment that is waited for
    assert_eq!(
        (count("message"), count("topic"), count("presence"), count("evidence")),
        (14, 5, 1, 1),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_device_for_which_keylime_is_silent_delays_no_other() {
    let count = AtomicU64::new(0);
    let script = move |request: &Seen| {
        let of_stuck = String::from_utf8_lossy(&request.body).contains("stuck");
        if of_stuck { Some(Play::Silence) } else { keylime(request, &count) }
    };
    let world = World::new(&["verifier.connections=4"], script).await;
    for n in 0..3 {
        world.says(&format!("stuck-{n}").parse().unwrap(), &Device::new(&format!("stuck-{n}")).ready()).await;
    }
    Device::new("gateway-1").passes(&world).await;
}

#[tokio::test]
async fn a_flood_of_one_device_is_cut_and_others_are_heard() {
    let world = World::passing().await;
    let flooder = Device::new("flooder");
    for _ in 0..1000 {
        world.message(&world.topics.evidence(&flooder.id, None), vec![0xFF; 100]).await;
    }
    Device::new("gateway-1").passes(&world).await;
    let refused = world.snapshot().await.refused;
    assert!(
        refused.iter().any(|(_, why, n)| why.contains("more than a device may send") && *n > 500),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_is_held_of_unfinished_messages_is_bounded_in_total_and_others_are_heard() {
    let count = AtomicU64::new(0);
    let world = World::new(&["limits.max_held_bytes=1048576"], move |request| keylime(request, &count)).await;
    for n in 0..4 {
        let id: AgentId = format!("unfinished-{n}").parse().unwrap();
        let mut parts = split(vec![0; 900 * 1024], n, MAX_PAYLOAD).unwrap();
        parts.pop();
        for part in parts {
            world.message(&world.topics.evidence(&id, None), part).await;
        }
    }
    Device::new("gateway-1").passes(&world).await;
    let refused = world.snapshot().await.refused;
    assert!(refused.iter().any(|(_, why, n)| why.contains("had to make room") && *n > 0), "{refused:?}");
}

#[tokio::test]
async fn the_number_of_devices_is_bounded_and_those_known_are_served() {
    let world = World::new(&["limits.max_devices=2"], {
        let count = AtomicU64::new(0);
        move |request| keylime(request, &count)
    })
    .await;
    let known = Device::new("gateway-1");
    let nonce = known.until_challenged(&world).await;
    for n in 0..50 {
        world.message(&format!("keylime/v1/stranger-{n}/evidence"), vec![0xFF]).await;
    }
    world.says(&known.id, &known.evidence(&nonce, 0)).await;
    world.result(&known.id, Verdict::Pass).await;
    let snapshot = world.snapshot().await;
    assert_eq!(snapshot.devices, 2);
    assert!(snapshot.refused.iter().any(|(kind, ..)| kind == "device"), "{:?}", snapshot.refused);
}

#[tokio::test]
async fn a_tpm_that_is_not_admitted_is_refused_before_the_registrar_hears_of_it() {
    let world = World::passing().await;
    let enrol = |certificate: Option<Vec<u8>>, ak_attributes: u32| {
        let certificate = certificate.map(|der| Bounded::try_from(der).unwrap());
        let ek_public = bytes("device-secure/ek.pub").try_into().unwrap();
        let ak_public = TestAk::new().tpm2b_with(ak_attributes, 0x0014, 0x000B).try_into().unwrap();
        Up::Enrol(Enrol { ek_public, ak_public, ek_certificate: certificate })
    };
    let genuine = || Some(bytes("device-secure/ek_rsa.der"));
    let (fit, unrestricted) = (TestAk::ATTRIBUTES, TestAk::ATTRIBUTES & !(1 << 16));
    for (id, certificate, ak, expected) in [
        ("gateway-1", None, fit, RefusedReason::NoCertificate),
        ("gateway-2", genuine(), fit, RefusedReason::NotAdmitted),
        ("gateway-3", Some(vec![1, 2, 3]), fit, RefusedReason::Malformed),
        (EK_HASH, genuine(), unrestricted, RefusedReason::Malformed),
    ] {
        let id: AgentId = id.parse().unwrap();
        world.says(&id, &enrol(certificate, ak)).await;
        let reason = world.question(&id, "Refused", |question| match question {
            Question::Refused(refused) => Some(refused.reason),
            _ => None,
        });
        assert_eq!(reason.await, expected);
    }
    assert_eq!(world.requests_like("POST /v2.6"), 0);
    let waiting = world.snapshot().await.waiting;
    let of = |id: &str| waiting.iter().find(|device| device.id == id).unwrap();
    assert!(of("gateway-3").reason.contains("cannot be read"), "{waiting:?}");
    assert!(of(EK_HASH).remedy.as_ref().unwrap().contains("restricted"), "{waiting:?}");
    // the AK was all that was wrong with the last
    let next = world.next_bridge();
    next.says(&EK_HASH.parse().unwrap(), &enrol(genuine(), fit)).await;
    crate::eventually(|| world.requests_like("POST /v2.6") == 1).await;
}

#[tokio::test]
async fn a_device_that_shows_up_at_a_bridge_without_memory_is_asked_to_speak() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let present = codec::encode(&Presence { online: true }).unwrap();
    world.message(&world.topics.presence(&device.id), present).await;
    assert_eq!(world.later(&device.id).await, LaterReason::Again);
    device.passes(&world).await;
}

#[tokio::test]
async fn a_bridge_that_restarts_needs_no_new_session_for_a_device_with_a_ticket() {
    let count = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&count);
    let first = World::new(&[], move |request| keylime(request, &counting)).await;
    let device = Device::new("gateway-1");
    first.says(&device.id, &device.ready()).await;
    let nonce = first.question(&device.id, "Prove", |question| match question {
        Question::Prove(prove) => Some(prove.nonce),
        _ => None,
    });
    first.says(&device.id, &device.proof(&nonce.await)).await;
    let ticket = first.question(&device.id, "Challenge with a ticket", |question| match question {
        Question::Challenge(challenge) => challenge.ticket,
        _ => None,
    });
    let ticket = ticket.await;
    let sessions = first.requests_like("POST /v3.0/sessions");
    let second = first.next_bridge();
    let Up::Ready(mut ready) = device.ready() else { panic!() };
    ready.ticket = Some(ticket);
    second.says(&device.id, &Up::Ready(ready)).await;
    let nonce = second.question(&device.id, "Challenge", |question| match question {
        Question::Challenge(challenge) => Some(challenge.nonce),
        Question::Prove(_) => panic!("a session in spite of the ticket"),
        _ => None,
    });
    let nonce = nonce.await;
    second.says(&device.id, &device.evidence(&nonce, 0)).await;
    second.result(&device.id, Verdict::Pass).await;
    assert_eq!(first.requests_like("POST /v3.0/sessions"), sessions);
}

#[tokio::test]
async fn a_hello_is_answered_for_a_device_never_heard_of_and_a_flood_of_them_is_not() {
    let world = World::passing().await;
    let id: AgentId = "gateway-1".parse().unwrap();
    let hello = |tag: u8, size: usize| {
        let padding = Some(Bounded::try_from(vec![0; size]).unwrap());
        Up::Hello(Hello { tag: HelloTag::from([tag; 8]), padding })
    };
    let heard = |question| match question {
        Question::Heard(heard) => Some(heard),
        _ => None,
    };
    // one payload, as large as payloads may be
    let [payload] = pack_up(&hello(1, MAX_PADDING - 32), 0, MAX_PAYLOAD).unwrap().try_into().unwrap();
    world.message("keylime/v1/gateway-1/evidence", payload).await;
    let answer = world.question(&id, "an answer", heard).await;
    assert_eq!(answer, Heard { tag: HelloTag::from([1; 8]), told: None });
    for tag in 2..=40 {
        world.says(&id, &hello(tag, 0)).await;
    }
    world.refused("Hello", "more than a device may ask").await;
    let answered = world.question(&id, "the last answer", |question| {
        heard(question).filter(|heard| heard.tag == HelloTag::from([20; 8]))
    });
    answered.await;
    // another device is not the worse for it
    let other: AgentId = "gateway-2".parse().unwrap();
    world.says(&other, &hello(1, 0)).await;
    world.question(&other, "an answer", heard).await;
    assert_eq!(world.requests_like(""), 0, "Keylime was asked nothing");
}

#[tokio::test]
async fn more_devices_registering_at_once_than_the_bridge_lets_are_told_to_come_again_and_others_are_served()
{
    let world = World::passing().await;
    let start = Instant::now();
    let enrol = Up::Enrol(Enrol {
        ek_public: vec![7; 300].try_into().unwrap(),
        ak_public: TestAk::new().tpm2b().try_into().unwrap(),
        ek_certificate: Some(vec![0x30; 4000].try_into().unwrap()),
    });
    let ids: Vec<AgentId> = (0..400).map(|number| format!("stranger-{number}").parse().unwrap()).collect();
    for id in &ids {
        world.says(id, &enrol).await;
    }
    let (mut refused, mut busy) = (0, 0);
    for id in &ids {
        let answer = world.question(id, "an answer", |question| match question {
            Question::Refused(_) => Some(true),
            Question::Later(later) => Some(later.reason != LaterReason::Busy),
            _ => None,
        });
        if answer.await {
            refused += 1;
        } else {
            busy += 1;
        }
    }
    // two hundred at once, and twenty more each second
    let most = 200 + 20 * (start.elapsed().as_secs() + 1);
    assert!((200..=most).contains(&refused) && busy > 0, "{refused} decided, {busy} told to come again");
    assert_eq!(world.requests_like("POST /v2.6"), 0);
    Device::new("gateway-1").passes(&world).await;
}

#[tokio::test]
async fn a_proof_that_does_not_hold_under_the_ak_of_ready_never_reaches_the_verifier() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    world.says(&device.id, &device.ready()).await;
    let nonce = world
        .question(&device.id, "Prove", |question| match question {
            Question::Prove(prove) => Some(prove.nonce),
            _ => None,
        })
        .await;
    let Up::Proof(mut proof) = device.proof(&nonce) else { panic!() };
    let mut attest = proof.signed.attest.as_slice().to_vec();
    attest[30] ^= 1;
    proof.signed.attest = attest.try_into().unwrap();
    world.says(&device.id, &Up::Proof(proof)).await;
    while world.snapshot().await.refused.is_empty() {
        tokio::task::yield_now().await;
    }
    world.says(&device.id, &device.proof(&nonce)).await;
    world
        .question(&device.id, "a challenge", |question| match question {
            Question::Challenge(_) => Some(()),
            _ => None,
        })
        .await;
    assert_eq!(world.requests_like("PATCH /v3.0/sessions"), 1);
    assert_eq!(world.requests_like("POST /v3.0/sessions"), 1);
}

#[tokio::test]
async fn a_device_for_which_keylime_does_not_answer_is_shown_with_that_reason() {
    let world = World::new(&[], |_| Some(answer(500, ""))).await;
    let device = Device::new("gateway-1");
    world.says(&device.id, &device.ready()).await;
    assert_eq!(world.later(&device.id).await, LaterReason::Keylime);
    let waiting = world.snapshot().await.waiting;
    let [only] = &waiting[..] else { panic!("{waiting:?}") };
    assert_eq!(
        (only.id.as_str(), only.reason.as_str()),
        ("gateway-1", LaterReason::Keylime.to_string().as_str())
    );
}

#[tokio::test]
async fn a_device_that_waits_for_its_turn_to_open_a_session_is_shown_with_that_reason() {
    let count = AtomicU64::new(0);
    let world =
        World::new(&["verifier.sessions_per_minute=5"], move |request| keylime(request, &count)).await;
    let mut turned_away = None;
    for n in 0..20 {
        let device = Device::new(&format!("gateway-{n}"));
        if is_busy_for(&world, &device).await {
            turned_away = Some(device);
            break;
        }
    }
    let waiting = world.snapshot().await.waiting;
    let [only] = &waiting[..] else { panic!("{waiting:?}") };
    assert_eq!(only.id, turned_away.unwrap().id.as_str());
    assert_eq!(only.reason, LaterReason::Busy.to_string());
}

#[tokio::test]
async fn a_bridge_that_starts_again_has_no_session_more_than_the_one_before_it() {
    let count = AtomicU64::new(0);
    let world =
        World::new(&["verifier.sessions_per_minute=5"], move |request| keylime(request, &count)).await;
    assert!(!is_busy_for(&world, &Device::new("gateway-1")).await);
    assert!(is_busy_for(&world, &Device::new("gateway-2")).await, "there was one for now");
    let next = world.next_bridge();
    assert!(is_busy_for(&next, &Device::new("gateway-3")).await);
    assert_eq!(world.requests_like("POST /v3.0/sessions"), 1);
}

/// Whether the device is told to come again instead of to prove itself
async fn is_busy_for(bridge: &World, device: &Device) -> bool {
    bridge.says(&device.id, &device.ready()).await;
    let answer = bridge.question(&device.id, "an answer", |question| match question {
        Question::Later(later) => Some(later.reason == LaterReason::Busy),
        Question::Prove(_) => Some(false),
        _ => None,
    });
    answer.await
}

#[tokio::test]
async fn unfinished_messages_of_many_senders_keep_out_no_other() {
    let count = AtomicU64::new(0);
    let world =
        World::new(&["limits.max_held_bytes=16777216"], move |request| keylime(request, &count)).await;
    let device = Device::new("gateway-1");
    let part = vec![7; 60 * 1024].try_into().unwrap();
    let boot = BootMarker::from([7; 16]).tag();
    let blob = Up::Blob(Blob { log: LogKind::Ima, boot, offset: 0, part, total: None });
    // each sends a message of a megabyte but for its end
    let large = vec![0x42; 1_000_000];
    for n in 0..40 {
        let mut parts = split(large.clone(), 1, 110_000).unwrap();
        parts.pop();
        for part in parts {
            world.message(&format!("keylime/v1/hoarder-{n}/evidence"), part).await;
        }
    }
    world.says(&device.id, &blob).await;
    // it was put together and read
    world.refused("Blob", "no log was asked for").await;
    let refused = world.snapshot().await.refused;
    assert!(
        refused.iter().any(|(kind, why, _)| kind == "message" && why.contains("had to make room")),
        "{refused:?}"
    );
}
