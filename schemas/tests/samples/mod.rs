//! Messages of every kind for the tests: minimal, full, as large as allowed, and generated.

#![allow(dead_code, reason = "each test binary uses its part of the samples")]

use keylime_mqtt_schemas::messages::{
    Accepted, Activation, Blob, BootMarker, BootTag, Bounded, Brief, Challenge, Credential, Digest, Down,
    Enrol, Enrolled, Evidence, Heard, Hello, HelloTag, ImaSegment, Later, LaterReason, LogKind, Need, Nonce,
    NonceTag, NotYet, NotYetReason, Outcome, PcrMask, PcrTag, PcrValues, Proof, Prove, Question, Quote,
    Ready, ReadyTag, Refused, RefusedReason, Signed, State, Statement, Told, UefiLog, Unchanged, Up,
};
use keylime_mqtt_schemas::topics::Via;
use proptest::prelude::*;

/// How much a sample carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// No optional field, empty byte strings, zeros.
    Minimal,
    /// Every field, with values of usual size.
    Full,
    /// Every field, as large as it may be.
    Maximal,
}

/// Every amount.
pub(crate) const FILLS: [Fill; 3] = [Fill::Minimal, Fill::Full, Fill::Maximal];

const LATER_REASONS: [LaterReason; 7] = [
    LaterReason::Again,
    LaterReason::NotEnrolled,
    LaterReason::NoPolicy,
    LaterReason::Keylime,
    LaterReason::Busy,
    LaterReason::Rebooted,
    LaterReason::Unusable,
];

const REFUSED_REASONS: [RefusedReason; 10] = [
    RefusedReason::UnknownCa,
    RefusedReason::NoCertificate,
    RefusedReason::NotAdmitted,
    RefusedReason::Malformed,
    RefusedReason::OtherTpm,
    RefusedReason::OtherAk,
    RefusedReason::Activation,
    RefusedReason::Offer,
    RefusedReason::Boot,
    RefusedReason::Sleep,
];

const NOT_YET_REASONS: [NotYetReason; 4] =
    [NotYetReason::ClockNotSafe, NotYetReason::ClockBehind, NotYetReason::Tpm, NotYetReason::Log];

const OUTCOMES: [Outcome; 3] = [Outcome::Pass, Outcome::Fail, Outcome::Unknown];

/// A byte string of its field's type; panics when it is too long, which a test wants to know.
pub(crate) fn bytes<const MAX: usize>(length: usize, byte: u8) -> Bounded<MAX> {
    Bounded::try_from(vec![byte; length]).unwrap()
}

impl Fill {
    fn bytes<const MAX: usize>(self, usual: usize) -> Bounded<MAX> {
        let length = match self {
            Self::Minimal => 0,
            Self::Full => usual,
            Self::Maximal => MAX,
        };
        bytes(length, 0xb5)
    }

    fn u64(self, usual: u64) -> u64 {
        match self {
            Self::Minimal => 0,
            Self::Full => usual,
            Self::Maximal => u64::MAX,
        }
    }

    fn u32(self, usual: u32) -> u32 {
        match self {
            Self::Minimal => 0,
            Self::Full => usual,
            Self::Maximal => u32::MAX,
        }
    }

    fn optional<T>(self, value: T) -> Option<T> {
        (self != Self::Minimal).then_some(value)
    }

    /// The first of a list of words, the second, or the last.
    fn one_of<T: Copy>(self, words: &[T]) -> T {
        match self {
            Self::Minimal => words[0],
            Self::Full => words[1],
            Self::Maximal => words[words.len() - 1],
        }
    }

    fn pcrs(self) -> PcrMask {
        match self {
            Self::Minimal => PcrMask::default(),
            Self::Full => PcrMask::try_from(1 << 10 | 0xff).unwrap(),
            Self::Maximal => PcrMask::ALL,
        }
    }

    fn pcr_values(self) -> PcrValues {
        let values = self.pcrs().iter().map(|pcr| [pcr; 32]).collect();
        PcrValues::new(self.pcrs(), values).unwrap()
    }

    fn signed(self) -> Signed {
        Signed { attest: self.bytes(145), signature: self.bytes(262) }
    }

    fn log(self) -> LogKind {
        self.one_of(&[LogKind::Uefi, LogKind::Ima])
    }
}

fn nonce() -> Nonce {
    Nonce::from([0x17; 16])
}

fn boot() -> BootMarker {
    BootMarker::from([0xb0; 16])
}

