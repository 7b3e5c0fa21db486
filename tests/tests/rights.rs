//! What the bridge holds opens nothing at Keylime but what is a device's to do.

use anyhow::{Result, ensure};
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::secrets::{passed, session_token};
use keylime_mqtt_tests::world::World;
use std::path::PathBuf;

/// Prints what comes of each request, its status or `no connection`. Arguments: CA, token, certificate, key, of which the last
/// three may be empty; then method and URL of each request.
const ASK: &str = r#"
import http.client, ssl, sys, urllib.parse
ca, token, certificate, key = sys.argv[1:5]
trust = ssl.create_default_context(cafile=ca)
if certificate:
    trust.load_cert_chain(certificate, key)
requests = iter(sys.argv[5:])
for method, url in zip(requests, requests):
    url = urllib.parse.urlsplit(url)
    headers = {"Authorization": "Bearer " + token} if token else {}
    body = "{}" if method in ("POST", "PUT", "PATCH") else None
    if body:
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPSConnection(url.hostname, url.port, context=trust, timeout=60)
    try:
        connection.request(method, url.path, body, headers)
        print(connection.getresponse().status)
    except OSError:
        print("no connection")
"#;

/// What somebody is known to Keylime by.
#[derive(Debug, Default)]
struct Holder {
    token: String,
    /// And its key
    certificate: (PathBuf, PathBuf),
}

type Request = (&'static str, String);

/// What Keylime answers, to one request after the other.
fn answers(world: &World, holder: &Holder, requests: &[Request]) -> Result<Vec<String>> {
    let (certificate, key) = &holder.certificate;
    let mut python = world.keylime.program("python");
    python.args(["-c", ASK]).arg(&world.bridge.settings().keylime_ca).arg(&holder.token);
    python.arg(certificate).arg(key).args(requests.iter().flat_map(|(method, url)| [*method, url]));
    let output = python.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    ensure!(answers.len() == requests.len(), "{answers:?}");
    Ok(answers)
}

/// What an administrator asks, of which nothing is an agent's to ask; the last of each server deletes.
fn administration(world: &World, id: &str) -> [Vec<Request>; 2] {
    let (verifier, registrar) = (world.keylime.verifier_url(), world.keylime.registrar_url());
    let agent = format!("{verifier}/v2.6/agents/{id}");
    let at_verifier = vec![
        ("GET", format!("{verifier}/v2.6/agents")),
        ("POST", agent.clone()),
        ("PUT", format!("{agent}/reactivate")),
        ("PUT", format!("{agent}/stop")),
        ("POST", format!("{verifier}/v3.0/agents")),
        ("PATCH", format!("{verifier}/v3.0/agents/{id}")),
        ("DELETE", format!("{verifier}/v3.0/agents/{id}")),
        ("POST", format!("{verifier}/v2.6/allowlists/own")),
        ("PUT", format!("{verifier}/v2.6/allowlists/own")),
        ("DELETE", format!("{verifier}/v2.6/allowlists/own")),
        ("POST", format!("{verifier}/v2.6/mbpolicies/own")),
        ("DELETE", agent),
    ];
    let agent = format!("{registrar}/v2.6/agents/{id}");
    [at_verifier, vec![("GET", format!("{registrar}/v2.6/agents")), ("DELETE", agent)]]
}

#[test]
fn with_all_that_it_holds_the_bridge_cannot_administer_keylime() -> Result<()> {
    let world = World::on_mosquitto()?;
    let device = world.passing_device("ruled", DeviceSettings::default(), &Policies::quote_only())?;
    let id = device.id();
    let mqtt = world.bridge.settings().broker.certificate.clone();
    let nothing = Holder::default();
    let token = session_token(&world, &device, &passed(&world, &device)?)?;
    let token = Holder { token, ..Holder::default() };
    let mqtt = Holder { certificate: (mqtt.certificate, mqtt.key), ..Holder::default() };
    let admin = Holder { certificate: world.keylime.admin(), ..Holder::default() };
    let [at_verifier, at_registrar] = administration(&world, id);

    let own_status = [("GET", format!("{}/v2.6/agents/{id}", world.keylime.verifier_url()))];
    ensure!(answers(&world, &token, &own_status)? == ["200"], "the token is good for nothing");
    for (holder, refusals) in
        [(&nothing, &["401", "403"][..]), (&token, &["401", "403"]), (&mqtt, &["no connection"])]
    {
        let said = answers(&world, holder, &at_verifier)?;
        let refused = said.iter().all(|answer| refusals.contains(&answer.as_str()));
        ensure!(refused, "the verifier to {holder:?}: {said:?}");
    }
    // a token is looked up among sessions, which the registrar has none of: it fails over it
    for (holder, refusals) in
        [(&nothing, &["401", "403"][..]), (&token, &["500"]), (&mqtt, &["no connection"])]
    {
        let said = answers(&world, holder, &at_registrar)?;
        let refused = said.iter().all(|answer| refusals.contains(&answer.as_str()));
        ensure!(refused, "the registrar to {holder:?}: {said:?}");
    }
    ensure!(world.keylime.registered(id)?, "the registrar has deleted the device");
    world.passes_anew(&device)?;

    // An administrator may: it was not for their form that they were refused.
    for requests in [&at_verifier, &at_registrar] {
        let said = answers(&world, &admin, requests)?;
        let deleted = said.last().is_some_and(|answer| answer.starts_with('2'));
        ensure!(deleted && !said.contains(&"403".to_owned()), "{requests:?}: {said:?}");
    }
    Ok(())
}
