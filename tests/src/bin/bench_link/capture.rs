//! What a capture says: packets with their sizes, and the TLS records inside.
//!
//! A packet counts with its whole IP length (RFC 791's "total length"), headers included, link layer not. TLS
//! records are found by their headers, which TLS 1.3 leaves readable (RFC 8446, 5.2): their sizes tell what an
//! observer of the broker cannot see, such as PUBACKs.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::time::Duration;

/// Ethernet type of IPv4.
const IPV4: u16 = 0x0800;
const TCP: u8 = 6;
pub(crate) const ETHERNET_HEADER: usize = 14;
/// TLS record types (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const RECORD_HEADER: usize = 5;
const SERVER_HELLO: u8 = 2;
/// Extension type `pre_shared_key` (RFC 8446, 4.2).
const PRE_SHARED_KEY: u16 = 41;
/// What TLS 1.3 adds to a message: record header, content type, AEAD tag.
pub(crate) const RECORD_OVERHEAD: usize = RECORD_HEADER + 1 + 16;

/// One IP packet of TCP.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// Since the Unix epoch
    pub(crate) at: Duration,
    /// From the device
    pub(crate) up: bool,
    /// The device's port: the connection
    pub(crate) port: u16,
    /// IP total length
    pub(crate) bytes: usize,
    /// Of these, TCP payload
    pub(crate) payload: usize,
    /// Opens the connection
    pub(crate) syn: bool,
    /// Its payload was sent before
    pub(crate) again: bool,
}

/// A TLS record of type application data, placed at the packet in which it begins.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Index of that packet
    pub(crate) packet: usize,
    /// From the device
    pub(crate) up: bool,
    /// Bytes of MQTT inside
    pub(crate) plain: usize,
}

/// All of a capture.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) packets: Vec<Packet>,
    pub(crate) records: Vec<Record>,
    /// Connections, by port, in which the broker accepted a ticket
    pub(crate) resumed: Vec<u16>,
    /// Packets that were no TCP over IPv4
    pub(crate) strangers: usize,
}

/// One direction of one connection, put together.
#[derive(Default)]
struct Stream {
    next: Option<u32>,
    pending: Vec<u8>,
    /// The packet in which `pending` begins
    begins: usize,
}

impl Capture {
    /// Reads pcap as tcpdump writes it on this machine: native byte order, microseconds, Ethernet.
    pub(crate) fn parse(pcap: &[u8], broker_port: u16) -> Result<Self> {
        let mut capture = Self::default();
        let mut streams: BTreeMap<(u16, bool), Stream> = BTreeMap::new();
        let (header, mut rest) = pcap.split_at_checked(24).context("no pcap header")?;
        ensure!(word(header, 0) == Some(0xa1b2_c3d4), "not the pcap that tcpdump writes");
        while let Some((header, tail)) = rest.split_at_checked(16) {
            let field = |at| word(header, at).context("a short pcap record");
            let at = Duration::from_secs(field(0)?.into()) + Duration::from_micros(field(4)?.into());
            let size = usize::try_from(field(8)?)?;
            ensure!(field(8)? == field(12)?, "a packet was cut by the capture");
            let (frame, next) = tail.split_at_checked(size).context("the capture ends in a packet")?;
            rest = next;
            match Segment::read(frame, broker_port) {
                Some(segment) => capture.add(at, &segment, &mut streams),
                None => capture.strangers += 1,
            }
        }
        Ok(capture)
    }

    fn add(&mut self, at: Duration, segment: &Segment<'_>, streams: &mut BTreeMap<(u16, bool), Stream>) {
        let Segment { up, port, bytes, sequence, syn, payload } = *segment;
        let index = self.packets.len();
        let stream = streams.entry((port, up)).or_default();
        let again = !payload.is_empty() && !syn && stream.next.is_some_and(|next| next != sequence);
        self.packets.push(Packet { at, up, port, bytes, payload: payload.len(), syn, again });
        if syn {
            *stream = Stream { next: Some(sequence.wrapping_add(1)), ..Stream::default() };
            return;
        }
        // What is sent again counts as bytes and is no new record. Nothing reorders on a veth pair.
        if payload.is_empty() || again {
            return;
        }
        stream.next = Some(sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(0)));
        if stream.pending.is_empty() {
            stream.begins = index;
        }
        stream.pending.extend_from_slice(payload);
        while let Some((kind, body)) = record(&stream.pending) {
            let size = body.len();
            match kind {
                APPLICATION_DATA => self.records.push(Record {
                    packet: stream.begins,
                    up,
                    plain: (size + RECORD_HEADER).saturating_sub(RECORD_OVERHEAD),
                }),
                HANDSHAKE if !up && accepts_ticket(body) => self.resumed.push(port),
                _ => {}
            }
            stream.pending.drain(..RECORD_HEADER + size);
            stream.begins = index;
        }
    }
}

