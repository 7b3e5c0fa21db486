//! What devices, registrars and verifiers may answer, right or wrong, as the bytes have it.

use std::sync::Arc;
use std::time::Duration;

use keylime_mqtt_schemas::compact::{pack_ima, pack_uefi};
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{
    Activated, Command, Done, ImaState, Offer, Offered, OpenedTicket, Proven, Registered, Requested,
    Restored, Restoring, Session, Standing, StatedAt, Status, Submitted, Token, Unavailable,
};
use keylime_mqtt_schemas::messages::{
    Activation, AkName, Blob, BootMarker, Bounded, Brief, Challenge, Digest, Enrol, Evidence, ImaSegment,
    LogKind, Need, Nonce, NotYet, NotYetReason, PcrMask, PcrValues, Proof, Quote, Ready, RefusedReason,
    Signed, Statement, UefiLog, Verdict,
};

use crate::bytes::Bytes;
use crate::certificates::AK_PUBLIC;

const STATED_AT: StatedAt = StatedAt { resets: 1, restarts: 0, clock: 1000 };

const UEFI_LOG: &[u8] = include_bytes!("../../../data/uefi-direct-boot.bin");
const IMA_LINE: &[u8] = b"10 91f34b5c671d73504b274a919661cf80dab1e127 ima-ng sha1:1801e1be3e65ef1eaa5c16617bec8f1274eaf6b3 boot_aggregate\n";
/// Bytes in a part of a log.
const PART: usize = 4096;

/// What stays between answers, so that right ones fit each other.
#[derive(Debug, Default)]
pub(super) struct Facts {
    boot: u8,
    counter: u8,
    passed: u64,
}

fn bounded<const MAX: usize>(bytes: &[u8]) -> Bounded<MAX> {
    bytes.to_vec().try_into().expect("short")
}

fn signed() -> Signed {
    Signed { attest: bounded(&[0xFF; 40]), signature: bounded(&[0; 64]) }
}

fn ak_name(other: bool) -> AkName {
    let name = AkName::of_public(AK_PUBLIC).expect("an AK");
    if other { AkName::from([9; 34]) } else { name }
}

fn token() -> Token {
    Token::new("token".to_owned())
}

fn uefi() -> UefiLog {
    UefiLog { digest: Digest::of(&[UEFI_LOG]), size: u32::try_from(UEFI_LOG.len()).expect("small") }
}

/// From nothing to beyond every cap.
fn seconds(bytes: &mut Bytes) -> Duration {
    Duration::from_secs((1 << (bytes.byte() % 24)) - 1)
}

fn values(mask: PcrMask) -> PcrValues {
    PcrValues::new(mask, vec![[7; 32]; mask.count()]).expect("one value each")
}

impl Facts {
    fn marker(&self) -> BootMarker {
        BootMarker::from([self.boot; 16])
    }

    /// Whether a ticket opens is the seal's to say.
    pub(super) fn ticket(ready: &Ready, bytes: &mut Bytes) -> Option<OpenedTicket> {
        let choice = bytes.byte();
        ready.ticket.as_ref().filter(|_| choice & 1 == 0)?;
        Some(OpenedTicket { token: token(), ak: ak_name(choice & 2 == 2) })
    }

    /// What the device's shell answers.
    pub(super) fn work(&mut self, work: &Work, bytes: &mut Bytes) -> Worked {
        let choice = bytes.byte();
        match (choice % 8, work) {
            (0, _) => Worked::Failed,
            (1, _) => {
                self.boot = self.boot.wrapping_add(1);
                Worked::Rebooted
            }
            (2, Work::Collect(Challenge { nonce, .. }) | Work::State { nonce, .. }) => {
                let seconds = u32::try_from(seconds(bytes).as_secs()).expect("small");
                Worked::NotYet(NotYet { tag: nonce.tag(), reason: NotYetReason::ClockNotSafe, seconds })
            }
            (3, _) | (_, Work::Describe) => Worked::Described(self.ready(choice)),
            (_, Work::Introduce) => Worked::Introduced(Enrol {
                ek_public: bounded(b"ek"),
                ak_public: bounded(AK_PUBLIC),
                ek_certificate: None,
            }),
            (_, Work::Activate { blob }) => Worked::Activated(Activation {
                credential: Digest::of(&[blob]),
                auth_tag: [choice; 48].into(),
            }),
            (_, Work::Prove(prove)) => Worked::Proved(Proof { tag: prove.nonce.tag(), signed: signed() }),
            (_, Work::Collect(challenge)) => collected(challenge, choice),
            (_, Work::Read(need)) => read(need, choice),
            (_, Work::State { nonce, .. }) => {
                Worked::Stated(Statement { tag: nonce.tag(), signed: signed() })
            }
        }
    }