fn digest() -> Digest {
    Digest::from([0xd1; 32])
}

/// One message of every kind that a device sends, and evidence in its brief form too.
pub(crate) fn ups(fill: Fill) -> Vec<Up> {
    let tag = nonce().tag();
    let evidence = Evidence {
        tag,
        quote: Quote::Brief(Brief {
            clock: fill.u64(86_400_000),
            signature: fill.bytes(256),
            restart_count: fill.optional(fill.u32(3)),
        }),
        pcrs: fill.optional(fill.pcr_values()),
        ima: fill.optional(ImaSegment { offset: fill.u64(1311), packed: fill.bytes(4000) }),
    };
    vec![
        Up::Enrol(Enrol {
            ek_public: fill.bytes(314),
            ak_public: fill.bytes(280),
            ek_certificate: fill.optional(fill.bytes(1200)),
        }),
        Up::Activation(Activation { credential: digest(), auth_tag: [0xaa; 48].into() }),
        Up::Ready(Ready {
            boot: boot(),
            boot_time: fill.u64(1_760_000_000),
            pcrs: fill.pcrs(),
            ak_public: fill.bytes(280),
            statement: fill.signed(),
            ima_entries: fill.optional(fill.u64(1311)),
            uefi: fill.optional(UefiLog { digest: digest(), size: fill.u32(41_371) }),
            ticket: fill.optional(fill.bytes(150)),
            sleep: fill.optional(fill.u32(3600)),
            reference: fill.optional(digest()),
            ima_sha256: fill != Fill::Minimal,
        }),
        Up::Proof(Proof { tag, signed: fill.signed() }),
        Up::Evidence(Evidence { quote: Quote::Full(fill.signed()), ..evidence.clone() }),
        Up::Evidence(evidence),
        Up::Blob(Blob {
            log: fill.log(),
            boot: boot().tag(),
            offset: fill.u64(14_000),
            part: fill.bytes(14_000),
            total: fill.optional(fill.u32(9_000)),
        }),
        Up::Statement(Statement { tag, signed: fill.signed() }),
        Up::NotYet(NotYet { tag, reason: fill.one_of(&NOT_YET_REASONS), seconds: fill.u32(60) }),
        Up::Unchanged(Unchanged {
            ready: ReadyTag::from([0x4e; 8]),
            ima_entries: fill.optional(fill.u64(1311)),
        }),
        Up::Hello(Hello { tag: HelloTag::from([0x4e; 8]), padding: fill.optional(fill.bytes(4000)) }),
    ]
}

/// One message of every kind that a bridge sends.
pub(crate) fn downs(fill: Fill) -> Vec<Down> {
    let questions = [
        Question::Credential(Credential { blob: fill.bytes(336) }),
        Question::Enrolled(Enrolled {}),
        Question::Prove(Prove { nonce: nonce() }),
        Question::Challenge(Challenge {
            nonce: nonce(),
            boot: boot().tag(),
            pcrs: fill.pcrs(),
            good_for: fill.u32(1800),
            silence: fill.u32(900),
            ima_offset: fill.optional(fill.u64(1311)),
            held: fill.optional(PcrTag::from([0x9e; 4])),
            ticket: fill.optional(fill.bytes(150)),
            full: fill != Fill::Minimal,
            reference: fill != Fill::Minimal,
        }),
        Question::Need(Need {
            log: fill.log(),
            boot: boot().tag(),
            offset: fill.u64(14_000),
            upto: fill.u64(41_371),
            reference: fill != Fill::Minimal,
        }),
        Question::State(State { tag: nonce().tag(), ima_from: fill.optional(fill.u64(1311)) }),
        Question::Accepted(Accepted { seconds: fill.u32(60), outcome: fill.one_of(&OUTCOMES) }),
        Question::Later(Later { seconds: fill.u32(60), reason: fill.one_of(&LATER_REASONS) }),
        Question::Refused(Refused { seconds: fill.u32(3600), reason: fill.one_of(&REFUSED_REASONS) }),
        Question::Heard(Heard {
            tag: HelloTag::from([0x4e; 8]),
            told: fill.optional(fill.one_of(&[
                Told::Attested(Outcome::Pass),
                Told::Later(LaterReason::NotEnrolled),
                Told::Refused(RefusedReason::Sleep),
            ])),
        }),
    ];
    let via = match fill {
        Fill::Minimal => None,
        Fill::Full => Some("bridge-2"),
        Fill::Maximal => Some("0123456789_-AZaz"),
    };
    questions
        .into_iter()
        .map(|question| Down { question, via: via.map(|via| via.parse().unwrap()) })
        .collect()
}

