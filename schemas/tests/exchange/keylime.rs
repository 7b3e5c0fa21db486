//! A model of Keylime's registrar and push verifier: what they store, what they refuse, what they do for good.
//!
//! It knows the traps that cost a device its PASS: a wrong tag deletes the record, a second POST kills the first
//! nonce, a wrong nonce is taken with 202 and fails the device for good, an IMA device fails after a reboot.

use std::collections::BTreeSet;
use std::time::Duration;

use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{
    Activated, Facts, Offer, Offered, Proven, Registered, Requested, Restored, Session, Standing, Status,
    Submitted, Token,
};
use keylime_mqtt_schemas::messages::{
    AkName, Digest, IMA_PCR, Nonce, PcrMask, PcrValues, RefusedReason, Signed, Verdict,
};

use super::attest::Attest;
use super::device::{self, BOOT, FIRMWARE_PCR, Proof, chained};

pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
/// PCR 0 to 2 and 10.
pub(crate) const QUOTED: u32 = 0x0407;
const TIMEOUT: Duration = Duration::from_secs(5 * INTERVAL.as_secs());
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(1800);
const SESSION_NONCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Policy {
    pub(crate) ima: bool,
    pub(crate) uefi: bool,
}

#[derive(Debug)]
struct Record {
    ek: Vec<u8>,
    ak: AkName,
    blob: Vec<u8>,
    active: bool,
}

#[derive(Debug)]
struct Attestation {
    nonce: Nonce,
    ima_offset: u64,
    /// PCR 10 at that line.
    pcr10: Digest,
    boot_time: u64,
    /// Lines that it was told of: it takes no fewer.
    announced: u64,
    received: bool,
}

#[derive(Debug)]
struct Enrolled {
    ak: AkName,
    policy: Policy,
    attestations: Vec<Attestation>,
    standing: Standing,
    /// The boot time, the IMA lines and PCR 10 of the last pass.
    passed: Option<(u64, u64, Digest)>,
    last_evidence: Option<Time>,
    /// Of the last quote: a later one has a later one.
    clock: u64,
}

#[derive(Debug)]
pub(crate) struct Keylime {
    pub(crate) session_lifetime: Duration,
    made: u64,
    record: Option<Record>,
    enrolled: Option<Enrolled>,
    session: Option<(String, Nonce, Time)>,
    token: Option<(String, Time)>,
    pub(crate) sessions_opened: u32,
    /// A PATCH whose quote covers another nonce than the one at its index.
    pub(crate) foreign_nonces: u32,
    pub(crate) offers: u32,
    /// Nonces of the attestations that passed.
    pub(crate) passed: BTreeSet<Digest>,
}

impl Keylime {
    pub(crate) fn new() -> Self {
        Self {
            session_lifetime: Duration::from_secs(180),
            made: 0,
            record: None,
            enrolled: None,
            session: None,
            token: None,
            sessions_opened: 0,
            foreign_nonces: 0,
            offers: 0,
            passed: BTreeSet::new(),
        }
    }

    /// The operator adds the device with this policy; `false` while the registrar does not know it as active.
    pub(crate) fn add(&mut self, policy: Policy) -> bool {
        let Some(record) = self.record.as_ref().filter(|record| record.active) else { return false };
        let standing = Standing {
            verdict: Verdict::Pending,
            attestation_count: 0,
            last_success: 0,
            interval: Some(INTERVAL),
        };
        let (ak, attestations) = (record.ak, Vec::new());
        self.enrolled = Some(Enrolled {
            ak,
            policy,
            attestations,
            standing,
            passed: None,
            last_evidence: None,
            clock: 0,
        });
        true
    }

    pub(crate) fn is_added(&self) -> bool {
        self.enrolled.is_some()
    }

    pub(crate) fn delete(&mut self) {
        self.enrolled = None;
    }

    pub(crate) fn regdelete(&mut self) {
        self.record = None;
    }

