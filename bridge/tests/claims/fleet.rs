//! Claims about many devices at once: each by hand-made messages, Keylime by a script, the broker by two queues.

use crate::configured::Configured;
use crate::fixtures::{Quote, TestAk, bytes, sized};
use crate::scripted::{Play, Scripted, Seen, answer};
use keylime_mqtt_bridge::fleet::{Fleet, Inbox, Outbox, Snapshot, SnapshotRequest, Unsent};
use keylime_mqtt_broker_config::LinkEvent;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec;
use keylime_mqtt_schemas::messages::{
    AttestationResult, BootMarker, Bounded, Enrol, Evidence, LaterReason, Nonce, PcrMask, Presence, Proof,
    Question, Ready, RefusedReason, Signed, Up, Verdict,
};
use keylime_mqtt_schemas::statement::boot_statement;
use keylime_mqtt_schemas::topics::{Topic, Topics};
use keylime_mqtt_schemas::wire::{pack_up, unpack_down};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What never comes ends a test
const PATIENCE: Duration = Duration::from_secs(20);
const PCR: u32 = 1 << 23;

/// Opens sessions, asks for PCR 23, and passes whatever it gets
fn keylime(request: &Seen, count: &AtomicU64) -> Option<Play> {
    let mut words = request.line.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Some(match (method, parts.as_slice()) {
        ("POST", ["v3.0", "sessions"]) => answer(200, bytes("keylime/session.json")),
        ("PATCH", ["v3.0", "sessions", _]) => answer(200, bytes("keylime/token.json")),
        ("POST", ["v3.0", "agents", id, "attestations"]) => {
            let location = format!("/v3.0/agents/{id}/attestations/{}", count.load(Ordering::SeqCst));
            Play::Answer(201, vec![("Location", location)], challenge().into_bytes())
        }
        ("PATCH", ["v3.0", "agents", _, "attestations", _]) => {
            count.fetch_add(1, Ordering::SeqCst);
            answer(202, r#"{"meta":{"seconds_to_next_attestation":3600}}"#)
        }
        ("GET", ["v2.6", "agents", _]) => {
            let n = count.load(Ordering::SeqCst);
            let verdict = if n == 0 { "PENDING" } else { "PASS" };
            answer(
                200,
                format!(
                    r#"{{"results":{{"attestation_status":"{verdict}","attestation_count":{n},"last_received_quote":{n},"last_successful_attestation":{n}}}}}"#
                ),
            )
        }
        _ => answer(500, ""),
    })
}

fn challenge() -> String {
    r#"{"data":{"type":"attestation","attributes":{"stage":"awaiting_evidence","evidence_requested":[{"evidence_class":
    "certification","evidence_type":"tpm_quote","chosen_parameters":{"challenge":"R5MlezMQGegZ962rHYassA==",
    "signature_scheme":"rsassa","hash_algorithm":"sha256","selected_subjects":{"sha256":[23]}}}],
    "capabilities_received_at":"2026-11-23T20:43:25+00:00","challenges_expire_at":"2026-11-23T21:13:25+00:00"}}}"#
        .to_owned()
}

/// Topic and payload
type Message = (String, Vec<u8>);

#[derive(Clone)]
struct Published(mpsc::UnboundedSender<Message>);

impl Outbox for Published {
    fn publish(&self, topic: &str, payload: Vec<u8>, _retain: bool) -> Result<(), Unsent> {
        self.0.send((topic.to_owned(), payload)).map_err(|_| Unsent::Full)
    }
}

struct Heard(mpsc::Receiver<LinkEvent>);

impl Inbox for Heard {
    async fn next(&mut self) -> Option<LinkEvent> {
        self.0.recv().await
    }
}

struct World {
    keylime: Scripted,
    events: mpsc::Sender<LinkEvent>,
    requests: mpsc::Sender<SnapshotRequest>,
    published: Mutex<(mpsc::UnboundedReceiver<Message>, VecDeque<Message>)>,
    topics: Topics,
    configured: Configured,
    fleet: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.fleet.abort();
    }
}