/// Any message of a device; lengths lean to where encodings change and limits lie.
pub(crate) fn any_up() -> impl Strategy<Value = Up> {
    let enrol = (any_bytes(), any_bytes(), proptest::option::of(any_bytes())).prop_map(
        |(ek_public, ak_public, ek_certificate)| Up::Enrol(Enrol { ek_public, ak_public, ek_certificate }),
    );
    let activation = (any::<[u8; 32]>(), any::<u8>()).prop_map(|(credential, byte)| {
        Up::Activation(Activation { credential: credential.into(), auth_tag: [byte; 48].into() })
    });
    let uefi = (any_digest(), any::<u32>()).prop_map(|(digest, size)| UefiLog { digest, size });
    let ready = (
        (any_boot(), any_u64(), any_pcrs(), any_bytes(), any_signed()),
        (
            proptest::option::of(any_u64()),
            proptest::option::of(uefi),
            proptest::option::of(any_bytes()),
            proptest::option::of(any::<u32>()),
            proptest::option::of(any_digest()),
            any::<bool>(),
        ),
    )
        .prop_map(
            |(
                (boot, boot_time, pcrs, ak_public, statement),
                (ima_entries, uefi, ticket, sleep, reference, ima_sha256),
            )| {
                Up::Ready(Ready {
                    boot,
                    boot_time,
                    pcrs,
                    ak_public,
                    statement,
                    ima_entries,
                    uefi,
                    ticket,
                    sleep,
                    reference,
                    ima_sha256,
                })
            },
        );
    let proof = (any_tag(), any_signed()).prop_map(|(tag, signed)| Up::Proof(Proof { tag, signed }));
    let brief = (any_u64(), any_bytes(), proptest::option::of(any::<u32>())).prop_map(
        |(clock, signature, restart_count)| Quote::Brief(Brief { clock, signature, restart_count }),
    );
    let quote = prop_oneof![any_signed().prop_map(Quote::Full), brief];
    let ima = (any_u64(), any_bytes()).prop_map(|(offset, packed)| ImaSegment { offset, packed });
    let evidence = (any_tag(), quote, proptest::option::of(any_pcr_values()), proptest::option::of(ima))
        .prop_map(|(tag, quote, pcrs, ima)| Up::Evidence(Evidence { tag, quote, pcrs, ima }));
    let blob = (any_log(), any_boot_tag(), any_u64(), any_bytes(), proptest::option::of(any::<u32>()))
        .prop_map(|(log, boot, offset, part, total)| Up::Blob(Blob { log, boot, offset, part, total }));
    let statement =
        (any_tag(), any_signed()).prop_map(|(tag, signed)| Up::Statement(Statement { tag, signed }));
    let not_yet = (any_tag(), proptest::sample::select(&NOT_YET_REASONS[..]), any::<u32>())
        .prop_map(|(tag, reason, seconds)| Up::NotYet(NotYet { tag, reason, seconds }));
    let unchanged = (any::<[u8; 8]>(), proptest::option::of(any_u64()))
        .prop_map(|(ready, ima_entries)| Up::Unchanged(Unchanged { ready: ready.into(), ima_entries }));
    let hello = (any::<[u8; 8]>(), proptest::option::of(any_bytes()))
        .prop_map(|(tag, padding)| Up::Hello(Hello { tag: tag.into(), padding }));
    prop_oneof![enrol, activation, ready, proof, evidence, blob, statement, not_yet, unchanged, hello]
}

fn any_told() -> impl Strategy<Value = Told> {
    prop_oneof![
        proptest::sample::select(&LATER_REASONS[..]).prop_map(Told::Later),
        proptest::sample::select(&REFUSED_REASONS[..]).prop_map(Told::Refused),
        proptest::sample::select(&OUTCOMES[..]).prop_map(Told::Attested),
    ]
}

