//! Keylime's answers, or those of whatever else listens in its place.

use std::sync::LazyLock;
use std::time::Duration;

use keylime_mqtt_bridge::keylime::{
    Answer, EndpointSettings, EvidenceType, Offered, Proved, Registrar, Registration, SessionOpening,
    StatusOutcome, Submission, Verifier,
};

use crate::bytes::Bytes;

/// Those that mean something to some call, and one that means nothing.
const STATUSES: [u16; 16] = [200, 201, 202, 400, 401, 403, 404, 409, 410, 415, 422, 429, 500, 503, 301, 299];
/// What no session, token or challenge is believed to outlive.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What no attestation interval is longer than.
const LONGEST_INTERVAL: u64 = 7 * 24 * 3600;
/// Characters of Keylime's that an operator is shown at most.
const LONGEST_DETAIL: usize = 300;

/// Asked nothing: only what is read of answers is of interest.
static SETTINGS: LazyLock<EndpointSettings> = LazyLock::new(|| EndpointSettings {
    url: "http://localhost".parse().expect("a URL"),
    tls: None,
    timeout: Duration::from_secs(1),
    lanes: 1,
});
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(&SETTINGS).expect("a client"));
static REGISTRAR: LazyLock<Registrar> = LazyLock::new(|| Registrar::new(&SETTINGS).expect("a client"));

/// One answer, read as that to each call: what is made of it is within its bounds.
pub(crate) fn answers(input: &[u8]) {
    let mut bytes = Bytes(input);
    let status = STATUSES.get(usize::from(bytes.byte()) % STATUSES.len()).copied().unwrap_or_default();
    let location = String::from_utf8(bytes.piece().to_vec()).ok();
    let answer = Answer::whole(status, location, bytes.0.to_vec());
    session(&answer);
    attestation(&answer);
    match VERIFIER.read_submission(&answer) {
        Submission::Accepted { seconds_to_next } => {
            assert!(status == 202 && seconds_to_next.unwrap_or_default() <= LONGEST_INTERVAL);
        }
        Submission::Invalid { detail } => readable(&detail),
        _ => assert_ne!(status, 202, "received, and said not to be"),
    }
    if let StatusOutcome::Known(known) = VERIFIER.read_status(&answer) {
        let interval = known.interval().map_or(1, |interval| interval.as_secs());
        assert!(status == 200 && (1..=LONGEST_INTERVAL).contains(&interval));
    }
    if let Registration::Registered { blob } = REGISTRAR.read_registration(&answer) {
        assert!(status == 200 && !blob.is_empty() && blob.len() <= input.len());
    }
    REGISTRAR.read_activation(&answer);
}

fn session(answer: &Answer) {
    if let SessionOpening::Opened(opened) = VERIFIER.read_opening(answer) {
        // it becomes part of a path
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        assert!(!opened.session_id.is_empty() && opened.session_id.bytes().all(plain));
        assert!(opened.good_for > Duration::ZERO && opened.good_for <= LONGEST);
    }
    if let Proved::Token { token, good_for } = VERIFIER.read_proved(answer) {
        // it becomes a header
        assert!(!token.expose().is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(good_for > Duration::ZERO && good_for <= LONGEST);
    }
}

fn attestation(answer: &Answer) {
    match VERIFIER.read_offered(answer) {
        Offered::Challenged(challenged) => {
            let wants = |kind| challenged.order.iter().filter(|wanted| **wanted == kind).count();
            assert_eq!(wants(EvidenceType::TpmQuote), 1, "{challenged:?}");
            assert_eq!(wants(EvidenceType::UefiLog), usize::from(challenged.uefi), "{challenged:?}");
            assert_eq!(wants(EvidenceType::ImaLog), usize::from(challenged.ima_offset.is_some()));
            assert!(challenged.pcr_mask < 1 << 24, "{challenged:?}");
            assert!(challenged.good_for > Duration::ZERO && challenged.good_for <= LONGEST);
        }
        Offered::Invalid { detail } => readable(&detail),
        _ => (),
    }
}

/// What an operator is shown forges no line of a log.
fn readable(detail: &str) {
    assert!(detail.chars().count() <= LONGEST_DETAIL && !detail.chars().any(char::is_control), "{detail:?}");
}
