//! A device with the recorded logs and a key of the tests', and a Keylime whose policies ask for them

use crate::fixtures::{Quote, bytes, device_pcrs, mask};
use crate::scripted::{Play, Seen, answer};
use crate::world::{Device, World, keylime};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keylime_mqtt_schemas::codec::encode;
use keylime_mqtt_schemas::compact::{Reference, pack_ima, pack_uefi};
use keylime_mqtt_schemas::ima::{ImaState, extend_by, has_sha256_templates};
use keylime_mqtt_schemas::messages::{
    self, Blob, BootMarker, Brief, Challenge, Digest, Evidence, IMA_PCR, ImaSegment, LogKind, Need, Nonce,
    PcrMask, PcrValues, Question, Ready, Statement, UefiLog, Unchanged, Up, Verdict,
};
use keylime_mqtt_schemas::statement::{StatedBoot, StatedLines, boot_statement, evidence_statement};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// PCRs that the recorded quotes cover
const PCRS: u32 = 0x7FFF;
const BOOT_TIME: u64 = 1_795_000_000;

/// What Keylime was asked and given
#[derive(Default)]
pub struct Policies {
    count: AtomicU64,
    lines: AtomicU64,
    /// Evidence as it was submitted, item by item
    pub submitted: Mutex<Vec<Vec<Value>>>,
}

