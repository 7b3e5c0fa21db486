//! Every endpoint of Keylime by every kind of answer: what the REST client makes of it, in one table.

use crate::keylime_answers::{ID, ORDER, capabilities, evidence, token};
use crate::scripted::{Play, Scripted, answer, error, error_v2};
use keylime_mqtt_bridge::keylime::{Registrar, Verifier};
use std::fmt::Debug;
use std::time::Duration;

const ENDPOINTS: [&str; 7] = ["register", "activate", "open session", "prove", "status", "offer", "submit"];

/// What comes, and what each endpoint makes of it; a reason stands for `Unavailable` with that reason.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 7]); 15] = [
    //                   register            activate            open session        prove               status              offer               submit
    ("400",             ["Rejected",         "WrongTag",         "UnexpectedStatus", "SessionGone",      "UnexpectedStatus", "Invalid",          "Invalid"]),
    ("401",             ["Rejected",         "UnexpectedStatus", "UnexpectedStatus", "BadProof",         "TokenRejected",    "TokenRejected",    "TokenRejected"]),
    ("403",             ["Conflict",         "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "Forbidden",        "Forbidden",        "Forbidden"]),
    ("404",             ["Rejected",         "Unknown",          "UnexpectedStatus", "SessionGone",      "Gone",             "NotEnrolled",      "Gone"]),
    ("409",             ["Rejected",         "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "Conflict",         "UnexpectedStatus"]),
    ("422",             ["Rejected",         "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "Invalid",          "Invalid"]),
    ("429",             ["TooMany",          "TooMany",          "RateLimited",      "TooMany",          "TooMany",          "Early",            "TooMany"]),
    ("500",             ["ServerError",      "ServerError",      "ServerError",      "SessionGone",      "ServerError",      "ServerError",      "ServerError"]),
    ("503",             ["ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError"]),
    ("302",             ["Redirected",       "Redirected",       "Redirected",       "Redirected",       "Redirected",       "Redirected",       "Redirected"]),
    // the verifier where the registrar should be, and a proxy where either should be
    ("another's 403",   ["UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "Forbidden",        "Forbidden",        "Forbidden"]),
    ("a proxy's 404",   ["UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus", "SessionGone",      "UnexpectedStatus", "UnexpectedStatus", "UnexpectedStatus"]),
    ("an endless 503",  ["ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError",      "ServerError"]),
    // what the status alone says stays said
    ("an endless good", ["TooLarge",         "Activated",        "TooLarge",         "TooLarge",         "TooLarge",         "TooLarge",         "Accepted"]),
    ("silence",         ["Silent",           "Silent",           "Silent",           "Silent",           "Silent",           "Silent",           "Silent"]),
];

fn play(answered: &str, endpoint: &str) -> Play {
    let v2 = ["register", "activate", "status"].contains(&endpoint);
    match answered {
        "429" => Play::Answer(429, vec![("Retry-After", "7".to_owned())], b"{}".to_vec()),
        "500" | "503" | "302" => answer(answered.parse().unwrap(), ""),
        "another's 403" if v2 => error(403, "forbidden"),
        "another's 403" => error_v2(403),
        "a proxy's 404" => answer(404, "<html>nginx</html>"),
        "an endless 503" => Play::Endless(503),
        "an endless good" => Play::Endless(match endpoint {
            "offer" => 201,
            "submit" => 202,
            _ => 200,
        }),
        "silence" => Play::Silence,
        status if v2 => error_v2(status.parse().unwrap()),
        status => error(status.parse().unwrap(), "not_found"),
    }
}

/// The outcome as one word, and all that it holds.
fn word(outcome: &impl Debug) -> (String, String) {
    let whole = format!("{outcome:?}");
    let from = whole.split_once("reason: ").map_or(whole.as_str(), |(_, reason)| reason);
    let end = from.find(|c: char| !c.is_alphanumeric()).unwrap_or(from.len());
    (from[..end].to_owned(), whole)
}

async fn ask(endpoint: &str, registrar: &Registrar, verifier: &Verifier) -> (String, String) {
    match endpoint {
        "register" => word(&registrar.register(ID, &[], None, &[]).await),
        "activate" => word(&registrar.activate(ID, &[0xAB; 48]).await),
        "open session" => word(&verifier.open_session(ID).await),
        "prove" => word(&verifier.prove(ID, "s", &[], &[]).await),
        "status" => word(&verifier.status(ID, &token()).await),
        "offer" => word(&verifier.offer(ID, &token(), &capabilities()).await),
        _ => word(&verifier.submit(ID, &token(), 0, evidence(), &ORDER).await),
    }
}

/// One column of the table.
async fn column(n: usize) {
    let endpoint = ENDPOINTS[n];
    let script = TABLE.iter().map(|(answered, _)| play(answered, endpoint)).collect();
    let server = Scripted::start_with(script, |settings| settings.timeout = Duration::from_secs(5)).await;
    let registrar = Registrar::new(&server.settings).unwrap();
    let verifier = Verifier::new(&server.settings).unwrap();
    for (answered, expected) in TABLE {
        let (outcome, whole) = ask(endpoint, &registrar, &verifier).await;
        assert_eq!(outcome, expected[n], "{answered} to {endpoint}: {whole}");
        if answered == "429" {
            assert!(whole.contains("retry_after: Some(7s)"), "{endpoint}: {whole}");
        }
    }
    assert_eq!(server.seen().len(), TABLE.len(), "no request is repeated unasked");
}

#[tokio::test]
async fn each_endpoint_has_its_reaction_to_each_answer() {
    tokio::join!(column(0), column(1), column(2), column(3), column(4), column(5), column(6));
}
