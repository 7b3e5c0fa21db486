//! A fleet for tests: devices by hand-made messages, Keylime by a script, the broker by two queues

use crate::configured::Configured;
use crate::fixtures::{Quote, TestAk, bytes, certify, mask};
use crate::scripted::{Play, Scripted, Seen, answer};
use keylime_mqtt_bridge::fleet::{Fleet, Inbox, Outbox, Snapshot, SnapshotRequest, Unsent};
use keylime_mqtt_broker_config::LinkEvent;
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::Delivery;
use keylime_mqtt_schemas::messages::{
    self, AttestationResult, BootMarker, Evidence, LaterReason, Nonce, PcrMask, PcrValues, Proof, Question,
    Signed, Up, Verdict,
};
use keylime_mqtt_schemas::statement::{StatedBoot, boot_statement};
use keylime_mqtt_schemas::topics::{Topic, Topics};
use keylime_mqtt_schemas::wire::{pack_up, unpack_down};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What never comes ends a test
pub const PATIENCE: Duration = Duration::from_secs(20);
const PCR: u32 = 1 << 23;

/// Opens sessions, asks for PCR 23, and passes whatever it gets
pub fn keylime(request: &Seen, count: &AtomicU64) -> Option<Play> {
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

pub fn challenge() -> String {
    r#"{"data":{"type":"attestation","attributes":{"stage":"awaiting_evidence","evidence_requested":[{"evidence_class":
    "certification","evidence_type":"tpm_quote","chosen_parameters":{"challenge":"R5MlezMQGegZ962rHYassA==",
    "signature_scheme":"rsassa","hash_algorithm":"sha256","selected_subjects":{"sha256":[23]}}}],
    "capabilities_received_at":"2026-11-23T20:43:25+00:00","challenges_expire_at":"2026-11-23T21:13:25+00:00"}}}"#
        .to_owned()
}

/// Topic and payload
type Message = (String, Vec<u8>);
/// Topics for which the queue to the broker has no room, and how often yet
type NoRoom = Arc<Mutex<HashMap<String, u32>>>;

#[derive(Clone)]
struct Published(mpsc::UnboundedSender<Message>, NoRoom);

impl Outbox for Published {
    fn publish(&self, topic: &str, payload: Vec<u8>, _: Delivery, _retain: bool) -> Result<(), Unsent> {
        if let Some(times) = self.1.lock().unwrap().get_mut(topic).filter(|times| **times > 0) {
            *times -= 1;
            return Err(Unsent::Full);
        }
        self.0.send((topic.to_owned(), payload)).map_err(|_| Unsent::Full)
    }
}

struct Heard(mpsc::Receiver<LinkEvent>);

impl Inbox for Heard {
    async fn next(&mut self) -> Option<LinkEvent> {
        self.0.recv().await
    }
}

pub struct World {
    pub keylime: Arc<Scripted>,
    pub events: mpsc::Sender<LinkEvent>,
    requests: mpsc::Sender<SnapshotRequest>,
    published: Mutex<(mpsc::UnboundedReceiver<Message>, VecDeque<Message>)>,
    no_room: NoRoom,
    pub topics: Topics,
    pub configured: Arc<Configured>,
    overrides: Vec<String>,
    fleet: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.fleet.abort();
    }
}

impl World {
    pub async fn new(
        overrides: &[&str],
        script: impl Fn(&Seen) -> Option<Play> + Send + Sync + 'static,
    ) -> Self {
        let keylime = Arc::new(Scripted::answering(script).await);
        let configured = Arc::new(Configured::at(&keylime));
        Self::started(keylime, configured, overrides.iter().map(|text| (*text).to_owned()).collect())
    }

    /// Another process with the same files and the same Keylime
    pub fn next_bridge(&self) -> Self {
        Self::started(Arc::clone(&self.keylime), Arc::clone(&self.configured), self.overrides.clone())
    }

    fn started(keylime: Arc<Scripted>, configured: Arc<Configured>, overrides: Vec<String>) -> Self {
        let set: Vec<&str> = overrides.iter().map(String::as_str).collect();
        let checked = configured.check(&set).unwrap();
        let (publish, published) = mpsc::unbounded_channel();
        let (events, incoming) = mpsc::channel(4096);
        let mut incoming = Heard(incoming);
        let (requests, mut asked) = mpsc::channel(1);
        let topics = checked.topics.clone();
        let no_room = NoRoom::default();
        let mut fleet = Fleet::new(checked, Published(publish, Arc::clone(&no_room)));
        let fleet = tokio::spawn(async move {
            fleet.run(&mut incoming, &mut asked, std::future::pending()).await;
        });
        let published = Mutex::new((published, VecDeque::new()));
        Self { keylime, events, requests, published, no_room, topics, configured, overrides, fleet }
    }

    pub async fn passing() -> Self {
        let count = AtomicU64::new(0);
        Self::new(&[], move |request| keylime(request, &count)).await
    }

