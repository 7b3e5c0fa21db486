//! The other side for tests: mosquitto over TLS, an agent process, and a bridge that says what the test tells it to.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::counted::Counted;
use keylime_mqtt_broker_config::{BrokerSettings, Incoming, Link, LinkEvent, Qos, connect};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::fragment::Reassembly;
use keylime_mqtt_schemas::messages::{BridgeStatus, Down, Presence, Question, Up};
use keylime_mqtt_schemas::topics::{Topic, Topics};
use keylime_mqtt_schemas::wire::{pack_down, unpack_up};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// Everything in these tests happens within seconds; on a loaded machine within many.
const PATIENCE: Duration = Duration::from_secs(60);

/// Written for the bridge's usual name.
const SHIPPED_ACL: &str = include_str!("../../../broker-config/mosquitto/acl");

/// Directory with certificates, broker, agent's files.
pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    port: u16,
    pub(crate) counted: Counted,
    broker: Child,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with("allow_anonymous true")
    }

    /// With the shipped ACL, by which a certificate's common name opens its own topics.
    pub(crate) fn with_acl() -> Self {
        Self::with("use_identity_as_username true\nacl_file DIRECTORY/acl")
    }

    /// With further lines in the broker's configuration.
    pub(crate) fn with(conf: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        issue_certificates(directory.path());
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let at = directory.path().display();
        let conf = format!(
            "listener {port} 127.0.0.1\ncafile {at}/ca.pem\ncertfile {at}/broker.pem\nkeyfile {at}/broker.key\n\
             require_certificate true\nlog_dest stderr\nlog_type information\nuser root\n{}\n",
            conf.replace("DIRECTORY", &at.to_string())
        );
        fs::write(directory.path().join("acl"), SHIPPED_ACL.replace("keylime-bridge", "bridge")).unwrap();
        fs::write(directory.path().join("mosquitto.conf"), conf).unwrap();
        fs::write(directory.path().join("boot_id"), "a boot").unwrap();
        fs::write(directory.path().join("boot_time"), "1790000000").unwrap();
        let broker = start_mosquitto(&directory.path().join("mosquitto.conf"));
        Self { directory, port, counted: Counted::to(port), broker }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a configuration for an agent; `more` are lines before the first table.
    pub(crate) fn configure(&self, tcti: &str, more: &str) -> PathBuf {
        let at = self.directory.path().display();
        let text = format!(
            "id = 'gateway-7'\nstate_dir = '{at}/state'\nboot_id_file = '{at}/boot_id'\nboot_time_file = '{at}/boot_time'\n\
             first_retry_seconds = 2\nlog = 'trace,rumqttc=info,rustls=info'\n{more}\n[tpm]\ntcti = '{tcti}'\n\
             command_timeout_seconds = 20\n[broker]\n{}",
            self.broker_table("agent", self.counted.port)
        );
        let path = self.path("agent.toml");
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn agent(&self, arguments: &[&str]) -> Agent {
        Agent::start(&self.path("agent.toml"), arguments)
    }

    /// A bridge that is connected.
    pub(crate) async fn bridge(&self) -> Bridge {
        let settings: BrokerSettings = figment_toml(&self.broker_table("bridge", self.port));
        let topics = Topics::default();
        let subscriptions =
            topics.bridge_filters(None).into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect();
        let (link, incoming) = connect(settings.check().unwrap(), "bridge".to_owned(), None, subscriptions);
        let mut bridge = Bridge {
            link,
            incoming,
            topics,
            id: "gateway-7".parse().unwrap(),
            reassembly: Reassembly::default(),
            presences: 0,
        };
        loop {
            if let LinkEvent::Connected { .. } = bridge.event().await {
                return bridge;
            }
        }
    }

    fn broker_table(&self, name: &str, port: u16) -> String {
        let at = self.directory.path().display();
        format!(
            "host = 'localhost'\nport = {port}\nca_file = '{at}/ca.pem'\ncert_file = '{at}/{name}.pem'\n\
             key_file = '{at}/{name}.key'\nreconnect_first_seconds = 1\nreconnect_longest_seconds = 1\n"
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.broker.kill().unwrap();
        self.broker.wait().unwrap();
    }
}

/// Speaks when told to, and hears everything.
pub(crate) struct Bridge {
    link: Link,
    incoming: Incoming,
    topics: Topics,
    id: AgentId,
    reassembly: Reassembly,
    presences: u32,
}

impl Bridge {
    pub(crate) fn say(&self, question: Question) {
        let payload = pack_down(&Down { question, via: None }).unwrap();
        self.say_bytes(payload);
    }

    pub(crate) fn say_bytes(&self, payload: Vec<u8>) {
        self.link.publish(&self.topics.challenge(&self.id), payload, Qos::AtLeastOnce, false).unwrap();
    }

    /// Leaves its status, as a bridge does when it connects and when it goes.
    pub(crate) fn leave_status(&self, online: bool) {
        let status = serde_json::to_vec(&BridgeStatus { online, since: 1 }).unwrap();
        self.retain("keylime/v1-bridge/bridge", &status);
    }

    /// Leaves this with the broker.
    pub(crate) fn retain(&self, topic: &str, payload: &[u8]) {
        self.link.publish(topic, payload.to_vec(), Qos::AtLeastOnce, true).unwrap();
    }

    /// Ends its connection once all it said has arrived.
    pub(crate) async fn goes(self) {
        self.link.shutdown().await;
    }

    /// The next thing the device says.
    pub(crate) async fn hear(&mut self) -> Up {
        loop {
            let LinkEvent::Message { topic, payload, .. } = self.event().await else { continue };
            let parsed = self.topics.parse(&topic).unwrap();
            self.presences += u32::from(matches!(parsed, Topic::Presence(_)));
            if let Topic::Evidence(id, via) = parsed {
                assert_eq!((id.as_str(), via), ("gateway-7", None));
                if let Some(up) = unpack_up(payload, &mut self.reassembly, Duration::ZERO).unwrap() {
                    return up;
                }
            }
        }
    }

    /// Whether a device that is heard of now has said that it is or is not connected, then or before.
    pub(crate) async fn says_presence(&mut self) -> bool {
        while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, self.incoming.next()).await {
            if let LinkEvent::Message { topic, .. } = event
                && matches!(self.topics.parse(&topic), Ok(Topic::Presence(_)))
            {
                return true;
            }
        }
        self.presences > 0
    }

    pub(crate) async fn presence(&mut self, online: bool) {
        loop {
            let LinkEvent::Message { topic, payload, .. } = self.event().await else { continue };
            let presence = matches!(self.topics.parse(&topic), Ok(Topic::Presence(_)));
            if presence && decode::<Presence>(&payload).unwrap().online == online {
                return;
            }
        }
    }

    async fn event(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.incoming.next()).await.expect("nothing came").unwrap()
    }
}

