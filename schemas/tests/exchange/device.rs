//! A model of a device: keys, PCRs, a quote, logs. Signatures are digests under a secret that only the model knows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::compact::{Reference, pack_ima, pack_uefi};
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::exchange::relay::StatedAt;
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    Activation, AkName, Blob, BootMarker, Brief, Challenge, Digest, Enrol, Evidence, IMA_PCR, ImaSegment,
    LogKind, Need, Nonce, NotYet, NotYetReason, PcrMask, PcrValues, Proof as ProofMessage, Quote, Ready,
    Signed, Statement, UefiLog,
};
use keylime_mqtt_schemas::statement::{StatedBoot, StatedLines, boot_statement, evidence_statement};
use keylime_mqtt_schemas::topics::Via;

use super::attest::{Attest, CERTIFY, QUOTE, STATEMENT};

const PART: usize = 12 * 1024;
/// Holds the digest of the UEFI log.
pub(crate) const FIRMWARE_PCR: u8 = 2;

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: AgentId,
    pub(crate) enrolled: bool,
    pub(crate) ticket: Option<Vec<u8>>,
    pub(crate) boot: u64,
    /// Suspends in this boot, as the TPM counts them.
    pub(crate) restarts: u32,
    pub(crate) uefi: Option<Vec<u8>>,
    pub(crate) ima: Option<Vec<u8>>,
    /// PCRs that something extended in this boot.
    pub(crate) extended: BTreeMap<u8, u8>,
    /// A line was changed: the log no longer gives PCR 10.
    pub(crate) tampered: bool,
    pub(crate) sleep: Option<u32>,
    /// The bridge that its answers have to go to.
    pub(crate) via: Option<Via>,
    pub(crate) enrol_again_after: Duration,
    /// So many of the next challenges find the TPM's clock not safe.
    pub(crate) clock_unsafe: u32,
    /// The reference file that it names in `Ready`.
    pub(crate) reference: Option<Digest>,
    /// That file; without it, what it packs with a reference cannot be unpacked.
    pub(crate) reference_file: Option<Arc<Reference>>,
    /// So many of the next answers are brief and leave out what the bridge cannot know.
    pub(crate) careless: u32,
    /// The values it sent last, as an agent has them in memory.
    said: Option<PcrValues>,
    /// The statement is made once per boot.
    stated: Option<(Digest, Signed)>,
    clock: u64,
    seed: u8,
}

impl Device {
    pub(crate) fn new(id: &str, seed: u8) -> Self {
        Self {
            id: id.parse().unwrap(),
            enrolled: false,
            ticket: None,
            boot: 1,
            restarts: 0,
            uefi: None,
            ima: None,
            extended: BTreeMap::new(),
            tampered: false,
            sleep: None,
            via: None,
            enrol_again_after: Duration::from_secs(3600),
            clock_unsafe: 0,
            reference: None,
            reference_file: None,
            careless: 0,
            said: None,
            stated: None,
            clock: 1_000_000,
            seed,
        }
    }

    pub(crate) fn marker(&self) -> BootMarker {
        BootMarker::try_from(&Digest::of(&[&[self.seed], &self.boot.to_be_bytes()]).as_bytes()[..16]).unwrap()
    }

    pub(crate) fn grow(&mut self, lines: usize) {
        let ima = self.ima.get_or_insert_default();
        let from = usize::try_from(count(ima)).unwrap();
        ima.extend(log(from..from + lines));
    }

    pub(crate) fn reboot(&mut self) {
        self.boot += 1;
        self.restarts = 0;
        self.extended.clear();
        if let Some(uefi) = &mut self.uefi {
            // another kernel, another order of boot
            uefi.extend(self.boot.to_be_bytes());
        }
        if self.ima.is_some() {
            self.ima = None;
            self.grow(3);
        }
    }

    /// What is lost with the agent's process.
    pub(crate) fn forget(&mut self) {
        self.said = None;
    }

    pub(crate) fn ek_public(&self) -> Vec<u8> {
        vec![self.seed, b'e', b'k']
    }

    pub(crate) fn ak_public(&self) -> Vec<u8> {
        let area = [&[0x00, 0x01, 0x00, 0x0b, self.seed][..], &[7; 64]].concat();
        [&(area.len() as u16).to_be_bytes()[..], &area].concat()
    }

    pub(crate) fn ak(&self) -> AkName {
        AkName::of_public(&self.ak_public()).unwrap()
    }

