//! A hostile broker of real parts: one mosquitto for the devices, another for the bridge, and between them a
//! [`Liar`](keylime_mqtt_liar::Liar) that carries what is said both ways, or something else.
//!
//! To either side it is their broker: TLS, certificates and ACL are as shipped. Threads read from both, one publishes
//! what is due; when and what is the liar's alone.

use crate::broker::{Broker, BrokerKind, LIAR};
use crate::device::{Device, DeviceSettings};
use crate::observe::tls;
use crate::pki::{Certificate, Pki};
use crate::stranger::Stranger;
use crate::world::{World, WorldSettings};
use anyhow::{Context, Result};
use keylime_mqtt_liar::{Direction, Flow, Liar, Plan, Table};
use keylime_mqtt_schemas::topics::{Topic, Topics};
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Above the largest message and a flood of them.
const PACKET_MAX: usize = 256 * 1024;
/// Messages on their way to a broker.
const REQUESTS: usize = 1000;
/// Between attempts to reach a broker.
const RECONNECT_EVERY: Duration = Duration::from_millis(200);
/// When nothing is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A world in which the broker lies, or does not yet.
pub struct HostileWorld {
    /// All but the devices' broker; its own broker is the bridge's
    pub world: World,
    /// What is between
    pub between: Between,
    devices: Broker,
}

impl HostileWorld {
    /// Everything started; nobody lies yet.
    pub fn start(settings: &WorldSettings, seed: u64) -> Result<Self> {
        let interval = Duration::from_secs(settings.keylime.quote_interval.into());
        let world = World::start(settings)?;
        let mut devices =
            Broker::configure_as("devices-broker", BrokerKind::Mosquitto, &world.scratch, &world.pki)?;
        devices.power_on()?;
        let stranger = Stranger::with_a_new_key(&world.scratch)?;
        let liar = Liar::new(seed, interval, Box::new(stranger));
        let between = Between::connect(&devices, &world.broker, &world.pki, liar)?;
        Ok(Self { world, between, devices })
    }

    /// A device that reaches the devices' broker and no other; it may bear its id.
    pub fn device(&self, name: &str, settings: DeviceSettings) -> Result<Device> {
        let mut device = self.world.device(name, settings)?;
        device.change_access(|access| access.port = self.devices.port())?;
        if device.id() != device.ek_hash() {
            self.world.admit(device.id(), device.ek_hash())?;
        }
        Ok(device)
    }

    /// The devices' broker.
    pub fn devices_broker(&self) -> &Broker {
        &self.devices
    }
}

/// What is to be published, where, and when.
struct Due {
    at: Instant,
    to: Direction,
    topic: String,
    payload: Vec<u8>,
    retain: bool,
    qos: QoS,
}

/// The way between both brokers.
pub struct Between {
    liar: Arc<Mutex<Liar>>,
    started: Instant,
    ended: Arc<AtomicBool>,
    forgets: Arc<AtomicBool>,
    clients: [Client; 2],
}

impl Between {
    /// Connects to both and carries from then on.
    pub fn connect(devices: &Broker, bridges: &Broker, pki: &Pki, liar: Liar) -> Result<Self> {
        let certificate = pki.issue(LIAR, &[])?;
        let started = Instant::now();
        let (liar, ended) = (Arc::new(Mutex::new(liar)), Arc::new(AtomicBool::new(false)));
        let (give, take) = channel();
        let read = |from: Direction, broker: &Broker, filters: &'static [&'static str]| {
            let (liar, give, ended) = (Arc::clone(&liar), give.clone(), Arc::clone(&ended));
            let options = options(broker, pki, &certificate)?;
            Ok::<_, anyhow::Error>(Reader { from, liar, give, started, ended }.start(options, filters))
        };
        let up = read(
            Direction::Up,
            devices,
            &["keylime/v1/+/evidence", "keylime/v1/+/evidence/+", "keylime/v1/+/presence"],
        )?;
        let down = read(Direction::Down, bridges, &["keylime/v1/+/challenge"])?;
        let (to_devices, to_bridges) = (up.clone(), down.clone());
        let forgets = Arc::new(AtomicBool::new(false));
        let (publishing, forgetting) = (Arc::clone(&ended), Arc::clone(&forgets));
        std::thread::spawn(move || publish(&take, &to_devices, &to_bridges, &publishing, &forgetting));
        Ok(Self { liar, started, ended, forgets, clients: [up, down] })
    }

    fn liar(&self) -> MutexGuard<'_, Liar> {
        self.liar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the liar is about from now on.
    pub fn plan(&self, plan: Plan) {
        self.liar().plan(plan);
    }

    /// Carries honestly from now on; what was delayed never comes.
    pub fn stop_lying(&self) {
        self.liar().stop();
        self.forgets.store(true, Ordering::Relaxed);
    }

    /// Where in its life this device is from now on.
    pub fn in_flow(&self, device: &str, flow: Flow) {
        self.liar().in_flow(device, flow);
    }

    /// The device or its bridge has restarted.
    pub fn restarted(&self, device: &str) {
        self.liar().restarted(device);
    }

    /// The verifier has judged the device.
    pub fn judged(&self, device: &str) {
        let now = self.started.elapsed();
        self.liar().judged(device, now);
    }

    /// What was told.
    pub fn table(&self) -> Table {
        self.liar().table().clone()
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for client in &self.clients {
            // Its thread ends with the connection.
            client.try_disconnect().ok();
        }
    }
}

