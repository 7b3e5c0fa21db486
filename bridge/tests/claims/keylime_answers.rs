//! Claims about the REST client, against a scripted HTTPS server: each answer of Keylime has its meaning, and everything else none.

use crate::fixtures::{base64, bytes, json};
use crate::scripted::{Play, Scripted, answer, error, error_v2};
use keylime_mqtt_bridge::keylime::{
    Activation, AttestationStatus, Capabilities, EvidenceBody, EvidenceType, ImaSegment, Offered, Proved,
    Reason, Registrar, Registration, SessionOpening, SessionToken, StatusOutcome, Submission, UefiText,
    Unavailable, Verifier, trust_from_ca_file,
};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

pub const ID: &str = "aaaaaaaa-0000-4000-8000-000000000001";
pub const ORDER: [EvidenceType; 3] = [EvidenceType::TpmQuote, EvidenceType::UefiLog, EvidenceType::ImaLog];

pub fn token() -> SessionToken {
    SessionToken::new(Zeroizing::new("uuid.t0k3n".to_owned())).unwrap()
}

pub fn capabilities() -> Capabilities {
    let public = base64(&json("keylime/evidence.json")["ak_public"]);
    let sent = json("keylime/capabilities.json");
    let key = &sent["data"]["attributes"]["evidence_supported"][0]["capabilities"]["certification_keys"][0];
    Capabilities {
        ak_public: public,
        ak_name: hex::decode(key["local_identifier"].as_str().unwrap()).unwrap(),
        ak_bits: 2048,
        pcr_mask: 0xFF_FFFF,
        ima_entries: Some(1),
        uefi: true,
        boot_time: 1_795_465_138,
    }
}

pub fn evidence() -> EvidenceBody {
    let quote = &json("keylime/evidence.json")["quote"];
    EvidenceBody {
        attest: base64(&quote["message"]),
        signature: base64(&quote["signature"]),
        pcr_blob: base64(&quote["subject_data"]),
        ima: ImaSegment::of(Arc::new(b"10 00 ima-ng sha256:00 boot_aggregate\n".to_vec())),
        uefi: UefiText::of(&[1, 2, 3]),
    }
}

fn created(index: &str) -> Play {
    let location = format!("/v3.0/agents/{ID}/attestations/{index}");
    Play::Answer(201, vec![("Location", location)], bytes("keylime/challenge.json"))
}

async fn registrar(script: Vec<Play>) -> (Scripted, Registrar) {
    let server = Scripted::start(script).await;
    let registrar = Registrar::new(&server.settings).unwrap();
    (server, registrar)
}

async fn verifier(script: Vec<Play>) -> (Scripted, Verifier) {
    let server = Scripted::start(script).await;
    let verifier = Verifier::new(&server.settings).unwrap();
    (server, verifier)
}

fn reason(unavailable: Unavailable) -> Reason {
    unavailable.reason
}

#[tokio::test]
async fn a_registration_is_what_keylimes_own_agent_sends() {
    let (server, registrar) = registrar(vec![answer(200, bytes("keylime/registered.json"))]).await;
    let evidence = json("keylime/evidence.json");
    let (ek, ak) = (base64(&evidence["ek_public"]), base64(&evidence["ak_public"]));
    let Registration::Registered { blob } = registrar.register(ID, &ek, Some(&[1, 2]), &ak).await else {
        panic!("not registered");
    };
    assert_eq!(blob[..8], [0xBA, 0xDC, 0xC0, 0xDE, 0, 0, 0, 1]);
    let seen = &server.seen()[0];
    assert_eq!(seen.line, format!("POST /v2.6/agents/{ID} HTTP/1.1"));
    assert!(seen.headers.contains("content-type: application/json"));
    let body = seen.json();
    assert_eq!(body["ek_tpm"], evidence["ek_public"]);
    assert_eq!(body["aik_tpm"], evidence["ak_public"]);
    assert_eq!(body["ekcert"], "AQI=");
    assert_eq!(body["mtls_cert"], "disabled");
}