    pub(crate) fn registered(&mut self, ek: &[u8], ak: AkName) -> Registered {
        if self.record.as_ref().is_some_and(|record| record.ek != ek || record.ak != ak) {
            return Registered::Refused(RefusedReason::OtherTpm);
        }
        self.made += 1;
        let blob = device::blob(ek, ak, self.made);
        self.record = Some(Record { ek: ek.to_vec(), ak, blob: blob.clone(), active: false });
        Registered::Credential(blob)
    }

    pub(crate) fn activated(&mut self, auth_tag: &[u8; 48]) -> Activated {
        let Some(record) = &mut self.record else { return Activated::Unknown };
        if *auth_tag == device::auth_tag(&record.blob) {
            record.active = true;
            Activated::Accepted
        } else {
            self.record = None;
            Activated::WrongTag
        }
    }

    pub(crate) fn session(&mut self, now: Time) -> Session {
        self.made += 1;
        self.sessions_opened += 1;
        let session = format!("session-{}", self.made);
        let nonce = self.nonce();
        self.session = Some((session.clone(), nonce, now + SESSION_NONCE));
        Session::Opened { session, nonce, good_for: SESSION_NONCE }
    }

    /// What the bridge sees of a proof before the verifier does.
    pub(crate) fn unbound(proof: &Signed, nonce: &Nonce, ak_public: &[u8]) -> Option<Proven> {
        let bound = Proof::read(proof)
            .is_some_and(|proof| proof.nonce == *nonce && Some(proof.ak) == AkName::of_public(ak_public));
        (!bound).then_some(Proven::Unbound("it does not verify under the AK"))
    }

    pub(crate) fn proven(&mut self, session: &str, proof: &Signed, now: Time) -> Proven {
        let Some((_, nonce, until)) = self.session.take_if(|(open, _, _)| open == session) else {
            return Proven::SessionGone;
        };
        let Some(enrolled) = self.enrolled.as_ref().filter(|_| until >= now) else {
            return Proven::NotEnrolled;
        };
        match Proof::read(proof) {
            Some(proof) if proof.nonce == nonce && proof.ak == enrolled.ak => {
                let token = format!("token-{}", self.made);
                self.token = Some((token.clone(), now + self.session_lifetime));
                let ticket = format!("ticket:{}:{token}", hex::encode(proof.ak.as_bytes()));
                let ticket = ticket.into_bytes().try_into().ok();
                Proven::Token { token: Token::new(token), certified: proof.ak, ticket }
            }
            _ => Proven::BadProof,
        }
    }

    pub(crate) fn status(&self, token: &Token, now: Time) -> Status {
        if !self.accepts(token, now) {
            return Status::TokenRejected;
        }
        let Some(enrolled) = &self.enrolled else { return Status::Gone };
        let overdue = enrolled.last_evidence.is_some_and(|at| now > at + TIMEOUT);
        let verdict = match enrolled.standing.verdict {
            Verdict::Pass if overdue => Verdict::Timeout,
            verdict => verdict,
        };
        Status::Standing(Standing { verdict, ..enrolled.standing })
    }

    pub(crate) fn offered(&mut self, token: &Token, facts: &Facts, now: Time) -> Offered {
        self.offers += 1;
        let nonce = self.nonce();
        if !self.accepts(token, now) {
            return Offered::TokenRejected;
        }
        let Some(enrolled) = &mut self.enrolled else { return Offered::NotEnrolled };
        if let Some(wait) = enrolled.last_evidence.and_then(|at| (at + INTERVAL).checked_sub(now))
            && !wait.is_zero()
        {
            return Offered::Early(Duration::from_secs(wait.as_secs() + 1));
        }
        let (ima_offset, pcr10) = match enrolled.passed {
            Some((boot, ..)) if facts.stated.boot_time < boot => {
                return Offered::Invalid("boot_time went back".to_owned());
            }
            Some((boot, lines, pcr10)) if facts.stated.boot_time == boot => (lines, pcr10),
            _ => (0, BOOT.into()),
        };
        if enrolled.policy.ima && facts.ima_entries.is_none_or(|entries| entries < ima_offset) {
            return Offered::Invalid("must contain a log item of type 'ima_log'".to_owned());
        }
        let mut requested = vec![Requested::Quote];
        if enrolled.policy.uefi {
            requested.push(Requested::Uefi);
        }
        if enrolled.policy.ima {
            requested.push(Requested::Ima { offset: ima_offset });
        }
        let boot_time = facts.stated.boot_time;
        enrolled.attestations.push(Attestation {
            nonce,
            ima_offset,
            pcr10,
            boot_time,
            announced: facts.ima_entries.filter(|_| enrolled.policy.ima).unwrap_or(0),
            received: false,
        });
        Offered::Opened(Offer {
            index: enrolled.attestations.len() as u64 - 1,
            nonce,
            pcrs: PcrMask::try_from(QUOTED).unwrap(),
            requested,
            expires_at: now + CHALLENGE_LIFETIME,
        })
    }

