//! Who is trusted, who is refused, and whether the reason helps.

use std::sync::Arc;

use keylime_mqtt_broker_config::BrokerSettings;
use rumqttc::{ConnectionError, EventLoop, MqttOptions, TlsConfiguration, Transport};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    version::{TLS12, TLS13},
};

use crate::{mosquitto::Mosquitto, pki::Pki, reader::Client, scripted::ScriptedBroker};

/// The reasons of the first three attempts; being connected fails the test.
async fn refusals(settings: &BrokerSettings) -> Vec<String> {
    let mut client = Client::start(settings.check().unwrap(), "client", &[]);
    // a fallback would show in a later attempt
    vec![client.loss().await, client.loss().await, client.loss().await]
}

fn all_say(reasons: &[String], hint: &str) {
    for reason in reasons {
        assert!(reason.contains(hint), "{reason:?} does not say {hint:?}");
    }
}

#[tokio::test]
async fn a_broker_of_another_ca_is_refused_even_if_the_ca_has_the_same_name() {
    let pki = Pki::new();
    let broker = Mosquitto::open(&pki);
    for other in [Pki::named("another CA"), Pki::new()] {
        pki.issue("client", &[]);
        let mut settings = pki.settings("client", broker.port, "");
        settings.ca_file = other.file("ca.pem");
        all_say(&refusals(&settings).await, "broker.ca_file");
    }
}

#[tokio::test]
async fn a_broker_of_another_name_is_refused() {
    let pki = Pki::new();
    pki.issue("broker", &["elsewhere.test"]);
    let broker = Mosquitto::open(&pki);
    pki.issue("client", &[]);
    all_say(&refusals(&pki.settings("client", broker.port, "")).await, "another host name");
}

#[tokio::test]
async fn a_broker_whose_certificate_expired_is_refused() {
    let pki = Pki::new();
    pki.issue_expired("broker", &["localhost"]);
    let broker = Mosquitto::open(&pki);
    pki.issue("client", &[]);
    all_say(
        &refusals(&pki.settings("client", broker.port, "")).await,
        "the broker's certificate ended on Wed, 01 Jan 2020",
    );
}

#[tokio::test]
async fn an_expired_client_certificate_is_refused_and_said_so() {
    let pki = Pki::new();
    let broker = Mosquitto::as_shipped(&pki);
    pki.issue_expired("client", &[]);
    all_say(&refusals(&pki.settings("client", broker.port, "")).await, "broker.cert_file");
}

#[tokio::test]
async fn a_client_certificate_of_another_ca_is_refused_and_said_so() {
    let pki = Pki::new();
    let broker = Mosquitto::as_shipped(&pki);
    for other in [Pki::named("another CA"), Pki::new()] {
        other.issue("client", &[]);
        let mut settings = other.settings("client", broker.port, "");
        settings.ca_file = pki.file("ca.pem");
        all_say(&refusals(&settings).await, "broker.cert_file");
    }
}

#[tokio::test]
async fn a_scripted_broker_with_tls_1_2_alone_is_refused_until_the_settings_allow_it() {
    let pki = Pki::new();
    let broker = ScriptedBroker::listen(&pki, &[&TLS12]).await;
    let port = broker.port;
    let serving = tokio::spawn(async move { broker.accept().await });
    pki.issue("client", &[]);
    all_say(&refusals(&pki.settings("client", port, "")).await, "broker.allow_tls12");
    let allowed = pki.settings("client", port, "allow_tls12 = true").check().unwrap();
    Client::connected(allowed, "client", &[]).await;
    serving.await.unwrap();
}

/// Connects past this crate's settings, which cannot be made that wrong.
async fn connect_raw(
    pki: &Pki,
    port: u16,
    version: &'static SupportedProtocolVersion,
    identity: Option<&str>,
) -> Result<(), ConnectionError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.file("ca.pem")).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let tls = match identity {
        None => tls.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(pki.file(&format!("{name}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(pki.file(&format!("{name}.key"))).unwrap();
            tls.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let mut options = MqttOptions::new("raw", "localhost", port);
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    EventLoop::new(options, 1).poll().await.map(drop)
}

#[tokio::test]
async fn the_shipped_mosquitto_refuses_clients_without_certificate_or_with_tls_1_2() {
    let pki = Pki::new();
    let broker = Mosquitto::as_shipped(&pki);
    pki.issue("raw", &[]);
    connect_raw(&pki, broker.port, &TLS13, Some("raw")).await.expect("what is tried below works as such");
    assert!(connect_raw(&pki, broker.port, &TLS13, None).await.is_err());
    assert!(connect_raw(&pki, broker.port, &TLS12, Some("raw")).await.is_err());
}

#[tokio::test]
async fn the_embedded_broker_refuses_clients_without_certificate_or_of_another_ca() {
    let (pki, other) = (Pki::new(), Pki::new());
    let broker = crate::connection_loss::embedded(&pki, 0);
    pki.issue("raw", &[]);
    other.issue("stranger", &[]);
    connect_raw(&pki, broker.port(), &TLS13, Some("raw")).await.expect("what is tried below works as such");
    assert!(connect_raw(&pki, broker.port(), &TLS13, None).await.is_err());
    let mut settings = other.settings("stranger", broker.port(), "");
    settings.ca_file = pki.file("ca.pem");
    all_say(&refusals(&settings).await, "broker.cert_file");
}
