//! `keylime-mqtt-demo-broker`: the embedded broker as a process, so that a test can kill and restart it.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context;
use clap::Parser;
use keylime_mqtt_embedded_broker::{EmbeddedBroker, EmbeddedSettings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// An MQTT broker for the demo and for tests only: no ACL, and any client can bring it down.
#[derive(Debug, Parser)]
struct Arguments {
    /// TCP port on 127.0.0.1; 0 takes a free one, which is printed
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// PEM file with the one CA of the clients' certificates
    #[arg(long)]
    ca: PathBuf,
    /// PEM file with the broker's certificate
    #[arg(long)]
    cert: PathBuf,
    /// PEM file with the broker's private key
    #[arg(long)]
    key: PathBuf,
    /// Largest payload in bytes
    #[arg(long, default_value_t = 120 * 1024)]
    max_payload: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttd=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let broker = EmbeddedBroker::start(EmbeddedSettings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port)),
        ca_file: arguments.ca,
        cert_file: arguments.cert,
        key_file: arguments.key,
        max_payload: arguments.max_payload,
    })?;
    writeln!(std::io::stdout(), "listening on port {}", broker.port())?;
    tokio::select! {
        _ = terminate.recv() => {}
        outcome = tokio::signal::ctrl_c() => outcome.context("cannot listen for Ctrl-C")?,
    }
    broker.stop();
    Ok(())
}