    /// The values of these PCRs now.
    fn values(&self, mask: PcrMask) -> PcrValues {
        let value = |pcr| match self.extended.get(&pcr) {
            Some(byte) => [*byte; 32],
            None if pcr == IMA_PCR => self.pcr10(),
            None if pcr == FIRMWARE_PCR && self.uefi.is_some() => self.firmware(),
            None => [self.seed; 32],
        };
        PcrValues::new(mask, mask.iter().map(value).collect()).unwrap()
    }

    /// What the firmware extended, by its log.
    fn firmware(&self) -> [u8; 32] {
        *Digest::of(&[self.uefi.as_deref().unwrap_or_default()]).as_bytes()
    }

    /// What IMA extended into PCR 10.
    fn pcr10(&self) -> [u8; 32] {
        let mut value = *chained(BOOT, self.ima.as_deref().unwrap_or_default()).as_bytes();
        value[0] ^= u8::from(self.tampered);
        value
    }

    fn attest(&mut self, kind: u8, extra: &[u8], pcrs: &PcrValues) -> Attest {
        self.clock += 7;
        Attest {
            kind,
            extra: extra.to_vec(),
            ak: self.ak(),
            mask: pcrs.mask(),
            pcrs: pcrs.digest(),
            clock: self.clock,
            resets: self.boot,
            restarts: self.restarts,
        }
    }

    fn sign(&mut self, kind: u8, extra: &[u8]) -> Signed {
        self.attest(kind, extra, &PcrValues::default()).signed()
    }

    fn lines_from(&self, from: u64) -> &[u8] {
        let ima = self.ima.as_deref().unwrap_or_default();
        let from = usize::try_from(from).unwrap().saturating_mul(LINE);
        ima.get(from..).unwrap_or_default()
    }

    /// What the agent's shell would do.
    pub(crate) fn work(&mut self, work: Work) -> Done {
        match work {
            Work::Introduce => Done::Introduced(Enrol {
                ek_public: self.ek_public().try_into().unwrap(),
                ak_public: self.ak_public().try_into().unwrap(),
                ek_certificate: Some(vec![self.seed; 30].try_into().unwrap()),
            }),
            Work::Describe => Done::Described(self.described()),
            Work::Activate { blob } if holds(&blob, &self.ek_public(), self.ak()) => {
                Done::Activated(Activation {
                    credential: Digest::of(&[&blob]),
                    auth_tag: auth_tag(&blob).into(),
                })
            }
            Work::Activate { .. } => Done::Failed,
            Work::Prove(prove) => Done::Proved(ProofMessage {
                tag: prove.nonce.tag(),
                signed: self.sign(CERTIFY, prove.nonce.as_bytes()),
            }),
            Work::Collect(challenge) if challenge.boot != self.marker().tag() => Done::Rebooted,
            Work::Collect(challenge)
                if challenge.ima_offset.is_some_and(|from| self.lines_from(from).len() > MAX_INLINE_IMA) =>
            {
                Done::NotYet(NotYet { tag: challenge.nonce.tag(), reason: NotYetReason::Log, seconds: 10 })
            }
            Work::Collect(challenge) if self.clock_unsafe > 0 => {
                self.clock_unsafe -= 1;
                let reason = NotYetReason::ClockNotSafe;
                Done::NotYet(NotYet { tag: challenge.nonce.tag(), reason, seconds: 10 })
            }
            Work::Collect(challenge) => self.collected(&challenge),
            Work::Read(Need { boot, .. }) if boot != self.marker().tag() => Done::Rebooted,
            Work::Read(need) => self.part(&need),
            Work::State { state, nonce, evidence, ima_end } => {
                let stated = state.ima_from.zip(ima_end).map(|(from, end)| {
                    let wanted = usize::try_from(end.saturating_sub(from)).unwrap() * LINE;
                    let lines = self.lines_from(from).get(..wanted).unwrap_or_default();
                    StatedLines { from, digest: Digest::of(&[lines]) }
                });
                let digest = evidence_statement(&self.id, &nonce, &self.marker(), &evidence, stated.as_ref());
                Done::Stated(Statement { tag: state.tag, signed: self.sign(STATEMENT, digest.as_bytes()) })
            }
        }
    }