fn options(broker: &Broker, pki: &Pki, certificate: &Certificate) -> Result<MqttOptions> {
    let mut options = MqttOptions::new(LIAR, "localhost", broker.port());
    options.set_max_packet_size(PACKET_MAX, PACKET_MAX);
    options.set_inflight(100);
    options.set_keep_alive(Duration::from_secs(60));
    let tls = tls(&pki.ca(), certificate).context("the liar's certificate")?;
    options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls))));
    Ok(options)
}

/// Reads from one broker and gives what the liar makes of it to the publisher.
struct Reader {
    from: Direction,
    liar: Arc<Mutex<Liar>>,
    give: Sender<Due>,
    started: Instant,
    ended: Arc<AtomicBool>,
}

impl Reader {
    fn start(self, options: MqttOptions, filters: &'static [&'static str]) -> Client {
        let (client, mut connection) = Client::new(options, REQUESTS);
        let asking = client.clone();
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for filter in filters {
                            asking.try_subscribe(*filter, QoS::AtLeastOnce).ok();
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => self.carry(&publish),
                    Err(_) if self.ended.load(Ordering::Relaxed) => return,
                    Err(_) => std::thread::sleep(RECONNECT_EVERY),
                    Ok(_) => {}
                }
            }
        });
        client
    }

    fn carry(&self, publish: &rumqttc::Publish) {
        let topics = Topics::default();
        let now = Instant::now();
        let parsed = topics.parse(&publish.topic);
        let (id, on) = match &parsed {
            Ok(Topic::Evidence(id, _) | Topic::Challenge(id)) => (id, self.from),
            Ok(Topic::Presence(id)) => (id, Direction::Presence),
            Ok(_) | Err(_) => return,
        };
        let mut liar = self.liar.lock().unwrap_or_else(PoisonError::into_inner);
        for lied in liar.pass(id.as_str(), on, &publish.payload, self.started.elapsed()) {
            let topic = if lied.on == on {
                publish.topic.replacen(id.as_str(), &lied.device, 1)
            } else {
                topics.presence(id)
            };
            // Presence is retained at the bridge's broker too, however it came here.
            let retain = lied.on == Direction::Presence;
            let (at, to, payload, qos) = (now + lied.after, lied.on, lied.payload, publish.qos);
            // The publisher goes with the test.
            self.give.send(Due { at, to, topic, payload, retain, qos }).ok();
        }
    }
}

/// Publishes what is due; in the order in which it was given where it is due at once.
fn publish(
    take: &Receiver<Due>,
    to_devices: &Client,
    to_bridges: &Client,
    ended: &AtomicBool,
    forgets: &AtomicBool,
) {
    let mut waiting: BTreeMap<(Instant, u64), Due> = BTreeMap::new();
    let mut number = 0;
    while !ended.load(Ordering::Relaxed) {
        let next = waiting.first_key_value().map(|((at, _), _)| *at);
        let patience = next.map_or(LOOK_EVERY, |at| at.saturating_duration_since(Instant::now()));
        if let Ok(due) = take.recv_timeout(patience.min(LOOK_EVERY)) {
            number += 1;
            waiting.insert((due.at, number), due);
        }
        if forgets.swap(false, Ordering::Relaxed) {
            let now = Instant::now();
            waiting.retain(|(at, _), _| *at <= now);
        }
        let now = Instant::now();
        while waiting.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            let Some((_, due)) = waiting.pop_first() else { break };
            // What a device says goes to the bridge's broker, and the other way round.
            let client = if due.to == Direction::Down { to_devices } else { to_bridges };
            if client.publish(due.topic, due.qos, due.retain, due.payload).is_err() {
                return;
            }
        }
    }
}
