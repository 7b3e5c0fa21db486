//! Every hop knows whom it speaks to, and a device's certificate opens only its own topics.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::broker::{BRIDGE, Broker, RELYING_PARTY};
use keylime_mqtt_tests::device::{BrokerAccess, Device, DeviceSettings};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::observe::Observer;
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::pki::{Certificate, Pki, Validity};
use keylime_mqtt_tests::world::World;
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// A world with one enrolled device whose agent is stopped.
fn world_with_device() -> Result<(World, Device)> {
    let world = World::on_mosquitto()?;
    let mut device = world.passing_device("trusting", DeviceSettings::default(), &Policies::quote_only())?;
    device.stop_agent()?;
    Ok((world, device))
}

fn other_ca(world: &World) -> Result<Pki> {
    Pki::in_dir(&world.scratch.subdir("other-ca")?)
}

/// With `change` the agent reaches no broker and says so with `words`; with it undone it passes.
fn agent_refuses(
    world: &World,
    device: &mut Device,
    words: &str,
    change: impl FnOnce(&mut BrokerAccess),
) -> Result<()> {
    let good = device.access().clone();
    device.change_access(change)?;
    let said_before = device.agent_log().len();
    let seen_before = world.observer()?.mark();
    device.start_agent()?;
    eventually(&format!("the agent says {words:?}"), &world.scratch.logs(), || {
        let log = device.agent_log();
        Ok(log.get(said_before..).is_some_and(|new| new.contains(words)).then_some(()))
    })?;
    let spoke =
        world.observer()?.seen().iter().skip(seen_before).any(|seen| seen.topic.ends_with("/evidence"));
    assert!(!spoke, "the agent spoke to a broker it cannot trust, or one that cannot trust it");
    device.stop_agent()?;
    device.change_access(|access| *access = good)?;
    device.start_agent()?;
    world.passes_anew(device)?;
    device.stop_agent()
}

#[test]
fn an_agent_refuses_a_broker_of_another_ca() -> Result<()> {
    let (world, mut device) = world_with_device()?;
    let ca = other_ca(&world)?.ca();
    agent_refuses(&world, &mut device, "was issued by none of the CAs", |access| access.ca = ca)
}

/// Where OpenSSL, and rustls with the system's CAs, look for them.
const SYSTEMS_CAS: &str = "SSL_CERT_FILE";

#[test]
fn an_agent_refuses_a_broker_whose_ca_only_the_system_trusts() -> Result<()> {
    let (world, mut device) = world_with_device()?;
    let (ca, systems) = (other_ca(&world)?.ca(), world.pki.ca());
    device.launch_by(vec!["env".to_owned(), format!("{SYSTEMS_CAS}={}", systems.display())]);
    agent_refuses(&world, &mut device, "was issued by none of the CAs", |access| access.ca = ca)
}

#[test]
fn a_device_with_a_certificate_of_another_ca_or_an_expired_one_is_refused_by_the_broker() -> Result<()> {
    let (world, mut device) = world_with_device()?;
    let foreign = other_ca(&world)?.issue(device.id(), &[])?;
    let expired = world.pki.issue_with(device.id(), &[], Validity::Expired)?;
    for certificate in [foreign, expired] {
        agent_refuses(&world, &mut device, "refused this client's certificate", |access| {
            access.certificate = certificate;
        })?;
    }
    Ok(())
}

#[test]
fn agent_and_bridge_refuse_a_broker_with_an_expired_certificate_or_one_for_another_name() -> Result<()> {
    let (mut world, mut device) = world_with_device()?;
    let good = world.pki.issue("broker", &["localhost"])?;
    let expired = world.pki.issue_with("broker", &["localhost"], Validity::Expired)?;
    let elsewhere = world.pki.issue("elsewhere", &["broker.elsewhere"])?;
    device.start_agent()?;
    for (certificate, words) in [
        (expired, "the broker's certificate ended on Wed, 01 Jan 2020"),
        (elsewhere, "for another host name"),
    ] {
        present(&mut world, certificate)?;
        eventually(&format!("agent and bridge say {words:?}"), &world.scratch.logs(), || {
            Ok((world.bridge.log().contains(words) && device.agent_log().contains(words)).then_some(()))
        })?;
    }
    present(&mut world, good)?;
    world.passes_anew(&device).map(drop)
}