    fn ready(&self, choice: u8) -> Ready {
        Ready {
            boot: self.marker(),
            boot_time: 1_760_000_000 + u64::from(self.boot),
            pcrs: PcrMask::try_from(0xFFFF).expect("16 PCRs"),
            ak_public: bounded(AK_PUBLIC),
            statement: signed(),
            ima_entries: (choice & 16 == 16).then_some(u64::from(choice) * 40),
            uefi: (choice & 32 == 32).then(uefi),
            ticket: (choice & 64 == 64).then(|| bounded(b"ticket")),
            sleep: (choice & 128 == 128).then_some(u32::from(choice)),
            reference: None,
            ima_sha256: false,
        }
    }
}

fn collected(challenge: &Challenge, choice: u8) -> Worked {
    let full = challenge.full || choice & 16 == 16;
    let quote = if full {
        Quote::Full(signed())
    } else {
        Quote::Brief(Brief { clock: 1, signature: bounded(&[1; 256]), restart_count: None })
    };
    let lines = IMA_LINE.repeat(usize::from(choice >> 5));
    let ima =
        challenge.ima_offset.map(|offset| ImaSegment { offset, packed: bounded(&pack_ima(&lines, None)) });
    let ima_end = challenge.ima_offset.map(|offset| offset.saturating_add(u64::from(choice >> 5)));
    let pcrs = (challenge.held.is_none() || choice & 8 == 8).then(|| values(challenge.pcrs));
    Worked::Collected { evidence: Evidence { tag: challenge.nonce.tag(), quote, pcrs, ima }, ima_end }
}

fn read(need: &Need, choice: u8) -> Worked {
    let Need { log, boot, offset, upto, .. } = *need;
    let (part, next, total) = match log {
        LogKind::Uefi => {
            let packed = pack_uefi(UEFI_LOG, None);
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(packed.len());
            let part = packed.get(from..(from + PART).min(packed.len())).unwrap_or_default().to_vec();
            let next = (from + part.len()) as u64;
            (part, next, u32::try_from(packed.len()).ok())
        }
        LogKind::Ima => {
            let count = upto.saturating_sub(offset).min(u64::from(choice));
            let lines = IMA_LINE.repeat(usize::try_from(count).unwrap_or_default());
            (pack_ima(&lines, None), offset.saturating_add(count), None)
        }
    };
    Worked::Read { blob: Blob { log, boot, offset, part: bounded(&part), total }, next }
}

/// Answers as of now.
pub(super) struct Answers<'a> {
    pub(super) facts: &'a mut Facts,
    pub(super) now: Time,
}