impl World {
    async fn new(overrides: &[&str], script: impl Fn(&Seen) -> Option<Play> + Send + Sync + 'static) -> Self {
        let keylime = Scripted::answering(script).await;
        let configured = Configured::at(&keylime);
        let checked = configured.check(overrides).unwrap();
        let (publish, published) = mpsc::unbounded_channel();
        let (events, incoming) = mpsc::channel(4096);
        let mut incoming = Heard(incoming);
        let (requests, mut asked) = mpsc::channel(1);
        let topics = checked.topics.clone();
        let mut fleet = Fleet::new(checked, Published(publish));
        let fleet = tokio::spawn(async move {
            fleet.run(&mut incoming, &mut asked, std::future::pending()).await;
        });
        let published = Mutex::new((published, VecDeque::new()));
        Self { keylime, events, requests, published, topics, configured, fleet }
    }

    async fn passing() -> Self {
        let count = AtomicU64::new(0);
        Self::new(&[], move |request| keylime(request, &count)).await
    }

    async fn message(&self, topic: &str, payload: Vec<u8>) {
        let event = LinkEvent::Message { topic: topic.to_owned(), payload, retain: false };
        self.events.send(event).await.unwrap();
    }

    async fn says(&self, id: &AgentId, up: &Up) {
        for payload in pack_up(up, 1, 15_000).unwrap() {
            self.message(&self.topics.evidence(id, None), payload).await;
        }
    }

    /// The next publication that fits; others are kept for later
    async fn next<T>(&self, what: &str, mut fits: impl FnMut(&Topic, &[u8]) -> Option<T>) -> T {
        let wait = std::future::poll_fn(|context| {
            let mut guard = self.published.lock().unwrap();
            let (receiver, kept) = &mut *guard;
            while let std::task::Poll::Ready(Some(one)) = receiver.poll_recv(context) {
                kept.push_back(one);
            }
            let found = kept.iter().enumerate().find_map(|(n, (topic, payload))| {
                let topic = self.topics.parse(topic).unwrap();
                fits(&topic, payload).map(|found| (n, found))
            });
            match found {
                Some((n, found)) => {
                    kept.remove(n);
                    std::task::Poll::Ready(found)
                }
                None => std::task::Poll::Pending,
            }
        });
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} never came"))
    }

    async fn question<T>(&self, id: &AgentId, what: &str, fits: impl Fn(Question) -> Option<T>) -> T {
        self.next(what, |topic, payload| match topic {
            Topic::Challenge(of) if of == id => fits(unpack_down(payload).unwrap().question),
            _ => None,
        })
        .await
    }

    async fn result(&self, id: &AgentId, verdict: Verdict) -> AttestationResult {
        self.next(&format!("{verdict:?} of {id}"), |topic, payload| match topic {
            Topic::Result(of) if of == id => {
                let result: AttestationResult = serde_json::from_slice(payload).unwrap();
                (result.verdict == verdict).then_some(result)
            }
            _ => None,
        })
        .await
    }

    async fn snapshot(&self) -> Snapshot {
        let (request, snapshot) = oneshot::channel();
        self.requests.send(request).await.unwrap();
        tokio::time::timeout(PATIENCE, snapshot).await.unwrap().unwrap()
    }

    fn requests_like(&self, start: &str) -> usize {
        self.keylime.seen().iter().filter(|seen| seen.line.starts_with(start)).count()
    }
}

/// A device that answers what it is asked
struct Device {
    id: AgentId,
    ak: TestAk,
}

impl Device {
    fn new(id: &str) -> Self {
        Self { id: id.parse().unwrap(), ak: TestAk::new() }
    }

    fn signed(&self, attest: Vec<u8>) -> Signed {
        let signature = self.ak.sign(&attest).try_into().unwrap();
        Signed { attest: attest.try_into().unwrap(), signature }
    }

    fn ready(&self) -> Up {
        let boot = BootMarker::from([7; 16]);
        let said = boot_statement(&self.id, &boot, 1_795_000_000);
        let quote = Quote { nonce: said.as_bytes(), mask: 0, digest: &[], safe: 1, kind: 0x8018 };
        Up::Ready(Ready {
            boot,
            boot_time: 1_795_000_000,
            pcrs: PcrMask::ALL,
            ak_public: self.ak.tpm2b().try_into().unwrap(),
            statement: self.signed(quote.marshal()),
            ima_entries: None,
            uefi: None,
            ticket: None,
            sleep: None,
        })
    }

    fn proof(&self, nonce: &Nonce) -> Up {
        let mut attest =
            Quote { nonce: nonce.as_bytes(), mask: 0, digest: &[], safe: 1, kind: 0x8017 }.marshal();
        // in place of the quote: name and qualified name of the certified key
        attest.truncate(attest.len() - 12);
        sized(&mut attest, self.ak.public().name());
        sized(&mut attest, &[0, 11]);
        Up::Proof(Proof { tag: nonce.tag(), signed: self.signed(attest) })
    }