struct Segment<'a> {
    up: bool,
    port: u16,
    bytes: usize,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn read(frame: &'a [u8], broker_port: u16) -> Option<Self> {
        let half = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 2).and_then(|half| half.try_into().ok()).map(u16::from_be_bytes)
        };
        if half(frame, 12)? != IPV4 {
            return None;
        }
        let packet = frame.get(ETHERNET_HEADER..)?;
        let bytes = usize::from(half(packet, 2)?);
        if *packet.get(9)? != TCP {
            return None;
        }
        // The link pads short frames, so the packet ends where its own length says.
        let tcp = packet.get(usize::from(packet.first()? & 15) * 4..bytes)?;
        let (from, to) = (half(tcp, 0)?, half(tcp, 2)?);
        let up = to == broker_port;
        let sequence = tcp.get(4..8)?.try_into().ok().map(u32::from_be_bytes)?;
        let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
        Some(Self {
            up,
            port: if up { from } else { to },
            bytes,
            sequence,
            syn: tcp.get(13)? & 2 != 0,
            payload,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes)
}

/// The first whole record: its type and body.
fn record(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let [kind, _, _, high, low, ..] = bytes else { return None };
    let size = usize::from(u16::from_be_bytes([*high, *low]));
    Some((*kind, bytes.get(RECORD_HEADER..RECORD_HEADER + size)?))
}

/// Whether this is a ServerHello with `pre_shared_key` (RFC 8446, 4.1.3 and 4.2.11).
fn accepts_ticket(handshake: &[u8]) -> bool {
    let find = || {
        // type, length (3), version (2), random (32), session id, cipher suite (2), compression (1), extensions
        let session = usize::from(*handshake.get(38)?);
        let mut extensions = handshake.get(39 + session + 3 + 2..)?;
        while let [a, b, high, low, rest @ ..] = extensions {
            if u16::from_be_bytes([*a, *b]) == PRE_SHARED_KEY {
                return Some(());
            }
            extensions = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..)?;
        }
        None
    };
    handshake.first() == Some(&SERVER_HELLO) && find().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: u16 = 8883;
    const DEVICE: u16 = 40000;

    fn packet(pcap: &mut Vec<u8>, up: bool, sequence: u32, flags: u8, payload: &[u8]) {
        let size = 40 + payload.len();
        let mut frame = vec![0; ETHERNET_HEADER];
        frame.splice(12.., IPV4.to_be_bytes());
        frame.extend([0x45, 0]);
        frame.extend(u16::try_from(size).unwrap().to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
        let (from, to) = if up { (DEVICE, BROKER) } else { (BROKER, DEVICE) };
        frame.extend([from, to].iter().flat_map(|port| port.to_be_bytes()));
        frame.extend([sequence, 0].iter().flat_map(|number| number.to_be_bytes()));
        frame.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        let length = u32::try_from(frame.len()).unwrap();
        pcap.extend([7, 0, length, length].iter().flat_map(|number| number.to_ne_bytes()));
        pcap.extend(frame);
    }

    fn header() -> Vec<u8> {
        [0xa1b2_c3d4_u32, 0, 0, 0, 0, 1].iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn a_record_in_two_packets_is_one_record_and_what_is_sent_again_counts_as_bytes_alone() {
        let mut pcap = header();
        let record = [&[APPLICATION_DATA, 3, 3, 0, 30][..], &[0; 30]].concat();
        let (first, second) = record.split_at(20);
        packet(&mut pcap, true, 99, 2, &[]);
        packet(&mut pcap, true, 100, 16, first);
        packet(&mut pcap, true, 100, 16, first);
        packet(&mut pcap, true, 120, 16, second);
        packet(&mut pcap, false, 500, 16, &[]);
        let capture = Capture::parse(&pcap, BROKER).unwrap();
        let sizes: Vec<usize> = capture.packets.iter().map(|packet| packet.bytes).collect();
        assert_eq!(sizes, [40, 60, 60, 55, 40]);
        assert_eq!(capture.packets.iter().filter(|packet| packet.up).count(), 4);
        let records: Vec<_> = capture.records.iter().map(|record| (record.packet, record.plain)).collect();
        assert_eq!(records, [(1, 30 - 17)]);
    }

    #[test]
    fn a_connection_is_resumed_where_the_broker_took_the_ticket() {
        for (extension, resumed) in [(PRE_SHARED_KEY, vec![DEVICE]), (51, Vec::new())] {
            let mut hello = vec![SERVER_HELLO, 0, 0, 80, 3, 3];
            hello.extend([0; 32]);
            hello.extend([2, 9, 9, 0x13, 1, 0, 0, 12]);
            hello.extend([0, 43, 0, 2, 3, 4]);
            hello.extend(extension.to_be_bytes());
            hello.extend([0, 2, 0, 0]);
            let size = u16::try_from(hello.len()).unwrap().to_be_bytes();
            let mut pcap = header();
            packet(&mut pcap, false, 1, 16, &[&[HANDSHAKE, 3, 3][..], &size, &hello].concat());
            assert_eq!(Capture::parse(&pcap, BROKER).unwrap().resumed, resumed);
        }
    }
}