/// What the bridge shows and trusts at the broker is judged as a device's: four ways to be wrong, each undone.
#[test]
fn the_bridge_refuses_a_broker_of_another_ca_and_is_refused_without_a_good_certificate() -> Result<()> {
    let (mut world, mut device) = world_with_device()?;
    let other = other_ca(&world)?;
    let foreign = other.issue(BRIDGE, &[])?;
    let expired = world.pki.issue_with(BRIDGE, &[], Validity::Expired)?;
    let (good_ca, good) = (world.pki.ca(), world.bridge.settings().broker.certificate.clone());
    device.start_agent()?;
    for (ca, certificate, words) in [
        (other.ca(), good.clone(), "was issued by none of the CAs"),
        (good_ca.clone(), foreign, "refused this client's certificate"),
        (good_ca.clone(), expired, "refused this client's certificate"),
    ] {
        world.bridge.stop()?;
        world.bridge.reconfigure(|settings| {
            settings.broker.ca = ca;
            settings.broker.certificate = certificate;
        })?;
        let said_before = world.bridge.log().len();
        let mark = world.observer()?.mark();
        world.bridge.start()?;
        eventually(&format!("the bridge says {words:?}"), &world.scratch.logs(), || {
            Ok(world.bridge.log().get(said_before..).is_some_and(|new| new.contains(words)).then_some(()))
        })?;
        let asked =
            world.observer()?.collect_from(mark, |seen| seen.topic.ends_with("/challenge").then_some(()));
        assert!(
            asked.is_empty(),
            "the bridge spoke to a broker that it cannot trust, or that cannot trust it"
        );
    }
    world.bridge.stop()?;
    world.bridge.reconfigure(|settings| {
        settings.broker.ca = good_ca;
        settings.broker.certificate = good;
    })?;
    world.bridge.start()?;
    world.passes_anew(&device).map(drop)
}

fn present(world: &mut World, certificate: Certificate) -> Result<()> {
    world.broker.stop()?;
    world.broker.present(certificate);
    world.broker.power_on()
}

#[test]
fn a_client_without_a_certificate_is_refused_by_the_broker() -> Result<()> {
    let (world, _device) = world_with_device()?;
    let with = tls_client(&world.broker, &world.pki, Some(&world.pki.issue("anyone", &[])?))?;
    assert!(with, "openssl cannot even connect with a certificate");
    assert!(
        !tls_client(&world.broker, &world.pki, None)?,
        "the broker let a client without a certificate in"
    );
    Ok(())
}

/// Whether the broker keeps a TLS connection that sends an MQTT CONNECT: it answers CONNACK.
fn tls_client(broker: &Broker, pki: &Pki, certificate: Option<&Certificate>) -> Result<bool> {
    use std::io::{Read, Write};
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &format!("localhost:{}", broker.port()), "-CAfile"]);
    command.arg(pki.ca());
    if let Some(certificate) = certificate {
        command.arg("-cert").arg(&certificate.certificate).arg("-key").arg(&certificate.key);
    }
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // MQTT 3.1.1 §3.1: CONNECT, clean session, keep-alive 60 s, client id "x".
    let connect = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'x'];
    // A refused client may be gone before it is told.
    client.stdin.as_mut().context("piped")?.write_all(&connect).ok();
    let mut answer = [0];
    let answered = client.stdout.as_mut().context("piped")?.read(&mut answer)?;
    client.kill()?;
    client.wait()?;
    Ok(answered == 1 && answer == [0x20])
}

/// After `change` the bridge cannot trust the verifier: it counts that and asks nothing; after `mend` the device passes.
fn bridge_refuses(
    change: impl FnOnce(&mut World) -> Result<()>,
    mend: impl FnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    let (mut world, mut device) = world_with_device()?;
    world.bridge.stop()?;
    change(&mut world)?;
    let asked_before = world.keylime.verifier_log().len();
    world.bridge.start()?;
    device.start_agent()?;
    eventually("the bridge counts the verifier as unavailable", &world.scratch.logs(), || {
        let (succeeded, said) = world.bridge.ask(&["waiting", "--json"])?;
        // Its socket is there a moment after its start.
        let status: serde_json::Value =
            if succeeded { serde_json::from_str(&said)? } else { return Ok(None) };
        Ok(status.get("unavailable").filter(|counted| counted.to_string().contains("verifier")).map(drop))
    })?;
    let asked = world.keylime.verifier_log();
    let asked = asked.get(asked_before..).unwrap_or_default();
    ensure!(!asked.contains("/sessions"), "the bridge asked a verifier that it cannot trust:\n{asked}");
    world.bridge.stop()?;
    mend(&mut world)?;
    world.bridge.start()?;
    world.passes_anew(&device).map(drop)
}