    fn described(&mut self) -> Ready {
        let (boot, boot_time) = (self.marker(), self.boot * 1000);
        let uefi =
            self.uefi.as_ref().map(|log| UefiLog { digest: Digest::of(&[log]), size: log.len() as u32 });
        let (pcrs, sleep, reference) = (PcrMask::ALL, self.sleep, self.reference);
        let stated = StatedBoot { boot, boot_time, uefi, ima_sha256: false, pcrs, sleep, reference };
        let expected = boot_statement(&self.id, &stated);
        let statement = match &self.stated {
            Some((stated, signed)) if *stated == expected => signed.clone(),
            _ => self.sign(STATEMENT, expected.as_bytes()),
        };
        self.stated = Some((expected, statement.clone()));
        Ready {
            ima_entries: self.ima.as_deref().map(count),
            ticket: self.ticket.clone().map(|ticket| ticket.try_into().unwrap()),
            ..stated.ready(self.ak_public().try_into().unwrap(), statement)
        }
    }

    /// Brief when the bridge holds what was sent last, in full otherwise and when it is asked for so.
    fn collected(&mut self, challenge: &Challenge) -> Done {
        let lines = challenge.ima_offset.map(|from| self.lines_from(from).to_vec());
        let values = self.values(challenge.pcrs);
        let attest = self.attest(QUOTE, challenge.nonce.as_bytes(), &values);
        // what the bridge has to be told: PCR 10 goes its own way where lines lead to it
        let told = if lines.is_some() { challenge.pcrs.without(IMA_PCR) } else { challenge.pcrs };
        let said = self.said.replace(values.clone()).filter(|said| said.mask().covers(told));
        let held = said.map(|said| said.only(told)).filter(|said| challenge.held == Some(said.tag()));
        let careless = !challenge.full && self.careless > 0;
        self.careless -= u32::from(careless);
        let (quote, pcrs) = match held {
            _ if careless => {
                let brief = Brief { restart_count: None, ..self.brief(&attest) };
                (Quote::Brief(brief), None)
            }
            Some(held) if !challenge.full => {
                let mut news = values.only(told).changed_since(&held);
                if self.tampered && lines.is_some() {
                    news = news.overlaid(&values.only(PcrMask::try_from(1 << IMA_PCR).unwrap()));
                }
                (Quote::Brief(self.brief(&attest)), (news.mask().count() > 0).then_some(news))
            }
            _ => (Quote::Full(attest.signed()), Some(values)),
        };
        let sent = lines.as_deref().filter(|lines| !lines.is_empty()).zip(challenge.ima_offset);
        let ima = sent.map(|(lines, offset)| ImaSegment {
            offset,
            packed: self.packed(LogKind::Ima, lines, challenge.reference).try_into().unwrap(),
        });
        let ima_end = challenge.ima_offset.zip(lines).map(|(from, lines)| from + count(&lines));
        Done::Collected { evidence: Evidence { tag: challenge.nonce.tag(), quote, pcrs, ima }, ima_end }
    }

    fn brief(&self, attest: &Attest) -> Brief {
        let of_statement = self.stated.as_ref().and_then(|(_, signed)| Attest::read(signed)).unwrap();
        Brief {
            clock: attest.clock,
            signature: attest.signature().try_into().unwrap(),
            restart_count: (attest.restarts != of_statement.restarts).then_some(attest.restarts),
        }
    }

    fn packed(&self, log: LogKind, bytes: &[u8], with_reference: bool) -> Vec<u8> {
        match &self.reference_file {
            _ if !with_reference => packed(log, bytes, None),
            Some(reference) => packed(log, bytes, Some(reference)),
            None => NOT_PACKED.to_vec(),
        }
    }

    fn part(&self, need: &Need) -> Done {
        let (part, next, total) = match need.log {
            LogKind::Uefi => {
                let log = self.uefi.as_deref().unwrap_or_default();
                let packed = self.packed(LogKind::Uefi, log, need.reference);
                let (from, upto) =
                    (usize::try_from(need.offset).unwrap(), usize::try_from(need.upto).unwrap());
                let upto = upto.min(from.saturating_add(PART)).min(packed.len());
                let part = packed.get(from..upto).unwrap_or_default().to_vec();
                let next = need.offset + part.len() as u64;
                (part, next, Some(packed.len() as u32))
            }
            LogKind::Ima => {
                let most = usize::try_from(need.upto.saturating_sub(need.offset)).unwrap().min(PART / LINE);
                let lines = self.lines_from(need.offset);
                let lines = lines.get(..most * LINE).unwrap_or(lines);
                let part = match lines {
                    [] => Vec::new(),
                    lines => self.packed(LogKind::Ima, lines, need.reference),
                };
                (part, need.offset + count(lines), None)
            }
        };
        let part = part.try_into().unwrap();
        let blob = Blob { log: need.log, boot: need.boot, offset: need.offset, part, total };
        Done::Read { blob, next }
    }
}