impl Answers<'_> {
    /// What Keylime, and the bridge's own checks, answer.
    pub(super) fn to(&mut self, command: &Command, bytes: &mut Bytes) -> Done {
        let choice = bytes.byte();
        let unavailable = Unavailable { retry_after: (choice & 128 == 128).then(|| seconds(bytes)) };
        let wrong = choice % 8;
        match command {
            Command::Register(_) => Done::Registered(match wrong {
                1 => Registered::Refused(RefusedReason::NotAdmitted),
                2 => Registered::Unavailable(unavailable),
                3 => Registered::Credential(vec![1; 3000]),
                4 => Registered::Wait(seconds(bytes)),
                _ => Registered::Credential(vec![self.next(); 336]),
            }),
            Command::Activate { .. } => Done::Activated(match wrong {
                1 => Activated::WrongTag,
                2 => Activated::Unknown,
                3 => Activated::Unavailable(unavailable),
                _ => Activated::Accepted,
            }),
            Command::Withdraw => Done::Withdrawn,
            Command::Unpack(unpack) => Done::Unpacked(unpack.carry_out(&[])),
            Command::OpenSession { .. } => Done::Session(match wrong {
                1 => Session::Wait(seconds(bytes)),
                2 => Session::Unavailable(unavailable),
                _ => Session::Opened {
                    session: "1".to_owned(),
                    nonce: Nonce::from([self.next(); 16]),
                    good_for: seconds(bytes),
                },
            }),
            Command::Prove { .. } => Done::Proven(match wrong {
                1 => Proven::NotEnrolled,
                2 => Proven::BadProof,
                3 => Proven::SessionGone,
                4 => Proven::Unavailable(unavailable),
                5 => Proven::Unbound("no"),
                _ => Proven::Token {
                    token: token(),
                    certified: ak_name(wrong == 7),
                    ticket: (choice & 64 == 64).then(|| bounded(b"ticket")),
                },
            }),
            Command::CheckStatement { .. } => Done::StatementChecked((wrong != 1).then_some(STATED_AT)),
            Command::ReadStatus { .. } => Done::Status(self.status(wrong, unavailable)),
            Command::Offer { .. } => Done::Offered(self.offered(choice, unavailable, bytes)),
            Command::FindUefi(_) | Command::KeepUefi(..) => Done::UefiFound(wrong % 2 == 1),
            Command::Restore(restore) => Done::Restored(self.restored(restore, wrong)),
            Command::Submit { .. } => Done::Submitted(match wrong {
                1 => Submitted::AlreadyAccepted,
                2 => Submitted::Superseded,
                3 => Submitted::TokenRejected,
                4 => Submitted::Gone,
                5 => Submitted::Invalid("no".to_owned()),
                6 => Submitted::Unavailable(unavailable),
                7 => Submitted::LogGone,
                _ => {
                    self.facts.passed += 1;
                    Submitted::Accepted(seconds(bytes))
                }
            }),
        }
    }

    fn next(&mut self) -> u8 {
        self.facts.counter = self.facts.counter.wrapping_add(1);
        self.facts.counter
    }

    fn status(&self, wrong: u8, unavailable: Unavailable) -> Status {
        let verdict = match wrong {
            1 => return Status::TokenRejected,
            2 => return Status::Gone,
            3 => return Status::Unavailable(unavailable),
            4 => Verdict::Fail,
            5 => Verdict::Pending,
            6 => Verdict::Timeout,
            _ => Verdict::Pass,
        };
        let passed = self.facts.passed;
        Status::Standing(Standing {
            verdict,
            attestation_count: passed,
            last_success: passed,
            interval: (passed % 2 == 1).then_some(Duration::from_secs(60)),
        })
    }

    fn offered(&mut self, choice: u8, unavailable: Unavailable, bytes: &mut Bytes) -> Offered {
        match choice % 8 {
            1 => Offered::NothingRequested,
            2 => Offered::TokenRejected,
            3 => Offered::NotEnrolled,
            4 => Offered::Early(seconds(bytes)),
            5 => Offered::Conflict,
            6 => match choice & 16 {
                0 => Offered::Unavailable(unavailable),
                _ => Offered::Invalid("no".to_owned()),
            },
            _ => {
                let mut requested = vec![Requested::Quote];
                if choice & 16 == 16 {
                    requested.push(Requested::Uefi);
                }
                if choice & 32 == 32 {
                    let offset = if choice & 64 == 64 { u64::from(bytes.u16()) } else { 0 };
                    requested.push(Requested::Ima { offset });
                }
                let nonce = Nonce::from([self.next(); 16]);
                let pcrs = PcrMask::try_from(if choice & 64 == 64 { 0xFFFF } else { 0x0401 }).expect("PCRs");
                let expires_at = self.now + seconds(bytes);
                Offered::Opened(Offer {
                    index: nonce.as_bytes()[0].into(),
                    nonce,
                    pcrs,
                    requested,
                    expires_at,
                })
            }
        }
    }

    fn restored(&self, restore: &keylime_mqtt_schemas::exchange::relay::Restore, wrong: u8) -> Restoring {
        let restored = Arc::new(Restored {
            quote: signed(),
            pcr_blob: vec![0; 668],
            ima: restore.ima.as_ref().and_then(|parts| Some(Arc::new(parts.text(&[]).ok()?.lines))),
            uefi: restore.uefi,
        });
        let pcrs = values(restore.offer.pcrs);
        match wrong {
            1 => Restoring::Refuted,
            2 => Restoring::Unbound("no"),
            4 => Restoring::Unreadable("no"),
            3 => Restoring::Unexplained { restored, pcrs, what: "a log" },
            _ => {
                let entries = u64::from(self.facts.counter);
                let ima = restore.ima.as_ref().map(|_| ImaState { entries, pcr10: Digest::of(&[]) });
                Restoring::Explained { restored, pcrs, ima }
            }
        }
    }
}
