//! rumqttd inside a process: **for demo and tests only**.
//!
//! It needs no installation, and that is all it has over a real broker. It must not face anyone else, because
//! rumqttd 0.20, as read and tried:
//!
//! - has no ACL: every client with a certificate reads every topic, publishes everywhere, and throws out any
//!   other by using its client id;
//! - does the TLS handshake in its accept loop without a time limit: one idle TCP connection stops all others;
//! - dies of a client id with `/`, `+`, `#` or `$` that connects twice, and of too many connections;
//! - keeps everything in memory and loses it at its end, also what it acknowledged;
//! - drops old messages silently for a slow reader;
//! - ends a connection it refuses without a word, so that nothing tells a wrong certificate from a bad network.
//!
//! Agent and bridge never depend on this crate; use Mosquitto (see `broker-config/mosquitto`) or another broker.
//!
//! Its place in the flow is that of the broker: [`EmbeddedBroker::start`] listens with TLS and demands client
//! certificates. Certificates for it must have no organization (O) in their subject: rumqttd takes that for a
//! tenant and prefixes the client id with it.

mod certificates;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    thread::{self, JoinHandle},
};

use rumqttd::{
    ConnectionSettings, LinkType, Router, RouterConfig, Server, ServerSettings, TlsConfig, protocol::v4::V4,
};
use tokio::{runtime, sync::oneshot};
use tracing::warn;

pub use certificates::CertificateError;

/// One more kills rumqttd's listener for good; a demo has tens.
const MAX_CONNECTIONS: usize = 1000;
/// Room for topic and headers: rumqttd's "payload" limit is the MQTT packet's remaining length.
const PACKET_HEADROOM: usize = 1024;
/// Each filter owns a log of up to segments times their size, for ever; rumqttd's sample allows 1 GiB of each.
const SEGMENTS_PER_FILTER: usize = 4;
/// A segment must hold a few of the largest messages, or they push each other out before they are read.
const SMALLEST_SEGMENT: usize = 512 * 1024;
/// Messages per connection and turn of the router.
const OUTGOING_PER_TURN: u64 = 200;
/// QoS 1 messages under way to one client.
const IN_FLIGHT: usize = 100;
/// From the end of the TLS handshake to CONNECT, in milliseconds.
const CONNECT_PATIENCE_MS: u16 = 10_000;

/// Where to listen and with which files, all PEM.
#[derive(Debug, Clone)]
pub struct EmbeddedSettings {
    /// Port 0 takes a free one, see [`EmbeddedBroker::port`].
    pub listen: SocketAddr,
    /// The one CA that issued the clients' certificates.
    pub ca_file: PathBuf,
    /// The broker's certificate, then its intermediates.
    pub cert_file: PathBuf,
    /// The broker's private key.
    pub key_file: PathBuf,
    /// Largest application payload in bytes; a client that sends more is thrown out.
    pub max_payload: usize,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// One of the files.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Listening failed: usually something else has the port.
    #[error("the embedded broker cannot listen on {listen} ({fault}); choose another address or port")]
    Listen {
        /// As asked for.
        listen: SocketAddr,
        /// From the operating system; rumqttd's error type is private.
        fault: String,
    },
    /// Its thread ended before it said anything.
    #[error("the embedded broker's thread ended at its start")]
    Vanished,
    /// No thread or runtime could be made.
    #[error("the embedded broker cannot start its thread: {0}")]
    Thread(io::Error),
}

/// A running broker. Dropping it stops it as well.
#[derive(Debug)]
pub struct EmbeddedBroker {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Returns once the broker listens.
    pub fn start(settings: EmbeddedSettings) -> Result<Self, EmbeddedError> {
        certificates::check(&settings)?;
        let listen = free_address(settings.listen)
            .map_err(|error| EmbeddedError::Listen { listen: settings.listen, fault: error.to_string() })?;
        let (stop, stop_asked) = oneshot::channel();
        let (report, started) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("embedded-broker".into())
            .spawn(move || serve(&settings, listen, stop_asked, &report))
            .map_err(EmbeddedError::Thread)?;
        started.recv().unwrap_or(Err(EmbeddedError::Vanished))?;
        warn!(
            %listen,
            "the embedded broker runs: for demo and tests only, it has no ACL and any client can bring it down"
        );
        Ok(Self { port: listen.port(), stop: Some(stop), thread: Some(thread) })
    }

    /// The TCP port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes all connections and the port. rumqttd offers no end for its router thread: that one stays, idle.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // dropping the sender is the signal
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the embedded broker's thread panicked");
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.end();
    }
}

/// rumqttd does not say which port it got, so a free one is found for it. Another process could take it in
/// between: then starting fails and says so.
fn free_address(listen: SocketAddr) -> io::Result<SocketAddr> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    TcpListener::bind(listen)?.local_addr()
}

type Report = std::sync::mpsc::SyncSender<Result<(), EmbeddedError>>;

/// The broker's thread: a runtime of its own, whose end closes every connection.
fn serve(
    settings: &EmbeddedSettings,
    listen: SocketAddr,
    stop_asked: oneshot::Receiver<()>,
    report: &Report,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(report, Err(EmbeddedError::Thread(error))),
    };
    let router = Router::new(0, router_config(settings)).spawn();
    let mut server = Server::new(server_settings(settings, listen), router, V4);
    runtime.block_on(async move {
        let serving = server.start(LinkType::Remote);
        tokio::pin!(serving);
        // the first poll binds the port; it has returned before the second branch is looked at
        tokio::select! {
            biased;
            ended = &mut serving => {
                let fault = ended.err().map_or_else(|| "it ended".into(), |error| format!("{error:?}"));
                return tell(report, Err(EmbeddedError::Listen { listen, fault }));
            }
            () = std::future::ready(()) => tell(report, Ok(())),
        }
        tokio::select! {
            ended = &mut serving => warn!(?ended, "the embedded broker's listener ended"),
            // answered or dropped: both mean stop
            _ = stop_asked => {}
        }
    });
    runtime.shutdown_background();
}

fn tell(report: &Report, outcome: Result<(), EmbeddedError>) {
    if report.send(outcome).is_err() {
        warn!("nobody waits for the embedded broker any more");
    }
}

fn router_config(settings: &EmbeddedSettings) -> RouterConfig {
    RouterConfig {
        max_connections: MAX_CONNECTIONS,
        max_outgoing_packet_count: OUTGOING_PER_TURN,
        max_segment_size: SMALLEST_SEGMENT.max(settings.max_payload.saturating_mul(SEGMENTS_PER_FILTER)),
        max_segment_count: SEGMENTS_PER_FILTER,
        ..RouterConfig::default()
    }
}

fn server_settings(settings: &EmbeddedSettings, listen: SocketAddr) -> ServerSettings {
    let path = |file: &PathBuf| file.to_string_lossy().into_owned();
    ServerSettings {
        name: "embedded".into(),
        listen,
        tls: Some(TlsConfig::Rustls {
            capath: Some(path(&settings.ca_file)),
            certpath: path(&settings.cert_file),
            keypath: path(&settings.key_file),
        }),
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: CONNECT_PATIENCE_MS,
            max_payload_size: settings.max_payload.saturating_add(PACKET_HEADROOM),
            max_inflight_count: IN_FLIGHT,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}
