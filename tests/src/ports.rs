//! Ports that are free and stay ours while a part restarts on them.
//!
//! They lie below the range from which the kernel picks the source ports of outgoing connections, or a restarting
//! part could find its port taken by a passing client. A port is claimed by an abstract Unix socket of its
//! number, which other harness processes see and the kernel releases with this process.

use anyhow::{Context, Result, bail};
use rand::Rng;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Above what services use, below Linux's default `ip_local_port_range` (32768 to 60999).
const RANGE: std::ops::Range<u16> = 18_000..32_000;

/// A machine on which so many draws are all taken has no room for a test.
const DRAWS: usize = 1000;

/// A claimed port of the loopback interface.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    /// Claims a port that nobody listens on.
    pub fn claim() -> Result<Self> {
        for _ in 0..DRAWS {
            let number = rand::rng().random_range(RANGE);
            let name = SocketAddr::from_abstract_name(format!("keylime-mqtt-port-{number}"))?;
            if let Ok(claim) = UnixListener::bind_addr(&name)
                && TcpListener::bind(("127.0.0.1", number)).is_ok()
            {
                return Ok(Self { number, _claim: claim });
            }
        }
        bail!("no free port between {} and {} in {DRAWS} draws", RANGE.start, RANGE.end)
    }

    /// The port number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Bytes that clients have sent to this port of the loopback interface and that its server has not read.
///
/// proc(5), `/proc/net/tcp`: local address and port, remote ones, state, `tx_queue:rx_queue`, all in hexadecimal.
pub fn unread_bytes(port: u16) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let local = format!(":{port:04X}");
    let mut unread = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, here, _, state, queues, ..] = fields.as_slice() else {
            bail!("a line of /proc/net/tcp: {line}")
        };
        // A listener counts the connections that wait for it there.
        if here.ends_with(&local) && *state != "0A" {
            let (_, received) = queues.split_once(':').context("two queues")?;
            unread += u64::from_str_radix(received, 16)?;
        }
    }
    Ok(unread)
}
