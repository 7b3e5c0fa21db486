//! A model of a device: keys, a quote, logs. Signatures are digests under a secret that only the model knows.

use std::ops::Range;
use std::sync::OnceLock;

use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::limits::MAX_INLINE_IMA;
use keylime_mqtt_schemas::messages::{
    Activation, AkName, Blob, BootMarker, Digest, Enrol, Evidence, ImaSegment, LogKind, Need, Nonce, NotYet,
    NotYetReason, PcrMask, Proof as ProofMessage, Ready, Signed, Statement, UefiLog,
};
use keylime_mqtt_schemas::statement::{boot_statement, evidence_statement};

const PART: usize = 12 * 1024;

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: AgentId,
    pub(crate) enrolled: bool,
    pub(crate) ticket: Option<Vec<u8>>,
    pub(crate) boot: u64,
    pub(crate) uefi: Option<Vec<u8>>,
    pub(crate) ima: Option<Vec<u8>>,
    /// A line was changed: the log no longer gives PCR 10.
    pub(crate) tampered: bool,
    pub(crate) sleep: Option<u32>,
    seed: u8,
}

impl Device {
    pub(crate) fn new(id: &str, seed: u8) -> Self {
        Self {
            id: id.parse().unwrap(),
            enrolled: false,
            ticket: None,
            boot: 1,
            uefi: None,
            ima: None,
            tampered: false,
            sleep: None,
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
        if self.ima.is_some() {
            self.ima = None;
            self.grow(3);
        }
    }

    pub(crate) fn ek_public(&self) -> Vec<u8> {
        vec![self.seed, b'e', b'k']
    }

    fn ak_public(&self) -> Vec<u8> {
        let area = [&[0x00, 0x01, 0x00, 0x0b, self.seed][..], &[7; 64]].concat();
        [&(area.len() as u16).to_be_bytes()[..], &area].concat()
    }

    pub(crate) fn ak(&self) -> AkName {
        AkName::of_public(&self.ak_public()).unwrap()
    }

    fn sign(&self, kind: u8, extra: &[u8], pcrs: &[u8], ima: &Digest) -> Signed {
        let attest = [
            &[kind, extra.len() as u8][..],
            extra,
            self.ak().as_bytes(),
            Digest::of(&[pcrs]).as_bytes(),
            ima.as_bytes(),
        ]
        .concat();
        let signature = signature(&self.ak(), &attest);
        Signed { attest: attest.try_into().unwrap(), signature: signature.try_into().unwrap() }
    }

    fn lines_from(&self, from: u64) -> Vec<u8> {
        let ima = self.ima.clone().unwrap_or_default();
        ima.split_inclusive(|byte| *byte == b'\n')
            .skip(usize::try_from(from).unwrap())
            .collect::<Vec<_>>()
            .concat()
    }

    /// What the agent's shell would do.
    pub(crate) fn work(&self, work: Work) -> Done {
        let pcrs = [self.seed; 96];
        let whole = || Digest::of(&[self.ima.as_deref().unwrap_or_default(), &[u8::from(self.tampered)]]);
        match work {
            Work::Introduce => Done::Introduced(Enrol {
                ek_public: self.ek_public().try_into().unwrap(),
                ak_public: self.ak_public().try_into().unwrap(),
                ek_certificate: None,
            }),
            Work::Describe => {
                let boot = self.marker();
                let statement = boot_statement(&self.id, &boot, self.boot * 1000);
                Done::Described(Ready {
                    boot,
                    boot_time: self.boot * 1000,
                    pcrs: PcrMask::ALL,
                    ak_public: self.ak_public().try_into().unwrap(),
                    statement: self.sign(STATEMENT, statement.as_bytes(), &[], &Digest::of(&[])),
                    ima_entries: self.ima.as_ref().map(|_| count(&self.lines_from(0))),
                    uefi: self
                        .uefi
                        .as_ref()
                        .map(|log| UefiLog { digest: Digest::of(&[log]), size: log.len() as u32 }),
                    ticket: self.ticket.clone().map(|ticket| ticket.try_into().unwrap()),
                    sleep: self.sleep,
                })
            }
            Work::Activate { blob } if blob.starts_with(&self.ek_public()) => Done::Activated(Activation {
                credential: Digest::of(&[&blob]),
                auth_tag: auth_tag(&blob).into(),
            }),
            Work::Activate { .. } => Done::Failed,
            Work::Prove(prove) => Done::Proved(ProofMessage {
                tag: prove.nonce.tag(),
                signed: self.sign(CERTIFY, prove.nonce.as_bytes(), &[], &Digest::of(&[])),
            }),
            Work::Collect(challenge) if challenge.boot != self.marker() => Done::Rebooted,
            Work::Collect(challenge)
                if challenge.ima_offset.is_some_and(|from| self.lines_from(from).len() > MAX_INLINE_IMA) =>
            {
                Done::NotYet(NotYet { tag: challenge.nonce.tag(), reason: NotYetReason::Log, seconds: 10 })
            }
            Work::Collect(challenge) => Done::Collected(Evidence {
                tag: challenge.nonce.tag(),
                quote: self.sign(QUOTE, challenge.nonce.as_bytes(), &pcrs, &whole()),
                pcr_values: pcrs.to_vec().try_into().unwrap(),
                ima: challenge
                    .ima_offset
                    .map(|offset| ImaSegment { offset, lines: self.lines_from(offset).try_into().unwrap() }),
                uefi: challenge.uefi.then(|| Digest::of(&[self.uefi.as_deref().unwrap_or_default()])),
            }),
            Work::Read(Need { boot, .. }) if boot != self.marker() => Done::Rebooted,
            Work::Read(need) => Done::Read(self.part(&need)),
            Work::State { state, nonce, evidence, ima_end } => {
                let from = state.ima_from.map(|from| self.lines_from(from)).unwrap_or_default();
                let wanted = ima_end.zip(state.ima_from).map_or(0, |(end, from)| end - from);
                let lines = from.get(..usize::try_from(wanted).unwrap() * LINE).unwrap_or_default();
                let digest = evidence_statement(&self.id, &nonce, &evidence, &Digest::of(&[lines]));
                let signed = self.sign(STATEMENT, digest.as_bytes(), &[], &Digest::of(&[]));
                Done::Stated(Statement { tag: state.tag, signed })
            }
        }
    }

    fn part(&self, need: &Need) -> Blob {
        let part = match need.log {
            LogKind::Uefi => {
                let log = self.uefi.as_deref().unwrap_or_default();
                let (from, upto) =
                    (usize::try_from(need.offset).unwrap(), usize::try_from(need.upto).unwrap());
                let upto = upto.min(from + PART).min(log.len());
                log.get(from..upto).unwrap_or_default().to_vec()
            }
            LogKind::Ima => {
                let most = usize::try_from(need.upto - need.offset).unwrap().min(PART / LINE);
                let lines = self.lines_from(need.offset);
                lines.get(..most * LINE).unwrap_or(&lines).to_vec()
            }
        };
        Blob { log: need.log, boot: need.boot, offset: need.offset, part: part.try_into().unwrap() }
    }
}

const QUOTE: u8 = 1;
const CERTIFY: u8 = 2;
const STATEMENT: u8 = 3;

fn signature(ak: &AkName, attest: &[u8]) -> Vec<u8> {
    Digest::of(&[b"the AK's private half", ak.as_bytes(), attest]).as_bytes().to_vec()
}

/// Every line of the model's log has this many bytes.
const LINE: usize = 146;

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

pub(crate) fn blob(ek: &[u8], number: u64) -> Vec<u8> {
    [ek, b" credential ", &number.to_be_bytes()].concat()
}

pub(crate) fn auth_tag(blob: &[u8]) -> [u8; 48] {
    let digest = Digest::of(&[b"tag", blob]);
    let mut tag = [0; 48];
    tag[..32].copy_from_slice(digest.as_bytes());
    tag
}

/// What a signed structure says, once its signature was found good.
#[derive(Debug, Clone)]
pub(crate) struct Quote {
    pub(crate) kind: u8,
    pub(crate) extra: Vec<u8>,
    pub(crate) ak: AkName,
    pub(crate) pcrs: Digest,
    pub(crate) ima: Digest,
}

impl Quote {
    pub(crate) fn read(signed: &Signed) -> Option<Self> {
        let attest = signed.attest.as_slice();
        let (head, rest) = attest.split_at_checked(2)?;
        let (extra, rest) = rest.split_at_checked(usize::from(head[1]))?;
        let ak = AkName::try_from(rest.get(..34)?).ok()?;
        let pcrs = Digest::try_from(rest.get(34..66)?).ok()?;
        let ima = Digest::try_from(rest.get(66..98)?).ok()?;
        (signature(&ak, attest) == signed.signature.as_slice()).then(|| Self {
            kind: head[0],
            extra: extra.to_vec(),
            ak,
            pcrs,
            ima,
        })
    }
}

/// A proof of possession, once its signature was found good.
pub(crate) struct Proof {
    pub(crate) nonce: Nonce,
    pub(crate) ak: AkName,
}

impl Proof {
    pub(crate) fn read(signed: &Signed) -> Option<Self> {
        let quote = Quote::read(signed).filter(|quote| quote.kind == CERTIFY)?;
        Some(Self { nonce: Nonce::try_from(quote.extra.as_slice()).ok()?, ak: quote.ak })
    }
}

/// The statement holds: right key, right digest.
pub(crate) fn stated(statement: &Signed, expected: &Digest, ak_public: &[u8]) -> bool {
    Quote::read(statement).is_some_and(|quote| {
        quote.kind == STATEMENT
            && quote.extra == expected.as_bytes()
            && Some(quote.ak) == AkName::of_public(ak_public)
    })
}

/// The quote binds the evidence: right key, right nonce, right values.
pub(crate) fn bound(evidence: &Evidence, nonce: &Nonce, ak_public: &[u8]) -> Option<Quote> {
    Quote::read(&evidence.quote).filter(|quote| {
        quote.kind == QUOTE
            && quote.extra == nonce.as_bytes()
            && Some(quote.ak) == AkName::of_public(ak_public)
            && quote.pcrs == Digest::of(&[evidence.pcr_values.as_slice()])
    })
}

/// Whether the lines, which begin at `offset`, give the IMA state that was quoted. Lines before `offset` are known by
/// the model's habit of numbering each line with its place in the log.
pub(crate) fn explains(offset: u64, lines: &[u8], quote: &Quote) -> bool {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| log(0..8000));
    let before = &whole[..usize::try_from(offset).unwrap() * LINE];
    quote.ima == Digest::of(&[before, lines, &[0]])
}
