//! Claims about what the fleet bounds for all devices together: what is held, what waits for the broker, what registers.

use crate::fixtures::{TestAk, ima_line};
use crate::logs::{Gateway, Policies};
use crate::scripted::Seen;
use crate::world::{Device, PATIENCE, World, keylime};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::fragment::{MAX_PAYLOAD, split};
use keylime_mqtt_schemas::messages::{Enrol, IMA_PCR, LaterReason, Question, Up, Verdict};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// The least that may be configured
const MOST_HELD: usize = 1024 * 1024;
const HELD: &str = "limits.max_held_bytes=1048576";
/// Lines asked for at once
const BATCH: usize = 1024;

/// A device whose log of so many batches has about `bytes`
fn measuring(id: &str, batches: usize, bytes: usize) -> Gateway {
    let mut gateway = Gateway { device: Device::new(id), uefi: None, ima: Some(vec![]), ..Gateway::new() };
    gateway.extends(IMA_PCR, [0; 32]);
    let lines = batches * BATCH;
    // all that is in a line but the name
    let name = "x".repeat(bytes / lines - ima_line("").len() - 5);
    for n in 0..lines {
        gateway.measures(&ima_line(&format!("{name}{n:05}")));
    }
    gateway
}

/// Waits until so much is held, to the byte
async fn held(world: &World, bytes: usize) {
    let mut last = 0;
    let wait = async {
        while last != bytes {
            last = world.snapshot().await.held;
        }
    };
    let came = tokio::time::timeout(PATIENCE, wait).await.is_ok();
    assert!(came, "{last} held, not {bytes}");
}

#[tokio::test]
async fn logs_for_which_there_is_no_room_at_once_are_gathered_one_after_the_other() {
    let world = Policies::fleet(&[HELD]).await;
    let mut first = measuring("gateway-1", 4, 800_000);
    let mut second = measuring("gateway-2", 4, 700_000);
    first.arrives(&world).await;
    for _ in 0..3 {
        let need = first.needed(&world).await;
        for blob in first.part(&need) {
            first.says(&world, Up::Blob(blob)).await;
        }
    }
    let log = first.ima.as_ref().unwrap().len();
    held(&world, log / 4 * 3).await;
    second.arrives(&world).await;
    let (_, challenge) = second.sends_logs(&world).await;
    // who was not heard for longest
    world.refused("log", "no room for all logs at once").await;
    assert_eq!(world.later(&first.device.id).await, LaterReason::Busy);
    held(&world, second.ima.as_ref().unwrap().len()).await;
    second.answers(&world, &challenge).await;
    first.needed(&world).await;
    first.says_ready(&world).await;
    let (needs, challenge) = first.sends_logs(&world).await;
    assert_eq!(needs.len(), 4, "from the first line");
    first.answers(&world, &challenge).await;
}

#[tokio::test]
async fn fragments_for_which_logs_leave_no_room_are_refused_and_the_logs_stay() {
    let world = Policies::fleet(&[HELD]).await;
    let mut gateway = measuring("gateway-1", 3, MOST_HELD - 40 * 1024);
    gateway.arrives(&world).await;
    let (_, challenge) = gateway.sends_logs(&world).await;
    let log = gateway.ima.as_ref().unwrap().len();
    assert!((MOST_HELD - 60 * 1024..MOST_HELD).contains(&log), "{log}");
    held(&world, log).await;
    let stranger: AgentId = "stranger".parse().unwrap();
    let evidence = world.topics.evidence(&stranger, None);
    let refusals = async || {
        let refused = world.snapshot().await.refused;
        let room = |(_, why, _): &&(String, String, u64)| why == "no room for fragments";
        refused.iter().find(room).map_or(0, |(.., times)| *times)
    };
    // logs are counted once a second: what is let in before that is completed, and held no more
    let wait = async {
        let mut message = 0;
        while refusals().await == 0 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            message += 1;
            for part in split(vec![0; 200 * 1024], message, MAX_PAYLOAD).unwrap() {
                world.message(&evidence, part).await;
            }
            world.snapshot().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    held(&world, log).await;
    gateway.answers(&world, &challenge).await;
}

#[tokio::test]
async fn fragments_of_all_devices_never_have_more_than_the_bound() {
    let count = AtomicU64::new(0);
    let world = World::new(&[HELD], move |request| keylime(request, &count)).await;
    let mut peak = 0;
    for n in 0..12 {
        let id: AgentId = format!("unfinished-{n}").parse().unwrap();
        let mut parts = split(vec![0; 400 * 1024], n, MAX_PAYLOAD).unwrap();
        parts.pop();
        for part in parts {
            world.message(&world.topics.evidence(&id, None), part).await;
            peak = peak.max(world.snapshot().await.held);
        }
    }
    assert!((MOST_HELD / 2..=MOST_HELD).contains(&peak), "{peak}");
    world.refused("message", "had to make room").await;
    Device::new("gateway-1").passes(&world).await;
}

#[tokio::test]
async fn what_the_queue_to_the_broker_has_no_room_for_comes_later() {
    let count = AtomicU64::new(0);
    let script = move |request: &Seen| keylime(request, &count);
    let world = World::new(&["exchange.repeat_after_seconds=1"], script).await;
    let device = Device::new("gateway-1");
    let (questions, results) = (world.topics.challenge(&device.id), world.topics.result(&device.id));
    // the question for a proof; nobody but the bridge itself asks again
    world.has_no_room(questions.clone(), 2);
    let nonce = device.until_challenged(&world).await;
    assert_eq!(world.no_room_left(&questions), 0);
    world.refused("question", "the queue to the broker is full").await;
    world.has_no_room(results.clone(), 3);
    world.says(&device.id, &device.evidence(&nonce, 0)).await;
    let result = world.result(&device.id, Verdict::Pass).await;
    assert_eq!((result.attestation_count, world.no_room_left(&results)), (Some(1), 0));
    assert_eq!(world.requests_like("PATCH /v3.0/agents"), 1);
}

#[tokio::test]
async fn a_device_that_registers_with_ever_other_certificates_is_judged_once_in_five_seconds() {
    let world = World::passing().await;
    let start = Instant::now();
    let enrol = |number: u32| {
        let certificate = [&[0x30; 1000][..], &number.to_be_bytes()].concat();
        Up::Enrol(Enrol {
            ek_public: vec![7; 300].try_into().unwrap(),
            ak_public: TestAk::new().tpm2b().try_into().unwrap(),
            ek_certificate: Some(certificate.try_into().unwrap()),
        })
    };
    let answered = async |id: &AgentId| {
        let answer = world.question(id, "an answer", |question| match question {
            Question::Refused(_) => Some(true),
            Question::Later(later) => Some(later.reason != LaterReason::Busy),
            _ => None,
        });
        answer.await
    };
    let id = "stranger".parse().unwrap();
    let mut judged = 0;
    for number in 0..100 {
        world.says(&id, &enrol(number)).await;
        judged += u64::from(answered(&id).await);
    }
    let most = start.elapsed().as_secs() / 5 + 1;
    assert!((1..=most).contains(&judged), "{judged} of 100");
    world.refused("Enrol", "sooner than a device may register again").await;
    // and no other waits for it
    let other = "other".parse().unwrap();
    world.says(&other, &enrol(0)).await;
    assert!(answered(&other).await);
}