#[tokio::test]
async fn each_answer_of_the_registrar_has_its_meaning() {
    let later = Play::Answer(429, vec![("Retry-After", "7".to_owned())], vec![]);
    let script = vec![
        error_v2(403),
        error_v2(400),
        answer(500, ""),
        later,
        answer(200, r#"{"results":{"blob":"!"}}"#),
        answer(302, ""),
    ];
    let (_server, registrar) = registrar(script).await;
    assert!(matches!(registrar.register(ID, &[], None, &[]).await, Registration::Conflict));
    assert!(matches!(registrar.register(ID, &[], None, &[]).await, Registration::Rejected { status: 400 }));
    let mut unavailable = Vec::new();
    for _ in 0..4 {
        match registrar.register(ID, &[], None, &[]).await {
            Registration::Unavailable(why) => unavailable.push((why.reason, why.retry_after)),
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        (Reason::ServerError, None),
        (Reason::TooMany, Some(Duration::from_secs(7))),
        (Reason::Garbage, None),
        (Reason::Redirected, None),
    ];
    assert_eq!(unavailable, expected);
    let counted: u64 = registrar.unavailable_counts().iter().map(|(_, n)| n).sum();
    assert_eq!(counted, 4);
}

#[tokio::test]
async fn each_answer_to_an_activation_has_its_meaning() {
    let script =
        vec![answer(200, bytes("keylime/activated.json")), error_v2(400), error_v2(404), answer(503, "{}")];
    let (server, registrar) = registrar(script).await;
    assert!(matches!(registrar.activate(ID, &[0xAB; 48]).await, Activation::Activated));
    assert!(matches!(registrar.activate(ID, &[0xAB; 48]).await, Activation::WrongTag));
    assert!(matches!(registrar.activate(ID, &[0xAB; 48]).await, Activation::Unknown));
    assert!(matches!(registrar.activate(ID, &[0xAB; 48]).await, Activation::Unavailable(_)));
    let seen = &server.seen()[0];
    assert_eq!(seen.line, format!("PUT /v2.6/agents/{ID} HTTP/1.1"));
    assert_eq!(seen.json()["auth_tag"], "ab".repeat(48));
}

#[tokio::test]
async fn a_session_is_opened_and_proven_as_keylimes_own_agent_does() {
    let script = vec![answer(200, bytes("keylime/session.json")), answer(200, bytes("keylime/token.json"))];
    let (server, verifier) = verifier(script).await;
    let SessionOpening::Opened(opened) = verifier.open_session(ID).await else { panic!("no session") };
    assert_eq!(opened.session_id, "7bef2d25-f40b-446d-af31-6e8dc0fb80f5");
    assert_eq!(hex::encode(opened.nonce), "ce4faed11a6687fc46937504785dcd9d");
    assert_eq!(opened.good_for, Duration::from_secs(60));
    let proof = &json("keylime/evidence.json")["proof"];
    let (message, signature) = (base64(&proof["message"]), base64(&proof["signature"]));
    let proved = verifier.prove(ID, &opened.session_id, &message, &signature).await;
    let Proved::Token { token, good_for } = proved else { panic!("{proved:?}") };
    assert!(token.expose().starts_with("7bef2d25"));
    assert_eq!(good_for, Duration::from_secs(180));
    let [opening, proving] = <[_; 2]>::try_from(server.seen()).unwrap();
    assert_eq!(opening.line, "POST /v3.0/sessions HTTP/1.1");
    let expected = format!(
        r#"{{"data":{{"type":"session","attributes":{{"agent_id":"{ID}","authentication_supported":[{{"authentication_class":"pop","authentication_type":"tpm_pop"}}]}}}}}}"#
    );
    assert_eq!(
        String::from_utf8(opening.body).unwrap(),
        expected,
        "byte for byte what the official agent sends"
    );
    assert_eq!(proving.line, format!("PATCH /v3.0/sessions/{} HTTP/1.1", opened.session_id));
    assert!(proving.headers.contains("content-type: application/vnd.api+json"));
    assert!(!proving.headers.contains("authorization"));
    let data = &proving.json()["data"]["attributes"]["authentication_provided"][0]["data"];
    assert_eq!(data["message"], proof["message"]);
}

#[tokio::test]
async fn each_answer_to_a_session_request_has_its_meaning() {
    let limited = Play::Answer(429, vec![("Retry-After", "59".to_owned())], b"{}".to_vec());
    let short =
        String::from_utf8(bytes("keylime/session.json")).unwrap().replace("zk+u0Rpmh/xGk3UEeF3NnQ==", "AAAA");
    let evil = String::from_utf8(bytes("keylime/session.json")).unwrap().replace("7bef2d25-", "../../v2.6/");
    let words = |detail: &str| {
        format!(r#"{{"errors":[{{"status":"429","title":"Too Many Requests","detail":"{detail}"}}]}}"#)
    };
    let agent_limited = answer(429, words("Rate limit exceeded for this agent. Please try again later."));
    let address_limited = answer(429, words("Rate limit exceeded. Please try again later."));
    let script = vec![
        limited,
        agent_limited,
        address_limited,
        answer(500, ""),
        answer(200, short),
        answer(200, evil),
        answer(200, "["),
    ];
    let (_server, verifier) = verifier(script).await;
    for expected in [(Some(Duration::from_secs(59)), false), (None, true), (None, false)] {
        let SessionOpening::RateLimited { retry_after, agent_only } = verifier.open_session(ID).await else {
            panic!("{expected:?}")
        };
        assert_eq!((retry_after, agent_only), expected);
    }
    for expected in [Reason::ServerError, Reason::Garbage, Reason::Garbage, Reason::Garbage] {
        let SessionOpening::Unavailable(why) = verifier.open_session(ID).await else { panic!("{expected}") };
        assert_eq!(reason(why), expected);
    }
}

#[tokio::test]
async fn each_answer_to_a_proof_has_its_meaning() {
    let failed =
        r#"{"data":{"type":"session","id":"s","attributes":{"evaluation":"fail","token_expires_at":null}}}"#;
    let bare = r#"{"data":{"type":"session","id":"s","attributes":{"evaluation":"pass"}}}"#;
    let script = vec![
        answer(200, failed),
        answer(401, failed),
        answer(404, "{}"),
        answer(400, "{}"),
        answer(500, ""),
        answer(200, bare),
        answer(503, ""),
    ];
    let (_server, verifier) = verifier(script).await;
    assert!(matches!(verifier.prove(ID, "s", &[], &[]).await, Proved::NotEnrolled));
    assert!(matches!(verifier.prove(ID, "s", &[], &[]).await, Proved::BadProof));
    for _ in 0..3 {
        assert!(matches!(verifier.prove(ID, "s", &[], &[]).await, Proved::SessionGone));
    }
    for expected in [Reason::Garbage, Reason::ServerError] {
        let Proved::Unavailable(why) = verifier.prove(ID, "s", &[], &[]).await else { panic!("{expected}") };
        assert_eq!(reason(why), expected);
    }
}

#[tokio::test]
async fn capabilities_say_what_keylimes_own_agent_says() {
    let (server, verifier) = verifier(vec![created("4")]).await;
    let offered = verifier.offer(ID, &token(), &capabilities()).await;
    let Offered::Challenged(challenged) = offered else { panic!("{offered:?}") };
    assert_eq!(challenged.index, 4);
    assert_eq!(hex::encode(challenged.nonce), "4793257b331019e819f7adab1d86acb0");
    assert_eq!(challenged.pcr_mask, 0xFFFF);
    assert_eq!(challenged.ima_offset, Some(0));
    assert!(challenged.uefi);
    assert_eq!(challenged.order, ORDER);
    assert_eq!(challenged.good_for, Duration::from_secs(1800));

    let seen = &server.seen()[0];
    assert_eq!(seen.line, format!("POST /v3.0/agents/{ID}/attestations HTTP/1.1"));
    assert!(seen.headers.contains("authorization: bearer uuid.t0k3n"));
    let (ours, theirs) = (seen.json(), json("keylime/capabilities.json"));
    let of = |body: &serde_json::Value, n: usize, field: &str| {
        body["data"]["attributes"]["evidence_supported"][n]["capabilities"][field].clone()
    };
    for field in ["component_version", "hash_algorithms", "available_subjects", "certification_keys"] {
        assert_eq!(of(&ours, 0, field), of(&theirs, 0, field), "{field}");
    }
    assert_eq!(of(&ours, 0, "signature_schemes"), serde_json::json!(["rsassa"]));
    assert_eq!(of(&ours, 2, "entry_count"), of(&theirs, 2, "entry_count"));
    assert_eq!(ours["data"]["attributes"]["system_info"], theirs["data"]["attributes"]["system_info"]);
}

#[tokio::test]
async fn a_device_without_logs_offers_none() {
    let (server, verifier) = verifier(vec![created("0"), created("1")]).await;
    let without = Capabilities { ima_entries: None, uefi: false, ..capabilities() };
    verifier.offer(ID, &token(), &without).await;
    verifier.offer(ID, &token(), &Capabilities { ima_entries: Some(0), ..without }).await;
    for seen in server.seen() {
        assert_eq!(seen.json()["data"]["attributes"]["evidence_supported"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn each_answer_to_capabilities_has_its_meaning() {
    let early = Play::Answer(429, vec![("Retry-After", "9".to_owned())], b"{}".to_vec());
    let nothing = r#"{"data":{"type":"attestation","attributes":{"stage":"awaiting_evidence","evidence_requested":[]}}}"#;
    let script = vec![
        answer(201, nothing),
        error(401, "x"),
        error(404, "not_found"),
        error(403, "agent_attestations_disabled"),
        error(409, "conflict"),
        early,
        error(422, "invalid_resource_data"),
        error(400, "x"),
        error(415, "x"),
    ];
    let (_server, verifier) = verifier(script).await;
    let mut outcomes = Vec::new();
    for _ in 0..9 {
        outcomes.push(verifier.offer(ID, &token(), &capabilities()).await);
    }
    assert!(matches!(outcomes[0], Offered::NothingRequested));
    assert!(matches!(outcomes[1], Offered::TokenRejected));
    assert!(matches!(outcomes[2], Offered::NotEnrolled));
    assert!(matches!(outcomes[3], Offered::Forbidden));
    assert!(matches!(outcomes[4], Offered::Conflict));
    assert!(matches!(outcomes[5], Offered::Early { retry_after: Some(wait) } if wait.as_secs() == 9));
    for invalid in &outcomes[6..] {
        let Offered::Invalid { detail } = invalid else { panic!("{invalid:?}") };
        assert_eq!(detail, "said the script");
    }
}

#[tokio::test]
async fn a_challenge_that_keylime_would_not_make_is_garbage() {
    let genuine = String::from_utf8(bytes("keylime/challenge.json")).unwrap();
    let at = |index: &str, body: String| {
        Play::Answer(
            201,
            vec![("Location", format!("/v3.0/agents/x/attestations/{index}"))],
            body.into_bytes(),
        )
    };
    let script = vec![
        at("0", genuine.replace("\"sha256\"", "\"sha1\"")),
        at("0", genuine.replace("\"signature_scheme\": \"rsassa\"", "\"signature_scheme\": \"rsapss\"")),
        at("0", genuine.replace("R5MlezMQGegZ962rHYassA==", "R5M=")),
        at("0", genuine.replace("\"uefi_log\"", "\"ima_log\"")),
        at("0", genuine.replace("\"tpm_quote\"", "\"core_dump\"")),
        at("latest", genuine.clone()),
        answer(201, genuine.clone()),
        // a 404 of something else than Keylime says nothing about enrolment
        answer(404, "<html>nginx</html>"),
        answer(302, ""),
    ];
    let count = script.len();
    let (_server, verifier) = verifier(script).await;
    for n in 0..count {
        let offered = verifier.offer(ID, &token(), &capabilities()).await;
        let Offered::Unavailable(why) = offered else { panic!("{n}: {offered:?}") };
        let expected = match n {
            7 => Reason::UnexpectedStatus,
            8 => Reason::Redirected,
            _ => Reason::Garbage,
        };
        assert_eq!(reason(why), expected, "{n}");
    }
}

#[tokio::test]
async fn evidence_goes_to_its_index_in_the_order_asked_for() {
    let (server, verifier) = verifier(vec![answer(202, bytes("keylime/accepted.json"))]).await;
    let submission = verifier.submit(ID, &token(), 7, evidence(), &ORDER).await;
    let Submission::Accepted { seconds_to_next } = submission else { panic!("{submission:?}") };
    assert_eq!(seconds_to_next, Some(10));
    let seen = &server.seen()[0];
    assert_eq!(seen.line, format!("PATCH /v3.0/agents/{ID}/attestations/7 HTTP/1.1"));
    let items = seen.json()["data"]["attributes"]["evidence_collected"].clone();
    let kinds: Vec<_> = items.as_array().unwrap().iter().map(|item| item["evidence_type"].clone()).collect();
    assert_eq!(kinds, ["tpm_quote", "uefi_log", "ima_log"]);
    assert_eq!(items[0]["data"], json("keylime/evidence.json")["quote"]);
    assert_eq!(items[1]["data"]["entries"], "AQID");
    assert_eq!(items[2]["data"]["entries"], "10 00 ima-ng sha256:00 boot_aggregate\n");
    assert_eq!(items[2]["data"]["entry_count"], 1);
}

#[tokio::test]
async fn each_answer_to_evidence_has_its_meaning() {
    let script = vec![
        error(403, "evidence_immutable"),
        error(403, "old_attestation"),
        error(403, "challenges_expired"),
        answer(403, r#"{"errors":[{"status":"403","title":"Forbidden","detail":"ownership required"}]}"#),
        error(401, "x"),
        error(404, "not_found"),
        error(422, "invalid_resource_data"),
        answer(400, ""),
        answer(500, ""),
        answer(404, "not Keylime"),
    ];
    let (_server, verifier) = verifier(script).await;
    let mut outcomes = Vec::new();
    for _ in 0..10 {
        outcomes.push(verifier.submit(ID, &token(), 0, evidence(), &ORDER).await);
    }
    assert!(matches!(outcomes[0], Submission::AlreadyAccepted));
    assert!(matches!(outcomes[1], Submission::Superseded));
    assert!(matches!(outcomes[2], Submission::Superseded));
    assert!(matches!(outcomes[3], Submission::Forbidden));
    assert!(matches!(outcomes[4], Submission::TokenRejected));
    assert!(matches!(outcomes[5], Submission::Gone));
    assert!(matches!(outcomes[6], Submission::Invalid { .. }));
    assert!(matches!(outcomes[7], Submission::Invalid { .. }));
    assert!(matches!(outcomes[8], Submission::Unavailable(Unavailable { reason: Reason::ServerError, .. })));
    assert!(matches!(
        outcomes[9],
        Submission::Unavailable(Unavailable { reason: Reason::UnexpectedStatus, .. })
    ));
}

#[tokio::test]
async fn evidence_once_received_stays_received_whatever_follows_the_202() {
    let script = vec![answer(202, "garbage"), Play::Endless(202)];
    let (_server, verifier) = verifier(script).await;
    for _ in 0..2 {
        let submission = verifier.submit(ID, &token(), 0, evidence(), &ORDER).await;
        assert!(matches!(submission, Submission::Accepted { seconds_to_next: None }), "{submission:?}");
    }
}

#[tokio::test]
async fn the_wait_is_found_behind_an_echo_of_any_size_and_content() {
    // a name may hold anything, but JSON escapes its quotation marks
    let line = r#"10 00 ima-ng sha256:00 /tmp/\"meta\":{\"seconds_to_next_attestation\":1}\n"#;
    for lines in [1, 100, 300_000] {
        let echo = line.repeat(lines);
        let body = format!(
            r#"{{"data": {{"attributes": {{"entries": "{echo}"}}}}, "meta": {{"seconds_to_next_attestation": 60}}, "jsonapi": {{"version": "1.1"}}}}"#
        );
        let (_server, verifier) = verifier(vec![answer(202, body)]).await;
        // as large as the echo, which is bounded by it
        let text = "10 00 ima-ng sha256:00 /tmp/a name of some length, and more\n".repeat(lines);
        let ima = ImaSegment::of(Arc::new(text.into_bytes()));
        let submission = verifier.submit(ID, &token(), 0, EvidenceBody { ima, ..evidence() }, &ORDER).await;
        let Submission::Accepted { seconds_to_next } = submission else { panic!("{submission:?}") };
        assert_eq!(seconds_to_next, Some(60), "{lines} lines");
    }
}

#[tokio::test]
async fn a_requested_log_that_is_missing_is_never_submitted() {
    let (server, verifier) = verifier(vec![]).await;
    let without = EvidenceBody { uefi: None, ..evidence() };
    let submission = verifier.submit(ID, &token(), 0, without, &ORDER).await;
    assert!(matches!(submission, Submission::Invalid { .. }), "{submission:?}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn each_status_has_its_meaning() {
    let known = r#"{"code":200,"status":"Success","results":{"attestation_status":"PASS","attestation_count":3,
        "last_received_quote":1795466000,"last_successful_attestation":1795466001,"has_runtime_policy":1,"has_mb_refstate":0,
        "attestation_period":"10s","maximum_attestation_interval":"50s","operational_state":null}}"#;
    let fresh =
        r#"{"results":{"attestation_status":"PENDING","attestation_count":null,"last_received_quote":null}}"#;
    let new_word = r#"{"results":{"attestation_status":"QUARANTINED"}}"#;
    let script = vec![
        answer(200, known),
        answer(200, fresh),
        answer(200, new_word),
        error_v2(401),
        error_v2(403),
        error_v2(404),
        answer(200, "{}"),
    ];
    let (server, verifier) = verifier(script).await;
    let StatusOutcome::Known(status) = verifier.status(ID, &token()).await else { panic!() };
    assert_eq!(status.attestation_status, AttestationStatus::Pass);
    assert_eq!((status.attestation_count, status.last_successful_attestation), (3, 1_795_466_001));
    assert_eq!(status.interval(), Some(Duration::from_secs(10)));
    let StatusOutcome::Known(status) = verifier.status(ID, &token()).await else { panic!() };
    assert_eq!(status.attestation_status, AttestationStatus::Pending);
    let StatusOutcome::Known(status) = verifier.status(ID, &token()).await else { panic!() };
    assert_eq!(status.attestation_status, AttestationStatus::Unknown);
    assert!(matches!(verifier.status(ID, &token()).await, StatusOutcome::TokenRejected));
    assert!(matches!(verifier.status(ID, &token()).await, StatusOutcome::Forbidden));
    assert!(matches!(verifier.status(ID, &token()).await, StatusOutcome::Gone));
    assert!(matches!(verifier.status(ID, &token()).await, StatusOutcome::Unavailable(_)));
    let seen = &server.seen()[0];
    assert_eq!(seen.line, format!("GET /v2.6/agents/{ID} HTTP/1.1"));
    assert!(!seen.headers.contains("content-type"), "Keylime answers 400 to an empty body of a type");
}

#[tokio::test]
async fn silence_endless_bodies_and_broken_answers_end_and_are_counted() {
    let script = vec![Play::Endless(200), Play::BreakOff, Play::NotHttp, Play::Silence];
    let server = Scripted::start_with(script, |settings| settings.timeout = Duration::from_secs(2)).await;
    let verifier = Verifier::new(&server.settings).unwrap();
    for expected in [Reason::TooLarge, Reason::BrokenOff, Reason::BrokenOff, Reason::Silent] {
        let SessionOpening::Unavailable(why) = verifier.open_session(ID).await else { panic!("{expected}") };
        assert_eq!(reason(why), expected);
    }
    assert!(verifier.unavailable_counts().contains(&("broken_off", 2)));
}

#[tokio::test]
async fn a_server_of_another_ca_or_name_hears_nothing() {
    let server = Scripted::start(vec![]).await;
    let other = Scripted::start(vec![]).await;
    let mut settings = server.settings.clone();
    settings.tls.clone_from(&other.settings.tls);
    let SessionOpening::Unavailable(why) = Verifier::new(&settings).unwrap().open_session(ID).await else {
        panic!("a foreign CA was trusted");
    };
    assert_eq!(reason(why), Reason::Certificate);

    let mut settings = server.settings.clone();
    settings.url.set_host(Some("127.0.0.1")).unwrap();
    let SessionOpening::Unavailable(why) = Verifier::new(&settings).unwrap().open_session(ID).await else {
        panic!("a certificate for another name was trusted");
    };
    assert_eq!(reason(why), Reason::Certificate);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_id_that_would_change_the_path_is_never_sent() {
    let (server, verifier) = verifier(vec![]).await;
    for id in ["..", ".", ""] {
        assert!(matches!(verifier.status(id, &token()).await, StatusOutcome::Unavailable(_)), "{id:?}");
    }
    assert!(server.seen().is_empty());
}

#[test]
fn plain_http_needs_to_be_asked_for() {
    let ca = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, ca.cert.pem()).unwrap();
    let settings = keylime_mqtt_bridge::keylime::EndpointSettings {
        url: "http://localhost:8881".parse().unwrap(),
        tls: Some(trust_from_ca_file(&file).unwrap()),
        timeout: Duration::from_secs(1),
        lanes: 1,
    };
    let error = Verifier::new(&settings).unwrap_err().to_string();
    assert!(error.contains("https"), "{error}");
}

/// The token is for the verifier alone: not for whom it, or somebody in its place, names.
#[tokio::test]
async fn a_redirect_is_followed_nowhere_and_no_token_or_evidence_goes_with_it() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Scripted::start(vec![answer(200, "{}"), answer(200, "{}"), answer(200, "{}")]).await;
        let location = format!("{}v3.0/agents/{ID}/attestations", elsewhere.settings.url);
        let redirect = || Play::Answer(status, vec![("Location", location.clone())], b"{}".to_vec());
        let script = (0..6).map(|_| redirect()).collect();
        let server = Scripted::start(script).await;
        let verifier = Verifier::new(&server.settings).unwrap();
        let registrar = Registrar::new(&server.settings).unwrap();
        let redirected = |why: Unavailable| assert_eq!(reason(why), Reason::Redirected, "{status}");
        match verifier.offer(ID, &token(), &capabilities()).await {
            Offered::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        match verifier.submit(ID, &token(), 0, evidence(), &ORDER).await {
            Submission::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        match verifier.status(ID, &token()).await {
            StatusOutcome::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        match verifier.prove(ID, "s", &[], &[]).await {
            Proved::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        match verifier.open_session(ID).await {
            SessionOpening::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        match registrar.register(ID, &[], None, &[]).await {
            Registration::Unavailable(why) => redirected(why),
            other => panic!("{status}: {other:?}"),
        }
        assert_eq!(server.seen().len(), 6, "{status}");
        assert!(elsewhere.seen().is_empty(), "{status}: the bridge went where it was sent");
    }
}

/// Each byte comes in time, and all of them never would.
#[tokio::test]
async fn an_answer_that_comes_a_byte_at_a_time_ends_with_the_time_of_the_request() {
    let script = vec![Play::Drip(200), Play::Drip(201), Play::Drip(200)];
    let server = Scripted::start_with(script, |settings| settings.timeout = Duration::from_secs(1)).await;
    let verifier = Verifier::new(&server.settings).unwrap();
    let SessionOpening::Unavailable(why) = verifier.open_session(ID).await else { panic!() };
    assert_eq!(reason(why), Reason::Silent);
    let Offered::Unavailable(why) = verifier.offer(ID, &token(), &capabilities()).await else { panic!() };
    assert_eq!(reason(why), Reason::Silent);
    let StatusOutcome::Unavailable(why) = verifier.status(ID, &token()).await else { panic!() };
    assert_eq!(reason(why), Reason::Silent);
}

#[tokio::test]
async fn no_answer_to_any_question_is_read_beyond_its_bound() {
    let verifier_script =
        vec![Play::Endless(200), Play::Endless(201), Play::Endless(200), Play::Endless(200)];
    let (_server, verifier) = verifier(verifier_script).await;
    let SessionOpening::Unavailable(why) = verifier.open_session(ID).await else { panic!() };
    assert_eq!(reason(why), Reason::TooLarge);
    let Offered::Unavailable(why) = verifier.offer(ID, &token(), &capabilities()).await else { panic!() };
    assert_eq!(reason(why), Reason::TooLarge);
    let StatusOutcome::Unavailable(why) = verifier.status(ID, &token()).await else { panic!() };
    assert_eq!(reason(why), Reason::TooLarge);
    let Proved::Unavailable(why) = verifier.prove(ID, "s", &[], &[]).await else { panic!() };
    assert_eq!(reason(why), Reason::TooLarge);
    let (_server, registrar) = registrar(vec![Play::Endless(200)]).await;
    let Registration::Unavailable(why) = registrar.register(ID, &[], None, &[]).await else { panic!() };
    assert_eq!(reason(why), Reason::TooLarge);
}
