//! Stand-ins for cloud brokers: a mosquitto with exactly the limits that the cloud's documentation names.
//!
//! A stand-in shows sizes, keep-alive, QoS and ALPN. It shows nothing of a cloud's authorization, and some limits mosquitto
//! cannot have: those are held against what passed the broker, see [`Stretch`].

use crate::broker::{Broker, Elsewhere};
use crate::chain::mosquitto;
use crate::keylime::repository;
use crate::observe::Seen;
use crate::pki::Pki;
use crate::ports::Port;
use crate::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What is imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// 128 KB a message, more ends the connection; 100 in flight; QoS 1; keep-alive up to 1200 s; ALPN at port 443
    AwsIotCore,
    /// 512 KB a message; QoS 1; keep-alive up to 1160 s
    AzureEventGrid,
    /// Nothing but this limit of bytes in a packet, more ends the connection
    SmallPackets(usize),
    /// This limit of bytes in a payload, above which a message is acknowledged and dropped
    SmallPayloads(usize),
}

impl Cloud {
    /// Lines of the shipped mosquitto.conf, and what stands in their place.
    fn replaced(self) -> Vec<(String, String)> {
        let (packet, payload, in_flight) = match self {
            Self::AwsIotCore => (128 * 1024, 128 * 1024, 100),
            Self::AzureEventGrid => (512 * 1024, 512 * 1024, 100),
            Self::SmallPackets(bytes) => (bytes, bytes, 20),
            Self::SmallPayloads(bytes) => (128 * 1024, bytes, 20),
        };
        let keep_alive = match self {
            Self::AwsIotCore => "\nmax_keepalive 1200\nmax_qos 1",
            Self::AzureEventGrid => "\nmax_keepalive 1160\nmax_qos 1",
            Self::SmallPackets(_) | Self::SmallPayloads(_) => "",
        };
        vec![
            ("message_size_limit 123904".to_owned(), format!("message_size_limit {payload}")),
            ("max_packet_size 131072".to_owned(), format!("max_packet_size {packet}{keep_alive}")),
            ("max_inflight_messages 20".to_owned(), format!("max_inflight_messages {in_flight}")),
        ]
    }

    /// A mosquitto with these limits, not started.
    pub fn broker(self, port: &Port, scratch: &Scratch, pki: &Pki) -> Result<Broker> {
        let server = pki.issue("broker", &["localhost"])?;
        let place: Elsewhere =
            mosquitto("broker", port.number(), "mosquitto/mosquitto.conf", "acl", self.replaced());
        Broker::configure_elsewhere(place, scratch, pki, server)
    }
}

/// The settings of a shipped profile, as lines of the `[broker]` table: all but where the broker and the files are.
pub fn profile(folder: &str) -> Result<String> {
    let file = repository().join("broker-config").join(folder).join("profile.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
    let (_, table) = text.split_once("[broker]\n").context("a profile without a [broker] table")?;
    let elsewhere = ["host", "port", "ca_file", "cert_file", "key_file"];
    let is_setting = |line: &&str| {
        line.split_once(" = ").is_some_and(|(key, _)| !line.starts_with('#') && !elsewhere.contains(&key))
    };
    let lines: Vec<&str> = table.lines().filter(is_setting).collect();
    ensure!(!lines.is_empty(), "{} sets nothing", file.display());
    Ok(lines.join("\n") + "\n")
}

/// What one client sent, held against limits that mosquitto does not have.
#[derive(Debug, Default)]
pub struct Stretch {
    /// Slashes in the topic with most of them
    pub slashes: usize,
    /// Bytes of the longest topic
    pub topic: usize,
    /// Bytes of the largest payload
    pub payload: usize,
    /// The most messages of one client in any second
    pub messages_in_a_second: usize,
    /// The most bytes of one client in any second
    pub bytes_in_a_second: usize,
    /// All messages
    pub messages: usize,
}

impl Stretch {
    /// Of what the observer saw: topics tell who sent, a device or the bridge.
    pub fn of(seen: &[Seen]) -> Self {
        let mut stretch = Self { messages: seen.len(), ..Self::default() };
        let mut senders: BTreeMap<&str, Vec<(Instant, usize)>> = BTreeMap::new();
        for message in seen {
            let levels: Vec<&str> = message.topic.split('/').collect();
            let by_device = levels.iter().any(|level| ["evidence", "presence"].contains(level));
            let sender = levels.get(2).filter(|_| by_device).copied().unwrap_or("bridge");
            senders.entry(sender).or_default().push((message.at, message.payload.len()));
            stretch.slashes = stretch.slashes.max(message.topic.matches('/').count());
            stretch.topic = stretch.topic.max(message.topic.len());
            stretch.payload = stretch.payload.max(message.payload.len());
        }
        for sent in senders.values() {
            for (index, (from, _)) in sent.iter().enumerate() {
                let second =
                    sent.iter().skip(index).take_while(|(at, _)| *at - *from < Duration::from_secs(1));
                let (messages, bytes) = second.fold((0, 0), |(m, b), (_, bytes)| (m + 1, b + bytes));
                stretch.messages_in_a_second = stretch.messages_in_a_second.max(messages);
                stretch.bytes_in_a_second = stretch.bytes_in_a_second.max(bytes);
            }
        }
        stretch
    }
}

/// A port that serves only who offers a protocol by ALPN, as AWS's port 443 does; what it serves it passes on.
///
/// The name is read in the ClientHello, where RFC 7301 has it in the clear.
#[derive(Debug)]
pub struct AlpnGate {
    port: u16,
}

impl AlpnGate {
    /// In front of the broker at `port` of this machine.
    pub fn before(port: u16, protocol: &'static str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let gate = Self { port: listener.local_addr()?.port() };
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || pass_on(client, port, protocol));
            }
        });
        Ok(gate)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// RFC 8446 §5.1: type, version and length of a record.
const RECORD_HEADER: usize = 5;

fn pass_on(mut client: TcpStream, port: u16, protocol: &str) -> Result<()> {
    let mut hello = vec![0; RECORD_HEADER];
    client.read_exact(&mut hello)?;
    let [.., high, low] = hello[..] else { return Ok(()) };
    hello.resize(RECORD_HEADER + usize::from(u16::from_be_bytes([high, low])), 0);
    client.read_exact(hello.get_mut(RECORD_HEADER..).context("a record without a body")?)?;
    let name = [&[u8::try_from(protocol.len())?], protocol.as_bytes()].concat();
    if !hello.windows(name.len()).any(|window| window == name) {
        return Ok(());
    }
    let mut broker = TcpStream::connect(("127.0.0.1", port))?;
    for stream in [&client, &broker] {
        stream.set_nodelay(true)?;
    }
    broker.write_all(&hello)?;
    let (mut from, mut to) = (broker.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        std::io::copy(&mut from, &mut to).ok();
        to.shutdown(Shutdown::Both).ok();
    });
    std::io::copy(&mut client, &mut broker).ok();
    Ok(broker.shutdown(Shutdown::Both)?)
}