impl Policies {
    /// Asks for all logs that a device offers
    fn answers(&self, request: &Seen) -> Option<Play> {
        let n = self.count.load(Ordering::SeqCst);
        if request.line.starts_with("POST /v3.0/agents/") {
            let offered = request.json()["data"]["attributes"]["evidence_supported"].clone();
            let kinds: Vec<_> =
                offered.as_array()?.iter().map(|item| item["evidence_type"].clone()).collect();
            let path = request.line.split(' ').nth(1)?;
            let body = self.challenge(n, &kinds).to_string();
            return Some(Play::Answer(201, vec![("Location", format!("{path}/{n}"))], body.into_bytes()));
        }
        if request.line.starts_with("PATCH /v3.0/agents/") {
            let items = request.json()["data"]["attributes"]["evidence_collected"].as_array()?.clone();
            let lines: u64 = items.iter().filter_map(|item| item["data"]["entry_count"].as_u64()).sum();
            self.lines.fetch_add(lines, Ordering::SeqCst);
            self.submitted.lock().unwrap().push(items);
            self.count.fetch_add(1, Ordering::SeqCst);
            return Some(answer(202, r#"{"meta":{"seconds_to_next_attestation":1}}"#));
        }
        keylime(request, &self.count)
    }

    fn challenge(&self, n: u64, kinds: &[Value]) -> Value {
        let mut nonce = [7; 16];
        nonce[..8].copy_from_slice(&n.to_be_bytes());
        let pcrs: Vec<u8> = mask(PCRS).iter().collect();
        let mut requested = vec![json!({
            "evidence_class": "certification", "evidence_type": "tpm_quote", "chosen_parameters": {
                "challenge": BASE64.encode(nonce), "signature_scheme": "rsassa", "hash_algorithm": "sha256",
                "selected_subjects": { "sha256": pcrs } }
        })];
        if kinds.contains(&json!("uefi_log")) {
            requested.push(json!({ "evidence_class": "log", "evidence_type": "uefi_log" }));
        }
        if kinds.contains(&json!("ima_log")) {
            requested.push(json!({ "evidence_class": "log", "evidence_type": "ima_log",
                "chosen_parameters": { "starting_offset": self.lines.load(Ordering::SeqCst) } }));
        }
        json!({ "data": { "type": "attestation", "attributes": {
            "stage": "awaiting_evidence", "evidence_requested": requested,
            "capabilities_received_at": "2026-11-23T20:43:25+00:00",
            "challenges_expire_at": "2026-11-23T21:13:25+00:00" } } })
    }

    /// A log of the last submission as Keylime got it
    pub fn log(&self, kind: &str) -> String {
        let submitted = self.submitted.lock().unwrap();
        let item = submitted.last().unwrap().iter().find(|item| item["evidence_type"] == kind).unwrap();
        item["data"]["entries"].as_str().unwrap().to_owned()
    }

    /// The parts of the last submission's quote
    pub fn quote(&self) -> Value {
        self.submitted.lock().unwrap().last().unwrap()[0]["data"].clone()
    }

    /// As [`Self::world`], for several devices
    pub async fn fleet(overrides: &[&str]) -> World {
        let fleet: Mutex<HashMap<String, Self>> = Mutex::default();
        let script = move |request: &Seen| {
            let after = request.line.split("/agents/").nth(1).unwrap_or_default();
            let id = after.split(['/', ' ']).next()?.to_owned();
            fleet.lock().unwrap().entry(id).or_default().answers(request)
        };
        World::new(overrides, script).await
    }

    pub async fn world(overrides: &[&str]) -> (World, Arc<Self>) {
        let policies = Arc::new(Self::default());
        let keylime = Arc::clone(&policies);
        (World::new(overrides, move |request| keylime.answers(request)).await, policies)
    }
}

/// A device as the recorded one
pub struct Gateway {
    pub device: Device,
    pub uefi: Option<Vec<u8>>,
    pub ima: Option<Vec<u8>>,
    pub pcrs: PcrValues,
    pub reference: Option<Arc<Reference>>,
    /// Sent last: what a bridge may hold
    pub said: Option<PcrValues>,
    /// Part size of logs, lines and bytes
    pub part: usize,
}

impl Gateway {
    pub fn new() -> Self {
        Self::recorded("device-secure")
    }

    pub fn recorded(machine: &str) -> Self {
        Self {
            device: Device::new("gateway-1"),
            uefi: Some(bytes(&format!("{machine}/binary_bios_measurements"))),
            ima: Some(bytes(&format!("{machine}/ascii_runtime_measurements"))),
            pcrs: device_pcrs(machine, PCRS),
            reference: None,
            said: None,
            part: 200,
        }
    }

    pub fn boot() -> BootMarker {
        BootMarker::from([7; 16])
    }

    /// A file is measured
    pub fn measures(&mut self, line: &str) {
        let value = *self.pcrs.value(IMA_PCR).unwrap();
        let mut state = ImaState { entries: 0, pcr10: value };
        extend_by(&mut state, line.as_bytes()).unwrap();
        self.extends(IMA_PCR, state.pcr10);
        self.ima.as_mut().unwrap().extend_from_slice(line.as_bytes());
    }

    pub fn extends(&mut self, pcr: u8, value: [u8; 32]) {
        self.pcrs = self.pcrs.overlaid(&PcrValues::new(mask(1 << pcr), vec![value]).unwrap());
    }

    fn lines(&self) -> Vec<&[u8]> {
        self.ima.as_deref().unwrap_or_default().split_inclusive(|byte| *byte == b'\n').collect()
    }

    fn ready(&self) -> Ready {
        let uefi =
            self.uefi.as_ref().map(|log| UefiLog { digest: Digest::of(&[log]), size: log.len() as u32 });
        let ima_sha256 = self.lines().first().is_some_and(|line| has_sha256_templates(line));
        let reference = self.reference.as_ref().map(|reference| reference.digest());
        let (boot, boot_time, pcrs, sleep) = (Self::boot(), BOOT_TIME, PcrMask::ALL, None);
        let stated = StatedBoot { boot, boot_time, uefi, ima_sha256, pcrs, sleep, reference };
        let said = boot_statement(&self.device.id, &stated);
        let quote = Quote { nonce: said.as_bytes(), mask: 0, digest: &[], safe: 1, kind: 0x8018 };
        Ready {
            ima_entries: self.ima.is_some().then(|| self.lines().len() as u64),
            ..stated.ready(self.device.ak.tpm2b().try_into().unwrap(), self.device.signed(quote.marshal()))
        }
    }

    pub fn unchanged(&self) -> Up {
        let ready = self.ready();
        Up::Unchanged(Unchanged { ready: ready.tag(), ima_entries: ready.ima_entries })
    }

    /// The reference, if the question says that the bridge has it
    fn reference(&self, bridge_has_it: bool) -> Option<&Reference> {
        self.reference.as_deref().filter(|_| bridge_has_it)
    }

    pub fn part(&self, need: &Need) -> Vec<Blob> {
        let boot = Self::boot().tag();
        let reference = self.reference(need.reference);
        let (from, upto) = (need.offset as usize, need.upto as usize);
        match need.log {
            LogKind::Uefi => {
                let packed = pack_uefi(self.uefi.as_ref().unwrap(), reference);
                let total = Some(packed.len() as u32);
                let part = packed[from..upto.min(packed.len())].to_vec().try_into().unwrap();
                vec![Blob { log: need.log, boot, offset: need.offset, part, total }]
            }
            LogKind::Ima => {
                let lines = self.lines();
                let wanted = &lines[from..upto.min(lines.len())];
                let part = |(n, lines): (usize, &[&[u8]])| {
                    let part = pack_ima(&lines.concat(), reference).try_into().unwrap();
                    let offset = (from + n * self.part) as u64;
                    Blob { log: need.log, boot, offset, part, total: None }
                };
                wanted.chunks(self.part).enumerate().map(part).collect()
            }
        }
    }

    /// As little as the challenge allows
    pub fn evidence(&mut self, challenge: &Challenge) -> Evidence {
        let values = self.pcrs.only(challenge.pcrs);
        let digest = values.digest();
        let quote = Quote {
            nonce: challenge.nonce.as_bytes(),
            mask: challenge.pcrs.into(),
            digest: digest.as_bytes(),
            safe: 1,
            kind: 0x8018,
        };
        let signed = self.device.signed(quote.marshal());
        let signature = signed.signature.as_slice()[6..].to_vec().try_into().unwrap();
        let brief = Brief { clock: 377_161, signature, restart_count: None };
        let wanted = challenge.ima_offset.map_or(challenge.pcrs, |_| challenge.pcrs.without(IMA_PCR));
        let old = self.said.take().map(|said| said.only(wanted));
        let held = old.filter(|old| challenge.held == Some(old.tag())).unwrap_or_default();
        let news = values.only(wanted).changed_since(&held);
        self.said = Some(values.clone());
        let (quote, pcrs) = if challenge.full {
            (messages::Quote::Full(signed), Some(values))
        } else {
            (messages::Quote::Brief(brief), Some(news).filter(|news| news.mask().count() > 0))
        };
        let ima = challenge.ima_offset.map(|offset| {
            let lines = self.lines().into_iter().skip(offset as usize).collect::<Vec<_>>().concat();
            let packed = pack_ima(&lines, self.reference(challenge.reference)).try_into().unwrap();
            ImaSegment { offset, packed }
        });
        Evidence { tag: challenge.nonce.tag(), quote, pcrs, ima }
    }

    /// What it sent was this, from this IMA line on
    pub fn statement(&self, nonce: &Nonce, sent: &Evidence, from: usize) -> Up {
        let encoded = encode(&Up::Evidence(sent.clone())).unwrap();
        let lines = self.lines().into_iter().skip(from).collect::<Vec<_>>().concat();
        let lines = StatedLines { from: from as u64, digest: Digest::of(&[&lines]) };
        let said =
            evidence_statement(&self.device.id, nonce, &Self::boot(), &Digest::of(&[&encoded]), Some(&lines));
        let quote = Quote { nonce: said.as_bytes(), mask: 0, digest: &[], safe: 1, kind: 0x8018 };
        Up::Statement(Statement { tag: nonce.tag(), signed: self.device.signed(quote.marshal()) })
    }

    /// Says `Ready` and proves itself
    pub async fn arrives(&self, world: &World) {
        self.says_ready(world).await;
        let nonce = world.question(&self.device.id, "Prove", |question| match question {
            Question::Prove(prove) => Some(prove.nonce),
            _ => None,
        });
        world.says(&self.device.id, &self.device.proof(&nonce.await)).await;
    }

    pub async fn says_ready(&self, world: &World) {
        self.says(world, Up::Ready(self.ready())).await;
    }

    pub async fn asked(&self, world: &World) -> Asked {
        world
            .question(&self.device.id, "Challenge or Need", |question| match question {
                Question::Challenge(challenge) => Some(Asked::Challenge(challenge)),
                Question::Need(need) => Some(Asked::Need(need)),
                _ => None,
            })
            .await
    }

    pub async fn needed(&self, world: &World) -> Need {
        match self.asked(world).await {
            Asked::Need(need) => need,
            Asked::Challenge(_) => panic!("challenged without the log"),
        }
    }

    pub async fn challenged(&self, world: &World) -> Challenge {
        match self.asked(world).await {
            Asked::Challenge(challenge) => challenge,
            Asked::Need(need) => panic!("asked for a log: {need:?}"),
        }
    }

    pub async fn says(&self, world: &World, up: Up) {
        world.says(&self.device.id, &up).await;
    }

    /// Answers until a challenge comes; what was asked for on the way
    pub async fn sends_logs(&self, world: &World) -> (Vec<Need>, Challenge) {
        let mut needs = Vec::new();
        loop {
            match self.asked(world).await {
                Asked::Challenge(challenge) => return (needs, challenge),
                Asked::Need(need) => {
                    for blob in self.part(&need) {
                        self.says(world, Up::Blob(blob)).await;
                    }
                    needs.push(need);
                }
            }
        }
    }

    pub async fn answers(&mut self, world: &World, challenge: &Challenge) {
        let evidence = self.evidence(challenge);
        self.says(world, Up::Evidence(evidence)).await;
        world.result(&self.device.id, Verdict::Pass).await;
    }

    /// From nothing to PASS; the logs asked for on the way
    pub async fn passes(&mut self, world: &World) -> Vec<Need> {
        self.arrives(world).await;
        let (needs, challenge) = self.sends_logs(world).await;
        self.answers(world, &challenge).await;
        needs
    }
}

pub enum Asked {
    Challenge(Challenge),
    Need(Need),
}