    pub(crate) fn submitted(
        &mut self,
        token: &Token,
        index: u64,
        restored: &Restored,
        now: Time,
    ) -> Submitted {
        if !self.accepts(token, now) {
            return Submitted::TokenRejected;
        }
        let Some(enrolled) = &mut self.enrolled else { return Submitted::Gone };
        let Some(attestation) = enrolled.attestations.get(usize::try_from(index).unwrap()) else {
            return Submitted::Gone;
        };
        if attestation.received {
            return Submitted::AlreadyAccepted;
        }
        if index + 1 != enrolled.attestations.len() as u64 {
            return Submitted::Superseded;
        }
        let lines = device::count(restored.lines());
        if attestation.ima_offset.saturating_add(lines) < attestation.announced {
            return Submitted::Invalid("fewer lines than were announced".to_owned());
        }
        let quote = Attest::read(&restored.quote);
        let right_nonce = quote.as_ref().is_some_and(|quote| quote.extra == attestation.nonce.as_bytes());
        self.foreign_nonces += u32::from(!right_nonce);
        let values: PcrValues = decode(&restored.pcr_blob).unwrap_or_default();
        let quote_clock = quote.as_ref().map_or(0, |quote| quote.clock);
        let quoted = quote.is_some_and(|quote| {
            (u32::from(quote.mask), quote.mask, quote.pcrs) == (QUOTED, values.mask(), values.digest())
        });
        let rebooted = enrolled.passed.is_some_and(|(boot, ..)| boot != attestation.boot_time);
        let pcr10 = chained(attestation.pcr10, restored.lines());
        let ima_explains =
            !enrolled.policy.ima || (!rebooted && values.value(IMA_PCR) == Some(pcr10.as_bytes()));
        let firmware = values.value(FIRMWARE_PCR).copied().map(Digest::from);
        let right_uefi = !enrolled.policy.uefi || restored.uefi.is_some() && restored.uefi == firmware;
        let later = quote_clock > enrolled.clock;
        let nonce = Digest::of(&[attestation.nonce.as_bytes()]);
        let (boot_time, upto) = (attestation.boot_time, attestation.ima_offset + lines);
        if let Some(attestation) = enrolled.attestations.last_mut() {
            attestation.received = true;
        }
        enrolled.last_evidence = Some(now);
        enrolled.clock = enrolled.clock.max(quote_clock);
        if right_nonce
            && quoted
            && later
            && ima_explains
            && right_uefi
            && enrolled.standing.verdict != Verdict::Fail
        {
            enrolled.passed = Some((boot_time, upto, pcr10));
            self.passed.insert(nonce);
            enrolled.standing.verdict = Verdict::Pass;
            enrolled.standing.attestation_count += 1;
            enrolled.standing.last_success = now.as_secs() + 1;
            if let Some((_, until)) = &mut self.token {
                *until = now + self.session_lifetime;
            }
        } else {
            enrolled.standing.verdict = Verdict::Fail;
        }
        Submitted::Accepted(INTERVAL)
    }

    fn accepts(&self, token: &Token, now: Time) -> bool {
        self.token.as_ref().is_some_and(|(good, until)| good == token.expose() && *until > now)
    }

    fn nonce(&mut self) -> Nonce {
        self.made += 1;
        let digest = Digest::of(&[b"nonce", &self.made.to_be_bytes()]);
        Nonce::try_from(&digest.as_bytes()[..16]).unwrap()
    }
}
