//! Golden vectors: bytes on paper, held against the code in both directions. `vectors/README.md` says how to read them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says so by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ciborium::Value;
use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::fragment::Reassembly;
use keylime_mqtt_schemas::messages::{
    Accepted, Activation, Blob, BootMarker, Bounded, Brief, Challenge, Credential, Digest, Down, Enrol,
    Enrolled, Evidence, Heard, Hello, HelloTag, ImaSegment, Later, LaterReason, LogKind, Need, Nonce,
    NonceTag, NotYet, NotYetReason, Outcome, PcrMask, PcrTag, PcrValues, Presence, Proof, Prove, Question,
    Quote, Ready, ReadyTag, Refused, RefusedReason, Signed, State, Statement, Told, UefiLog, Unchanged, Up,
};
use keylime_mqtt_schemas::topics::Topics;
use keylime_mqtt_schemas::wire::{pack_up, unpack_down, unpack_up};

/// One vector of a file.
#[derive(Debug, Default)]
struct Vector {
    read_as: String,
    refused: Option<String>,
    text: Option<String>,
    /// Bytes, and their diagnostic notation where the file has it, payload by payload.
    payloads: Vec<(Vec<u8>, Option<String>)>,
}

impl Vector {
    fn only_payload(&self) -> &[u8] {
        assert_eq!(self.payloads.len(), 1, "one payload is enough for {}", self.read_as);
        &self.payloads[0].0
    }

    /// What came of reading it: the message shown, or the error.
    fn read(&self) -> Result<String, String> {
        fn said<T: std::fmt::Debug, E: std::fmt::Debug>(result: Result<T, E>) -> Result<String, String> {
            result.map(|value| format!("{value:?}")).map_err(|error| format!("{error:?}"))
        }
        match self.read_as.as_str() {
            "up" => said(decode::<Up>(self.only_payload())),
            "down" => said(decode::<Down>(self.only_payload())),
            "presence" => said(decode::<Presence>(self.only_payload())),
            "payload-up" => said(self.reassembled()),
            "payload-down" => said(unpack_down(self.only_payload())),
            "topic" => said(Topics::default().parse(self.text.as_deref().expect("a text"))),
            other => panic!("nothing is read as {other:?}"),
        }
    }

    /// What a bridge makes of the payloads; only the last may give something.
    fn reassembled(&self) -> Result<Up, keylime_mqtt_schemas::wire::WireError> {
        let mut reassembly = Reassembly::default();
        let (last, others) = self.payloads.split_last().expect("a payload");
        for (payload, _) in others {
            assert_eq!(unpack_up(payload.clone(), &mut reassembly, Duration::ZERO), Ok(None));
        }
        unpack_up(last.0.clone(), &mut reassembly, Duration::ZERO)
            .map(|up| up.expect("whole with the last payload"))
    }
}

/// All vectors of a folder by name.
fn vectors(folder: &str) -> BTreeMap<String, Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(folder);
    let mut files: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut all = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut name = None;
        for (number, line) in text.lines().enumerate() {
            read_line(line, &mut name, &mut all)
                .unwrap_or_else(|problem| panic!("{}:{}: {problem}: {line}", file.display(), number + 1));
        }
    }
    all
}

fn read_line(
    line: &str,
    name: &mut Option<String>,
    all: &mut BTreeMap<String, Vector>,
) -> Result<(), String> {
    let line =
        if line.starts_with("text:") { line } else { line.split('#').next().unwrap_or_default().trim() };
    if line.is_empty() {
        return Ok(());
    }
    if let Some(new) = line.strip_prefix("vector: ") {
        *name = Some(new.to_owned());
        let vector = Vector { payloads: vec![(Vec::new(), None)], ..Vector::default() };
        return all.insert(new.to_owned(), vector).map_or(Ok(()), |_| Err("a name used twice".to_owned()));
    }
    let vector = name.as_ref().and_then(|name| all.get_mut(name)).ok_or("no vector has begun")?;
    let payload = vector.payloads.last_mut().ok_or("no payload has begun")?;
    match line.split_once(": ") {
        Some(("as", value)) => value.clone_into(&mut vector.read_as),
        Some(("refused", value)) => vector.refused = Some(value.to_owned()),
        Some(("text", value)) => vector.text = Some(value.to_owned()),
        Some(("diag", value)) => payload.1 = Some(value.to_owned()),
        Some((key, _)) => return Err(format!("nothing is called {key:?}")),
        None if line.starts_with("--") => vector.payloads.push((Vec::new(), None)),
        None => payload.0.extend(bytes_of(line)?),
    }
    Ok(())
}