/// Any message of a bridge.
pub(crate) fn any_down() -> impl Strategy<Value = Down> {
    let challenge = (
        (any_nonce(), any_boot_tag(), any_pcrs(), any::<u32>(), any::<u32>()),
        (
            proptest::option::of(any_u64()),
            proptest::option::of(any::<[u8; 4]>()),
            proptest::option::of(any_bytes()),
            any::<bool>(),
            any::<bool>(),
        ),
    )
        .prop_map(
            |((nonce, boot, pcrs, good_for, silence), (ima_offset, held, ticket, full, reference))| {
                let held = held.map(PcrTag::from);
                Question::Challenge(Challenge {
                    nonce,
                    boot,
                    pcrs,
                    good_for,
                    silence,
                    ima_offset,
                    held,
                    ticket,
                    full,
                    reference,
                })
            },
        );
    let question = prop_oneof![
        any_bytes().prop_map(|blob| Question::Credential(Credential { blob })),
        Just(Question::Enrolled(Enrolled {})),
        any_nonce().prop_map(|nonce| Question::Prove(Prove { nonce })),
        challenge,
        (any_log(), any_boot_tag(), any_u64(), any_u64(), any::<bool>()).prop_map(
            |(log, boot, offset, upto, reference)| {
                Question::Need(Need { log, boot, offset, upto, reference })
            }
        ),
        (any_tag(), proptest::option::of(any_u64()))
            .prop_map(|(tag, ima_from)| Question::State(State { tag, ima_from })),
        (any::<u32>(), proptest::sample::select(&OUTCOMES[..]))
            .prop_map(|(seconds, outcome)| Question::Accepted(Accepted { seconds, outcome })),
        (any::<u32>(), proptest::sample::select(&LATER_REASONS[..]))
            .prop_map(|(seconds, reason)| Question::Later(Later { seconds, reason })),
        (any::<u32>(), proptest::sample::select(&REFUSED_REASONS[..]))
            .prop_map(|(seconds, reason)| Question::Refused(Refused { seconds, reason })),
        (any::<[u8; 8]>(), proptest::option::of(any_told()))
            .prop_map(|(tag, told)| Question::Heard(Heard { tag: tag.into(), told })),
    ];
    (question, proptest::option::of(any_via())).prop_map(|(question, via)| Down { question, via })
}

fn any_bytes<const MAX: usize>() -> impl Strategy<Value = Bounded<MAX>> {
    // 23, 24, 255, 256, 65535 and 65536 are where the length takes another byte
    let lengths = [0, 1, 23, 24, 255, 256, 65_535, 65_536, MAX - 1, MAX];
    let fitting: Vec<usize> = lengths.into_iter().filter(|length| *length <= MAX).collect();
    let edge =
        (proptest::sample::select(fitting), any::<u8>()).prop_map(|(length, byte)| bytes(length, byte));
    let short = proptest::collection::vec(any::<u8>(), 0..40).prop_map(|vec| Bounded::try_from(vec).unwrap());
    prop_oneof![1 => edge, 3 => short]
}

fn any_u64() -> impl Strategy<Value = u64> {
    // of every width, since the encoding has five
    (any::<u64>(), 0..64_u32).prop_map(|(value, shift)| value >> shift)
}

fn any_nonce() -> impl Strategy<Value = Nonce> {
    any::<[u8; 16]>().prop_map(Nonce::from)
}

fn any_tag() -> impl Strategy<Value = NonceTag> {
    any::<[u8; 4]>().prop_map(NonceTag::from)
}

fn any_boot() -> impl Strategy<Value = BootMarker> {
    any::<[u8; 16]>().prop_map(BootMarker::from)
}

fn any_boot_tag() -> impl Strategy<Value = BootTag> {
    any::<[u8; 4]>().prop_map(BootTag::from)
}

fn any_digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from)
}

fn any_pcrs() -> impl Strategy<Value = PcrMask> {
    (0..=0x00ff_ffff_u32).prop_map(|bits| PcrMask::try_from(bits).unwrap())
}

fn any_pcr_values() -> impl Strategy<Value = PcrValues> {
    (any_pcrs(), any::<u8>()).prop_map(|(mask, byte)| {
        let values = mask.iter().map(|pcr| [pcr ^ byte; 32]).collect();
        PcrValues::new(mask, values).unwrap()
    })
}

fn any_log() -> impl Strategy<Value = LogKind> {
    prop_oneof![Just(LogKind::Uefi), Just(LogKind::Ima)]
}

fn any_via() -> impl Strategy<Value = Via> {
    "[A-Za-z0-9_-]{1,16}".prop_map(|via| via.parse().unwrap())
}

fn any_signed() -> impl Strategy<Value = Signed> {
    (any_bytes(), any_bytes()).prop_map(|(attest, signature)| Signed { attest, signature })
}