    fn evidence(&self, nonce: &Nonce, value: u8) -> Up {
        use sha2::Digest as _;
        let values = vec![value; 32];
        let digest = sha2::Sha256::digest(&values);
        let quote = Quote { nonce: nonce.as_bytes(), mask: PCR, digest: &digest, safe: 1, kind: 0x8018 };
        let quote = self.signed(quote.marshal());
        let pcr_values = values.try_into().unwrap();
        Up::Evidence(Evidence { tag: nonce.tag(), quote, pcr_values, ima: None, uefi: None })
    }

    async fn until_challenged(&self, world: &World) -> Nonce {
        world.says(&self.id, &self.ready()).await;
        let nonce = world.question(&self.id, "Prove", |question| match question {
            Question::Prove(prove) => Some(prove.nonce),
            _ => None,
        });
        let nonce = nonce.await;
        world.says(&self.id, &self.proof(&nonce)).await;
        let nonce = world.question(&self.id, "Challenge", |question| match question {
            Question::Challenge(challenge) => Some(challenge.nonce),
            _ => None,
        });
        nonce.await
    }

    async fn passes(&self, world: &World) -> AttestationResult {
        let nonce = self.until_challenged(world).await;
        world.says(&self.id, &self.evidence(&nonce, 0)).await;
        world.result(&self.id, Verdict::Pass).await
    }
}

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
    let mut attest = evidence.quote.attest.into_vec();
    let last = attest.len() - 1;
    attest[last] ^= 1;
    evidence.quote.attest = attest.try_into().unwrap();
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
    let id: AgentId = "gateway-1".parse().unwrap();
    let enrol = |certificate: Option<Vec<u8>>| {
        let certificate = certificate.map(|der| Bounded::try_from(der).unwrap());
        let ek_public = bytes("device-secure/ek.pub").try_into().unwrap();
        let ak_public = TestAk::new().tpm2b().try_into().unwrap();
        Up::Enrol(Enrol { ek_public, ak_public, ek_certificate: certificate })
    };
    for (certificate, expected) in [
        (None, RefusedReason::NoCertificate),
        (Some(bytes("device-secure/ek_rsa.der")), RefusedReason::NotAdmitted),
        (Some(vec![1, 2, 3]), RefusedReason::Malformed),
    ] {
        world.says(&id, &enrol(certificate)).await;
        let reason = world.question(&id, "Refused", |question| match question {
            Question::Refused(refused) => Some(refused.reason),
            _ => None,
        });
        assert_eq!(reason.await, expected);
    }
    assert_eq!(world.requests_like("POST /v2.6"), 0);
    let waiting = world.snapshot().await.waiting;
    assert_eq!(waiting[0].id, "gateway-1");
    assert!(waiting[0].reason.contains("cannot be read"), "{waiting:?}");
}

#[tokio::test]
async fn a_device_that_shows_up_at_a_bridge_without_memory_is_asked_to_speak() {
    let world = World::passing().await;
    let device = Device::new("gateway-1");
    let present = codec::encode(&Presence { online: true }).unwrap();
    world.message(&world.topics.presence(&device.id), present).await;
    let reason = world.question(&device.id, "Later", |question| match question {
        Question::Later(later) => Some(later.reason),
        _ => None,
    });
    assert_eq!(reason.await, LaterReason::Again);
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
    // another process with the same key file and the same verifier
    let configured = &first.configured;
    let checked = configured.check(&[]).unwrap();
    let (publish, published) = mpsc::unbounded_channel();
    let (events, incoming) = mpsc::channel(16);
    let mut incoming = Heard(incoming);
    let (requests, mut asked) = mpsc::channel(1);
    let mut fleet = Fleet::new(checked, Published(publish));
    let fleet = tokio::spawn(async move {
        fleet.run(&mut incoming, &mut asked, std::future::pending()).await;
    });
    let sessions = first.requests_like("POST /v3.0/sessions");
    let second = World {
        keylime: Scripted::answering(|_| None).await,
        events,
        requests,
        published: Mutex::new((published, VecDeque::new())),
        topics: Topics::default(),
        configured: Configured::at(&first.keylime),
        fleet,
    };
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
