//! Clients that look on: one that reads results as a relying party does, one that records everything that passes.
//!
//! A thread drives the connection and keeps every message in order of arrival; waiting for one is waiting on a
//! condition variable, not on time.

use crate::eventually::PATIENCE;
use crate::pki::Certificate;
use crate::scratch::tails;
use anyhow::{Context, Result, bail};
use keylime_mqtt_schemas::messages::{AttestationResult, Verdict};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Above the largest message, so that nothing escapes the record.
const PACKET_MAX: usize = 256 * 1024;

/// Between attempts to reach a broker that is down.
const RECONNECT_EVERY: Duration = Duration::from_millis(200);

/// Subscriptions and pings under way at once.
const REQUESTS: usize = 10;

/// A message as it passed the broker.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Topic
    pub topic: String,
    /// Payload
    pub payload: Vec<u8>,
    /// Whether the broker had kept it from before
    pub retained: bool,
    /// When it arrived here
    pub at: Instant,
}

impl Seen {
    /// The result that it carries, if it is one.
    pub fn result(&self) -> Option<AttestationResult> {
        if !self.topic.ends_with("/result") {
            return None;
        }
        serde_json::from_slice(&self.payload).ok()
    }
}

/// A connected client that keeps what it sees.
pub struct Observer {
    client: Client,
    record: Arc<Record>,
    logs: PathBuf,
}

#[derive(Default)]
struct Record {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    subscriptions: usize,
    seen: Vec<Seen>,
    trouble: Option<String>,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Observer {
    /// Connects with a certificate, subscribes to `filters`, and returns when the broker has granted them.
    pub fn connect(
        port: u16,
        ca: &Path,
        certificate: &Certificate,
        filters: &[&str],
        logs: &Path,
    ) -> Result<Self> {
        Self::connect_to("localhost", port, ca, certificate, filters, logs)
    }

    /// The same, with a broker that is not on this machine.
    pub fn connect_to(
        host: &str,
        port: u16,
        ca: &Path,
        certificate: &Certificate,
        filters: &[&str],
        logs: &Path,
    ) -> Result<Self> {
        let name =
            certificate.certificate.file_stem().context("a certificate without a name")?.to_string_lossy();
        let mut options = MqttOptions::new(name, host, port);
        options.set_max_packet_size(PACKET_MAX, PACKET_MAX);
        options.set_keep_alive(Duration::from_secs(60));
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls(ca, certificate)?))));
        let (client, mut connection) = Client::new(options, REQUESTS);
        let record = Arc::new(Record::default());
        let (writer, asking) = (Arc::clone(&record), client.clone());
        let wanted: Vec<String> = filters.iter().map(ToString::to_string).collect();
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        // The broker may have forgotten: with a clean session, subscriptions end with each connection.
                        for filter in &wanted {
                            asking.try_subscribe(filter, QoS::AtLeastOnce).ok();
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => writer.change(|state| state.subscriptions += 1),
                    Ok(Event::Incoming(Packet::Publish(publish))) => writer.change(|state| {
                        state.seen.push(Seen {
                            topic: publish.topic,
                            payload: publish.payload.to_vec(),
                            retained: publish.retain,
                            at: Instant::now(),
                        });
                    }),
                    Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                    Ok(_) => {}
                    Err(error) => {
                        writer.change(|state| state.trouble = Some(error.to_string()));
                        std::thread::sleep(RECONNECT_EVERY);
                    }
                }
            }
        });
        let observer = Self { client, record, logs: logs.to_owned() };
        let granted = filters.len();
        observer
            .wait("the observer is subscribed", |state| (state.subscriptions >= granted).then_some(()))?;
        Ok(observer)
    }

    /// Everything so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.record.lock().seen.clone()
    }

    /// Everything from `mark` on.
    pub fn seen_from(&self, mark: usize) -> Vec<Seen> {
        self.record.lock().seen.get(mark..).unwrap_or_default().to_vec()
    }

    /// What `find` makes of the messages from `mark` on, in order of arrival.
    pub fn collect_from<T>(&self, mark: usize, find: impl FnMut(&Seen) -> Option<T>) -> Vec<T> {
        self.record.lock().seen.iter().skip(mark).filter_map(find).collect()
    }

    /// How many messages so far: a place to look on from.
    pub fn mark(&self) -> usize {
        self.record.lock().seen.len()
    }

    /// The first message from `mark` on in which `find` finds something.
    pub fn wait_from<T>(&self, mark: usize, awaited: &str, find: impl Fn(&Seen) -> Option<T>) -> Result<T> {
        self.wait(awaited, |state| state.seen.iter().skip(mark).find_map(&find))
    }

    /// As [`wait_from`](Self::wait_from), where it may stay away: nothing by `deadline`.
    pub fn wait_until<T>(
        &self,
        deadline: Instant,
        mark: usize,
        find: impl Fn(&Seen) -> Option<T>,
    ) -> Option<T> {
        self.find_until(deadline, |state| state.seen.iter().skip(mark).find_map(&find)).ok()
    }

    /// The next result about `id`, published after `mark`, with this verdict.
    pub fn verdict_from(&self, mark: usize, id: &str, verdict: Verdict) -> Result<AttestationResult> {
        self.wait_from(mark, &format!("{verdict:?} for {id}"), |seen| {
            seen.result()
                .filter(|_| !seen.retained)
                .filter(|result| result.agent_id.as_str() == id && result.verdict == verdict)
        })
    }

    /// Results about `id` so far, oldest first.
    pub fn results(&self, id: &str) -> Vec<AttestationResult> {
        let seen = self.seen();
        seen.iter().filter_map(Seen::result).filter(|result| result.agent_id.as_str() == id).collect()
    }

    /// Publishes at QoS 1, as this client's certificate.
    pub fn publish(&self, topic: &str, retain: bool, payload: &[u8]) -> Result<()> {
        Ok(self.client.publish(topic, QoS::AtLeastOnce, retain, payload)?)
    }

    fn wait<T>(&self, awaited: &str, find: impl Fn(&State) -> Option<T>) -> Result<T> {
        match self.find_until(Instant::now() + PATIENCE, find) {
            Ok(found) => Ok(found),
            Err(trouble) => bail!("in vain awaited: {awaited}; {trouble}\n{}", tails(&self.logs)),
        }
    }

    /// What `find` finds by `deadline`, or what the connection suffered last.
    fn find_until<T>(&self, deadline: Instant, find: impl Fn(&State) -> Option<T>) -> Result<T, String> {
        let mut state = self.record.lock();
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(state.trouble.clone().unwrap_or_default());
            };
            state = self.record.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // Its thread ends with the connection; a full queue means that the broker is gone, and the thread with it.
        self.client.try_disconnect().ok();
    }
}

pub(crate) fn tls(ca: &Path, certificate: &Certificate) -> Result<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca)? {
        roots.add(root?)?;
    }
    let chain = CertificateDer::pem_file_iter(&certificate.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&certificate.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_client_auth_cert(chain, key)?)
}