/// The binary at work.
pub(crate) struct Agent {
    process: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(config: &Path, arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-agent"))
            .arg("--config")
            .arg(config)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let shared = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                writeln!(shared.lock().unwrap(), "{line}").unwrap();
            }
        });
        Self { process, log, reader: Some(reader) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    pub(crate) fn said(&self, words: &str) -> bool {
        self.log.lock().unwrap().contains(words)
    }

    /// Waits for the end; gives status and log.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap().clone();
        (status, log)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            self.process.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log.lock().unwrap());
        }
    }
}

fn figment_toml(text: &str) -> BrokerSettings {
    use figment::providers::{Format, Toml};
    figment::Figment::new().merge(Toml::string(text)).extract().unwrap()
}

fn issue_certificates(directory: &Path) {
    let named = |name: &str, hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut ca = named("test CA", &[]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    fs::write(directory.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let clients = ["agent", "bridge", "gateway-7", "expired"].map(|name| (name, &[][..]));
    for (name, hosts) in [("broker", &["localhost"][..])].into_iter().chain(clients) {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name, hosts);
        if name == "expired" {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let key_file = directory.join(format!("{name}.key"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// Returns once mosquitto says that it is running.
fn start_mosquitto(conf: &Path) -> Child {
    let mut process = Command::new("mosquitto")
        .arg("-c")
        .arg(conf)
        .stderr(Stdio::piped())
        .spawn()
        .expect("mosquitto is installed");
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(" running")), "mosquitto ended at its start");
    // An unread pipe would fill and block it.
    thread::spawn(move || lines.count());
    process
}