    /// The next so many publications to this topic find the queue full
    pub fn has_no_room(&self, topic: String, times: u32) {
        self.no_room.lock().unwrap().insert(topic, times);
    }

    /// How many of them are to come yet
    pub fn no_room_left(&self, topic: &str) -> u32 {
        self.no_room.lock().unwrap().get(topic).copied().unwrap_or_default()
    }

    pub async fn message(&self, topic: &str, payload: Vec<u8>) {
        let event = LinkEvent::Message { topic: topic.to_owned(), payload, retain: false };
        self.events.send(event).await.unwrap();
    }

    pub async fn says(&self, id: &AgentId, up: &Up) {
        for payload in pack_up(up, 1, 15_000).unwrap() {
            self.message(&self.topics.evidence(id, None), payload).await;
        }
    }

    /// The next publication that fits; others are kept for later
    pub async fn next<T>(&self, what: &str, mut fits: impl FnMut(&Topic, &[u8]) -> Option<T>) -> T {
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

    pub async fn question<T>(&self, id: &AgentId, what: &str, fits: impl Fn(Question) -> Option<T>) -> T {
        self.next(what, |topic, payload| match topic {
            Topic::Challenge(of) if of == id => fits(unpack_down(payload).unwrap().question),
            _ => None,
        })
        .await
    }

    /// The device is told to come again, and why
    pub async fn later(&self, id: &AgentId) -> LaterReason {
        let reason = self.question(id, "Later", |question| match question {
            Question::Later(later) => Some(later.reason),
            _ => None,
        });
        reason.await
    }

    pub async fn result(&self, id: &AgentId, verdict: Verdict) -> AttestationResult {
        self.next(&format!("{verdict:?} of {id}"), |topic, payload| match topic {
            Topic::Result(of) if of == id => {
                let result: AttestationResult = serde_json::from_slice(payload).unwrap();
                (result.verdict == verdict).then_some(result)
            }
            _ => None,
        })
        .await
    }

    pub async fn snapshot(&self) -> Snapshot {
        let (request, snapshot) = oneshot::channel();
        self.requests.send(request).await.unwrap();
        tokio::time::timeout(PATIENCE, snapshot).await.unwrap().unwrap()
    }

    /// Waits until something of this kind was refused for this reason
    pub async fn refused(&self, kind: &str, why: &str) {
        let mut last = Vec::new();
        let wait = async {
            while !last
                .iter()
                .any(|(of, reason, _): &(String, String, u64)| of == kind && reason.contains(why))
            {
                last = self.snapshot().await.refused;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(seen, "{kind}, {why}: {last:?}");
    }

    pub fn requests_like(&self, start: &str) -> usize {
        self.keylime.seen().iter().filter(|seen| seen.line.starts_with(start)).count()
    }
}

/// A device that answers what it is asked
pub struct Device {
    pub id: AgentId,
    pub ak: TestAk,
}

impl Device {
    pub fn new(id: &str) -> Self {
        Self { id: id.parse().unwrap(), ak: TestAk::new() }
    }

    pub fn signed(&self, attest: Vec<u8>) -> Signed {
        let signature = self.ak.sign(&attest).try_into().unwrap();
        Signed { attest: attest.try_into().unwrap(), signature }
    }

    pub fn ready(&self) -> Up {
        let boot = BootMarker::from([7; 16]);
        let (pcrs, sleep, reference) = (PcrMask::ALL, None, None);
        let boot_time = 1_795_000_000;
        let stated = StatedBoot { boot, boot_time, uefi: None, ima_sha256: false, pcrs, sleep, reference };
        let said = boot_statement(&self.id, &stated);
        let quote = Quote { nonce: said.as_bytes(), mask: 0, digest: &[], safe: 1, kind: 0x8018 };
        Up::Ready(stated.ready(self.ak.tpm2b().try_into().unwrap(), self.signed(quote.marshal())))
    }

    pub fn proof(&self, nonce: &Nonce) -> Up {
        let signed = self.signed(certify(nonce.as_bytes(), &self.ak));
        Up::Proof(Proof { tag: nonce.tag(), signed })
    }

    pub fn evidence(&self, nonce: &Nonce, value: u8) -> Up {
        let values = PcrValues::new(mask(PCR), vec![[value; 32]]).unwrap();
        let digest = values.digest();
        let quote =
            Quote { nonce: nonce.as_bytes(), mask: PCR, digest: digest.as_bytes(), safe: 1, kind: 0x8018 };
        let quote = messages::Quote::Full(self.signed(quote.marshal()));
        Up::Evidence(Evidence { tag: nonce.tag(), quote, pcrs: Some(values), ima: None })
    }

    pub async fn until_challenged(&self, world: &World) -> Nonce {
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

    pub async fn passes(&self, world: &World) -> AttestationResult {
        let nonce = self.until_challenged(world).await;
        world.says(&self.id, &self.evidence(&nonce, 0)).await;
        world.result(&self.id, Verdict::Pass).await
    }
}