/// What no packing makes.
pub(crate) const NOT_PACKED: [u8; 9] = [0xff; 9];

/// Packing takes most of a run's time, and one run packs what the others packed.
fn packed(log: LogKind, bytes: &[u8], reference: Option<&Reference>) -> Vec<u8> {
    type Packed = BTreeMap<(Digest, Option<Digest>), Vec<u8>>;
    static BEFORE: Mutex<Packed> = Mutex::new(BTreeMap::new());
    let key = (Digest::of(&[bytes]), reference.map(Reference::digest));
    if let Some(packed) = BEFORE.lock().unwrap().get(&key) {
        return packed.clone();
    }
    let packed = match log {
        LogKind::Uefi => pack_uefi(bytes, reference),
        LogKind::Ima => pack_ima(bytes, reference),
    };
    BEFORE.lock().unwrap().insert(key, packed.clone());
    packed
}

/// Every line of the model's log has this many bytes.
pub(crate) const LINE: usize = 146;

/// Some lines of a log in which each line is named after its place.
fn log(lines: Range<usize>) -> Vec<u8> {
    lines
        .flat_map(|at| {
            format!("10 {at:040x} ima-ng sha256:{at:064x} /usr/bin/program-{at:05}\n").into_bytes()
        })
        .collect()
}

/// Lines of a text in which every line has [`LINE`] bytes.
pub(crate) fn count(text: &[u8]) -> u64 {
    (text.len() / LINE) as u64
}

/// PCR 10 before the first line.
pub(crate) const BOOT: [u8; 32] = [0; 32];

/// PCR 10 after these lines, given what it was before them.
pub(crate) fn chained(from: impl Into<Digest>, lines: &[u8]) -> Digest {
    lines.chunks(LINE).fold(from.into(), |pcr, line| Digest::of(&[pcr.as_bytes(), line]))
}

/// A log that no packing makes smaller.
pub(crate) fn dense_log(size: usize) -> Vec<u8> {
    (0_u64..).flat_map(|at| *Digest::of(&[&at.to_be_bytes()]).as_bytes()).take(size).collect()
}

/// A credential is for one EK and one AK, and comes out whole or not at all: TPM 2.0 Part 1, 24.
pub(crate) fn blob(ek: &[u8], ak: AkName, number: u64) -> Vec<u8> {
    let content = [ek, ak.as_bytes(), &number.to_be_bytes()].concat();
    [Digest::of(&[b"credential", &content]).as_bytes(), &content[..]].concat()
}

fn holds(credential: &[u8], ek: &[u8], ak: AkName) -> bool {
    credential
        .split_at_checked(32)
        .and_then(|(_, content)| content.last_chunk())
        .is_some_and(|number| credential == blob(ek, ak, u64::from_be_bytes(*number)))
}

pub(crate) fn auth_tag(blob: &[u8]) -> [u8; 48] {
    let digest = Digest::of(&[b"tag", blob]);
    let mut tag = [0; 48];
    tag[..32].copy_from_slice(digest.as_bytes());
    tag
}

/// A proof of possession, once its signature was found good.
pub(crate) struct Proof {
    pub(crate) nonce: Nonce,
    pub(crate) ak: AkName,
}

impl Proof {
    pub(crate) fn read(signed: &Signed) -> Option<Self> {
        let attest = Attest::read(signed).filter(|attest| attest.kind == CERTIFY)?;
        Some(Self { nonce: Nonce::try_from(attest.extra.as_slice()).ok()?, ak: attest.ak })
    }
}

/// When it was stated, if the statement holds: right key, right digest.
pub(crate) fn stated(statement: &Signed, expected: &Digest, ak_public: &[u8]) -> Option<StatedAt> {
    let attest = Attest::read(statement)?;
    let holds = attest.kind == STATEMENT
        && attest.extra == expected.as_bytes()
        && Some(attest.ak) == AkName::of_public(ak_public);
    holds.then(|| StatedAt {
        resets: u32::try_from(attest.resets).unwrap(),
        restarts: attest.restarts,
        clock: attest.clock,
    })
}