/// `a1 00*3` is `a1000000`.
fn bytes_of(line: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for word in line.split_whitespace() {
        let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
        let times = times.parse().map_err(|error| format!("{error}"))?;
        bytes.extend(hex::decode(digits).map_err(|error| format!("{error}"))?.repeat(times));
    }
    Ok(bytes)
}

/// RFC 8949 §8, as far as messages go.
fn diagnostic(value: &Value) -> String {
    match value {
        Value::Integer(number) => i128::from(*number).to_string(),
        Value::Bytes(bytes) => format!("h'{}'", hex::encode(bytes)),
        Value::Text(text) => format!("\"{text}\""),
        Value::Bool(truth) => truth.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(diagnostic).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let entry = |(key, inner): &(Value, Value)| format!("{}: {}", diagnostic(key), diagnostic(inner));
            format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        other => panic!("no message has {other:?}"),
    }
}

fn bounded<const MAX: usize>(hex: &str) -> Bounded<MAX> {
    Bounded::try_from(hex::decode(hex).unwrap()).unwrap()
}

fn nonce() -> Nonce {
    Nonce::from([
        0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
    ])
}

fn tag() -> NonceTag {
    nonce().tag()
}

fn boot() -> BootMarker {
    BootMarker::from([0xb0; 16])
}

fn digest() -> Digest {
    Digest::from([0xd1; 32])
}

fn pcrs(mask: u32) -> PcrMask {
    PcrMask::try_from(mask).unwrap()
}

fn signed() -> Signed {
    Signed { attest: bounded("ff544347801800"), signature: bounded("0014000b0004a1a2a3a4") }
}

fn values(of: &[(u8, u8)]) -> PcrValues {
    let mask = pcrs(of.iter().map(|(pcr, _)| 1 << pcr).sum());
    PcrValues::new(mask, of.iter().map(|(_, byte)| [*byte; 32]).collect()).unwrap()
}

fn statement() -> Up {
    Up::Statement(Statement { tag: tag(), signed: signed() })
}

/// What the vectors of devices say.
fn ups() -> Vec<(&'static str, Up)> {
    let enrol = |certificate: Option<&str>| {
        Up::Enrol(Enrol {
            ek_public: bounded("001a0001000b"),
            ak_public: bounded("001a00010016"),
            ek_certificate: certificate.map(bounded),
        })
    };
    let ready = Ready {
        boot: boot(),
        boot_time: 1_760_000_000,
        pcrs: PcrMask::ALL,
        ak_public: bounded("001a00010016"),
        statement: signed(),
        ima_entries: None,
        uefi: None,
        ticket: None,
        sleep: None,
        reference: None,
        ima_sha256: false,
    };
    let with_ima = Ready {
        boot_time: 0,
        pcrs: pcrs(1 << 10),
        ima_entries: Some(1311),
        ticket: Some(bounded("7e57ed")),
        ..ready.clone()
    };
    let full = Ready {
        boot_time: 1_760_000_000,
        pcrs: pcrs(0x4ff),
        uefi: Some(UefiLog { digest: digest(), size: 41_371 }),
        sleep: Some(3600),
        reference: Some(digest()),
        ima_sha256: true,
        ..with_ima.clone()
    };
    let not_yet = |reason| Up::NotYet(NotYet { tag: tag(), reason, seconds: 60 });
    let unchanged = |ima_entries| Up::Unchanged(Unchanged { ready: ReadyTag::from([0x4e; 8]), ima_entries });
    let hello = |padding: Option<&str>| {
        Up::Hello(Hello { tag: HelloTag::from([0x4e; 8]), padding: padding.map(bounded) })
    };
    let blob = |log, offset, part: &str, total| {
        Up::Blob(Blob { log, boot: boot().tag(), offset, part: bounded(part), total })
    };
    let evidence = |quote, pcrs, ima| Up::Evidence(Evidence { tag: tag(), quote, pcrs, ima });
    let brief = |restart_count| {
        Quote::Brief(Brief { clock: 86_400_000, signature: bounded("a1a2a3a4"), restart_count })
    };
    let nothing = Quote::Brief(Brief { clock: 0, signature: bounded(""), restart_count: None });
    let ima = || Some(ImaSegment { offset: 1311, packed: bounded("c01ac01a") });
    vec![
        ("enrol-without-certificate", enrol(None)),
        ("enrol", enrol(Some("3082030a"))),
        ("activation", Up::Activation(Activation { credential: digest(), auth_tag: [0xaa; 48].into() })),
        ("ready-quote-only", Up::Ready(ready)),
        ("ready-with-ima-and-ticket", Up::Ready(with_ima)),
        ("ready-full", Up::Ready(full)),
        ("proof", Up::Proof(Proof { tag: tag(), signed: signed() })),
        ("evidence-quote-only", evidence(Quote::Full(signed()), Some(values(&[(0, 0)])), None)),
        ("evidence-full", evidence(Quote::Full(signed()), Some(values(&[(0, 0), (10, 0x10)])), ima())),
        ("evidence-brief", evidence(brief(None), None, None)),
        ("evidence-brief-with-changes", evidence(brief(Some(3)), Some(values(&[(7, 7)])), ima())),
        ("evidence-without-values", evidence(nothing, Some(values(&[])), None)),
        ("blob-uefi", blob(LogKind::Uefi, 8192, "00000000030000", Some(9000))),
        ("blob-ima", blob(LogKind::Ima, 1000, "c01ac01a", None)),
        ("blob-end-of-ima", blob(LogKind::Ima, 1311, "", None)),
        ("statement", statement()),
        ("not-yet-clock-not-safe", not_yet(NotYetReason::ClockNotSafe)),
        ("not-yet-clock-behind", not_yet(NotYetReason::ClockBehind)),
        ("not-yet-tpm", not_yet(NotYetReason::Tpm)),
        ("not-yet-log", not_yet(NotYetReason::Log)),
        ("unchanged", unchanged(None)),
        ("unchanged-with-ima", unchanged(Some(1311))),
        ("hello", hello(None)),
        ("hello-with-padding", hello(Some("00000000"))),
    ]
}