#[test]
fn the_bridge_refuses_a_verifier_of_another_ca() -> Result<()> {
    bridge_refuses(
        |world| {
            let ca = other_ca(world)?.ca();
            world.bridge.reconfigure(|settings| settings.keylime_ca = ca)
        },
        |world| {
            let ca = world.keylime.ca();
            world.bridge.reconfigure(|settings| settings.keylime_ca = ca)
        },
    )
}

#[test]
fn the_bridge_refuses_a_verifier_whose_ca_only_the_system_trusts() -> Result<()> {
    bridge_refuses(
        |world| {
            let (ca, systems) = (other_ca(world)?.ca(), world.keylime.ca().display().to_string());
            world.bridge.reconfigure(|settings| {
                settings.keylime_ca = ca;
                settings.environment.push((SYSTEMS_CAS.to_owned(), systems));
            })
        },
        |world| {
            let ca = world.keylime.ca();
            world.bridge.reconfigure(|settings| settings.keylime_ca = ca)
        },
    )
}

#[test]
fn the_bridge_refuses_a_verifier_with_a_certificate_for_another_name() -> Result<()> {
    bridge_refuses(
        |world| {
            let certificate = world.pki.issue("verifier.elsewhere", &["verifier.elsewhere"])?;
            serve_with(world, certificate)
        },
        serve_well,
    )
}

#[test]
fn the_bridge_refuses_a_verifier_with_an_expired_certificate() -> Result<()> {
    bridge_refuses(
        |world| {
            let certificate =
                world.pki.issue_with("verifier", &["localhost", "127.0.0.1"], Validity::Expired)?;
            serve_with(world, certificate)
        },
        serve_well,
    )
}

/// A registrar's certificate is judged as a verifier's: three ways to be wrong, then the same device is registered.
#[test]
fn the_bridge_refuses_a_registrar_of_another_ca_of_another_name_or_out_of_date() -> Result<()> {
    let mut world = World::on_mosquitto()?;
    let mut device = world.device("newcomer", DeviceSettings::default())?;
    device.start_agent()?;
    let ca = other_ca(&world)?.ca();
    registrar_hears_nothing(&mut world, &device, |world| {
        world
            .bridge
            .reconfigure(|settings| settings.set = vec![format!("registrar.ca_file={}", ca.display())])
    })?;
    world.bridge.reconfigure(|settings| settings.set.clear())?;
    registrar_hears_nothing(&mut world, &device, |world| {
        let certificate = world.pki.issue("registrar.elsewhere", &["registrar.elsewhere"])?;
        serve_with(world, certificate)
    })?;
    registrar_hears_nothing(&mut world, &device, |world| {
        let names = &["localhost", "127.0.0.1"];
        let certificate = world.pki.issue_with("registrar", names, Validity::Expired)?;
        serve_with(world, certificate)
    })?;
    world.bridge.stop()?;
    serve_well(&mut world)?;
    world.bridge.start()?;
    eventually("the device is registered", &world.scratch.logs(), || {
        Ok(world.keylime.has_activated(device.id()).then_some(()))
    })
}

/// After `change` the bridge names the certificate, and the device's keys do not reach the registrar.
fn registrar_hears_nothing(
    world: &mut World,
    device: &Device,
    change: impl FnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    world.bridge.stop()?;
    change(world)?;
    let heard_before = world.keylime.registrar_log().len();
    world.bridge.start()?;
    eventually("the bridge names the registrar's certificate", &world.scratch.logs(), || {
        let (succeeded, said) = world.bridge.ask(&["waiting", "--json"])?;
        let status: serde_json::Value =
            if succeeded { serde_json::from_str(&said)? } else { return Ok(None) };
        let named = |counted: &serde_json::Value| {
            let text = counted.to_string();
            text.contains("registrar") && text.contains("certificate")
        };
        Ok(status.get("unavailable").filter(|counted| named(counted)).map(drop))
    })?;
    let heard = world.keylime.registrar_log();
    let heard = heard.get(heard_before..).unwrap_or_default();
    ensure!(!heard.contains(device.id()), "the registrar heard of the device:\n{heard}");
    Ok(())
}

/// With a certificate that differs from the refused ones in nothing but that it is right.
fn serve_well(world: &mut World) -> Result<()> {
    let certificate = world.pki.issue("verifier", &["localhost", "127.0.0.1"])?;
    serve_with(world, certificate)
}

/// Restarts Keylime with a certificate of the harness's CA, which the bridge is told to trust.
fn serve_with(world: &mut World, certificate: Certificate) -> Result<()> {
    world.keylime.stop_verifier()?;
    world.keylime.stop_registrar()?;
    world.keylime.reconfigure(|settings| {
        settings.server_certificate = Some((certificate.certificate, certificate.key));
    })?;
    world.keylime.start_both()?;
    let ca = world.pki.ca();
    world.bridge.reconfigure(|settings| settings.keylime_ca = ca)
}

#[test]
fn a_devices_certificate_opens_only_its_own_topics() -> Result<()> {
    let world = World::on_mosquitto()?;
    let device = world.passing_device("victim", DeviceSettings::default(), &Policies::quote_only())?;
    let intruder = world.pki.issue("intruder", &[])?;
    let filters = ["#", "keylime/v1/+/challenge", "keylime/v1/+/result", "keylime/v1/intruder/challenge"];
    let logs = world.scratch.logs();
    let client = Observer::connect(world.broker.port(), &world.pki.ca(), &intruder, &filters, &logs)?;
    let mark = world.observer()?.mark();
    for topic in [
        format!("keylime/v1/{}/evidence", device.id()),
        format!("keylime/v1/{}/challenge", device.id()),
        format!("keylime/v1/{}/result", device.id()),
        format!("keylime/v1/{}/presence", device.id()),
        "keylime/v1/intruder/challenge".to_owned(),
        "keylime/v1/intruder/result".to_owned(),
        "keylime/v1-bridge/bridge".to_owned(),
    ] {
        client.publish(&topic, true, b"forged")?;
    }
    client.publish("keylime/v1/intruder/evidence", false, b"own")?;
    // Messages of one client arrive in order: when its own has come through, the others have not.
    world
        .observer()?
        .wait_from(mark, "the intruder's own message", |seen| (seen.payload == b"own").then_some(()))?;
    let forged = world.observer()?.seen().into_iter().skip(mark).find(|seen| seen.payload == b"forged");
    assert!(forged.is_none(), "passed the ACL: {forged:?}");
    world.passes_anew(&device)?;
    // whether a bridge serves is every device's to know
    let seen = client.seen().into_iter().find(|seen| !seen.topic.starts_with("keylime/v1-bridge/"));
    assert!(seen.is_none(), "the intruder read {:?}", seen.map(|seen| seen.topic));
    world.never_failed(&device)
}

#[test]
fn a_relying_party_reads_results_and_writes_nothing() -> Result<()> {
    let world = World::on_mosquitto()?;
    let device = world.passing_device("watched", DeviceSettings::default(), &Policies::quote_only())?;
    let certificate = world.pki.issue(RELYING_PARTY, &[])?;
    let logs = world.scratch.logs();
    let filters = ["keylime/v1/+/result"];
    let party = Observer::connect(world.broker.port(), &world.pki.ca(), &certificate, &filters, &logs)?;
    let told = party.wait_from(0, "the retained result", |seen| seen.result().filter(|_| seen.retained))?;
    assert_eq!(told.agent_id.as_str(), device.id());
    let mark = world.observer()?.mark();
    party.publish(&format!("keylime/v1/{}/result", device.id()), true, b"forged")?;
    world.passes_anew(&device)?;
    let forged = world.observer()?.seen().into_iter().skip(mark).any(|seen| seen.payload == b"forged");
    assert!(!forged, "a relying party wrote a result");
    Ok(())
}

#[test]
fn the_bridges_name_is_no_device() -> Result<()> {
    let world = World::on_mosquitto()?;
    // A device whose operator calls it as the bridge's certificate: the broker's ACL gives it no topic.
    let mut device = world
        .device("impostor", DeviceSettings { id: Some(BRIDGE.to_owned()), ..DeviceSettings::default() })?;
    world.admit(BRIDGE, device.ek_hash())?;
    let mark = world.observer()?.mark();
    device.start_agent()?;
    eventually("the impostor is connected", &world.scratch.logs(), || {
        Ok(device.agent_log().contains("connected to the broker").then_some(()))
    })?;
    let good = world.passing_device("honest", DeviceSettings::default(), &Policies::quote_only())?;
    let topic = format!("keylime/v1/{BRIDGE}/evidence");
    assert!(world.observer()?.seen().iter().skip(mark).all(|seen| seen.topic != topic));
    device.stop_agent()?;
    world.passes_anew(&good).map(drop)
}

#[test]
fn a_silent_connection_to_the_broker_delays_nobody() -> Result<()> {
    let world = World::on_mosquitto()?;
    let _silent: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect(("127.0.0.1", world.broker.port())))
        .collect::<std::io::Result<_>>()?;
    let device = world.passing_device("patient", DeviceSettings::default(), &Policies::quote_only())?;
    world.passes_anew(&device).map(drop)
}