/// What the vectors of bridges say.
fn downs() -> Vec<(&'static str, Down)> {
    let challenge = Challenge {
        nonce: nonce(),
        boot: boot().tag(),
        pcrs: pcrs(0x400),
        good_for: 1800,
        silence: 900,
        ima_offset: None,
        held: None,
        ticket: None,
        full: false,
        reference: false,
    };
    let held = Some(PcrTag::from([0x9e; 4]));
    let steady = Challenge { ima_offset: Some(1311), held, ..challenge.clone() };
    let in_full = Challenge { full: true, ..challenge.clone() };
    let with_reference = Challenge { ima_offset: Some(0), reference: true, ..challenge.clone() };
    let full = Challenge { held, ticket: Some(bounded("7e57ed")), full: true, ..with_reference.clone() };
    let need =
        Need { log: LogKind::Uefi, boot: boot().tag(), offset: 65_536, upto: 100_000, reference: false };
    let need_with_reference = Need { log: LogKind::Ima, offset: 0, upto: 1024, reference: true, ..need };
    let accepted = |outcome| Question::Accepted(Accepted { seconds: 60, outcome });
    let later = |reason| Question::Later(Later { seconds: 300, reason });
    let refused = |reason| Question::Refused(Refused { seconds: 3600, reason });
    let heard = |told| Question::Heard(Heard { tag: HelloTag::from([0x4e; 8]), told });
    let questions = [
        ("credential", Question::Credential(Credential { blob: bounded("badcc0de00000001") })),
        ("enrolled", Question::Enrolled(Enrolled {})),
        ("prove", Question::Prove(Prove { nonce: nonce() })),
        ("challenge-quote-only", Question::Challenge(challenge)),
        ("challenge-steady", Question::Challenge(steady)),
        ("challenge-to-answer-in-full", Question::Challenge(in_full)),
        ("challenge-with-reference", Question::Challenge(with_reference)),
        ("challenge-full", Question::Challenge(full)),
        ("need", Question::Need(need)),
        ("need-with-reference", Question::Need(need_with_reference)),
        ("state", Question::State(State { tag: tag(), ima_from: None })),
        ("state-with-ima", Question::State(State { tag: tag(), ima_from: Some(0) })),
        ("accepted-pass", accepted(Outcome::Pass)),
        ("accepted-fail", accepted(Outcome::Fail)),
        ("accepted-unknown", accepted(Outcome::Unknown)),
        ("later-again", later(LaterReason::Again)),
        ("later-not-enrolled", later(LaterReason::NotEnrolled)),
        ("later-no-policy", later(LaterReason::NoPolicy)),
        ("later-keylime", later(LaterReason::Keylime)),
        ("later-busy", later(LaterReason::Busy)),
        ("later-rebooted", later(LaterReason::Rebooted)),
        ("later-unusable", later(LaterReason::Unusable)),
        ("refused-unknown-ca", refused(RefusedReason::UnknownCa)),
        ("refused-no-certificate", refused(RefusedReason::NoCertificate)),
        ("refused-not-admitted", refused(RefusedReason::NotAdmitted)),
        ("refused-malformed", refused(RefusedReason::Malformed)),
        ("refused-other-tpm", refused(RefusedReason::OtherTpm)),
        ("refused-other-ak", refused(RefusedReason::OtherAk)),
        ("refused-activation", refused(RefusedReason::Activation)),
        ("refused-offer", refused(RefusedReason::Offer)),
        ("refused-boot", refused(RefusedReason::Boot)),
        ("refused-sleep", refused(RefusedReason::Sleep)),
        ("heard", heard(None)),
        ("heard-waiting", heard(Some(Told::Later(LaterReason::NotEnrolled)))),
        ("heard-refused", heard(Some(Told::Refused(RefusedReason::NoCertificate)))),
        ("heard-attested", heard(Some(Told::Attested(Outcome::Fail)))),
    ];
    let via = |name| (name == "challenge-full").then(|| "bridge-2".parse().unwrap());
    questions.into_iter().map(|(name, question)| (name, Down { question, via: via(name) })).collect()
}

#[test]
fn every_accepted_vector_means_what_it_says_and_is_encoded_to_the_same_bytes() {
    let mut vectors = vectors("accepted");
    for (name, up) in ups() {
        let vector = vectors.remove(name).unwrap_or_else(|| panic!("no vector {name}"));
        assert_eq!(vector.read_as, "up", "{name}");
        assert_eq!(decode::<Up>(vector.only_payload()).as_ref(), Ok(&up), "{name}");
        assert_eq!(hex::encode(encode(&up).unwrap()), hex::encode(vector.only_payload()), "{name}");
    }
    for (name, down) in downs() {
        let vector = vectors.remove(name).unwrap_or_else(|| panic!("no vector {name}"));
        assert_eq!(vector.read_as, "down", "{name}");
        assert_eq!(decode::<Down>(vector.only_payload()).as_ref(), Ok(&down), "{name}");
        assert_eq!(hex::encode(encode(&down).unwrap()), hex::encode(vector.only_payload()), "{name}");
    }
    for (name, online) in [("presence-online", true), ("presence-offline", false)] {
        let vector = vectors.remove(name).unwrap_or_else(|| panic!("no vector {name}"));
        assert_eq!(decode::<Presence>(vector.only_payload()), Ok(Presence { online }), "{name}");
        assert_eq!(encode(&Presence { online }).unwrap(), vector.only_payload(), "{name}");
    }
    let fragments = vectors.remove("statement-in-fragments").expect("the vector of fragments");
    assert_eq!(fragments.payloads.len(), 3);
    assert_eq!(fragments.reassembled(), Ok(statement()));
    let unnamed: BTreeSet<_> = vectors.keys().collect();
    assert!(unnamed.is_empty(), "vectors that no value stands for: {unnamed:?}");
}

#[test]
fn the_diagnostic_notation_beside_the_bytes_is_theirs() {
    for (name, vector) in vectors("accepted") {
        for (bytes, notation) in &vector.payloads {
            let value: Value = ciborium::from_reader(&**bytes).unwrap();
            assert_eq!(Some(diagnostic(&value)), *notation, "{name}");
        }
    }
}

#[test]
fn every_refused_vector_is_refused_for_the_reason_it_names() {
    let vectors = vectors("refused");
    for (name, vector) in &vectors {
        let expected = vector.refused.clone().unwrap_or_else(|| panic!("{name} names no error"));
        assert_eq!(vector.read(), Err(expected), "{name}");
    }
    for file in ["nothing", "a-number-alone", "a-nonce-of-15-bytes", "a-first-contact-in-fragments", "no-id"]
    {
        assert!(vectors.contains_key(file), "the file with {file} was not read");
    }
}

#[test]
fn the_refused_vectors_name_every_error_of_the_codec_that_bytes_can_cause() {
    let named: BTreeSet<_> = vectors("refused").into_values().filter_map(|vector| vector.refused).collect();
    for error in ["Truncated", "Trailing", "Form", "Shape", "NotDeterministic", "TooDeep", "TooManyItems"] {
        assert!(named.contains(error), "{error}");
    }
    assert!(named.iter().any(|error| error.starts_with("TooLarge")));
}

/// The vectors are written by hand, so their fragments are shorter than any that this code makes.
#[test]
fn fragments_that_this_code_makes_have_the_form_of_the_vectors() {
    let Some((_, Up::Blob(blob))) = ups().into_iter().find(|(name, _)| *name == "blob-uefi") else {
        unreachable!()
    };
    let large = Up::Blob(Blob { part: bounded(&"5a".repeat(1000)), ..blob });
    let payloads = pack_up(&large, 7, 512).unwrap();
    let heads: Vec<String> = payloads.iter().map(|payload| hex::encode(&payload[..4])).collect();
    assert_eq!(heads, ["84070003", "84070103", "84070203"]);
}
