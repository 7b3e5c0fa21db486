//! The link that is measured: a device's network namespace, joined to this side by a veth pair, and its record.
//!
//! Nothing but the agent lives in the namespace, so every packet on the pair is the agent's or the broker's. The
//! MTU is 1500, segmentation happens before the pair (no offloads), neighbours are known, and IPv6 is off: what
//! tcpdump records on this side is what a modem would carry, to the byte.

use anyhow::{Context, Result, bail, ensure};
use keylime_mqtt_tests::eventually::eventually;
use keylime_mqtt_tests::netlab::run;
use keylime_mqtt_tests::process::{Process, remove_netns_at_exit};
use keylime_mqtt_tests::scratch::{Scratch, read_log};
use rand::Rng;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The broker's name, as long as such names are. Known to the namespace by a hosts file: nobody asks a DNS server.
pub(crate) const BROKER_HOST: &str = "broker.example.org";

/// RFC 2544's range for benchmarks, 198.18.0.0/15, cut into nets of four addresses.
const NETS: u16 = 0x7fff;

/// Attempts to find a net that no other run uses.
const DRAWS: usize = 20;

/// tcpdump writes what it holds and ends.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A namespace with its side of the pair, and the capture on ours.
pub(crate) struct Link {
    namespace: String,
    outside: String,
    capture: Option<Process>,
    record: PathBuf,
}

impl Link {
    /// Makes it and starts recording into `scratch`.
    pub(crate) fn make(scratch: &Scratch) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root: run `sudo make bench-link`, or as root in a container with CAP_NET_ADMIN"
        );
        let mut link = Self::draw(scratch)?;
        let log = scratch.log(&format!("tcpdump-{}", link.namespace));
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args(["-i", &link.outside, "-n", "-U", "--immediate-mode", "-Z", "root", "-B", "32768", "-w"])
            .arg(&link.record);
        let mut capture = Process::spawn("tcpdump", &mut tcpdump, &log)?;
        eventually("tcpdump listens", &scratch.logs(), || {
            ensure!(capture.is_running(), "tcpdump ended: {}", read_log(&log));
            Ok(read_log(&log).contains("listening on").then_some(()))
        })?;
        link.capture = Some(capture);
        Ok(link)
    }

    fn draw(scratch: &Scratch) -> Result<Self> {
        let mut last = String::new();
        for _ in 0..DRAWS {
            let number = rand::rng().random_range(0..NETS);
            let namespace = format!("kmbench-{number:04x}");
            if let Err(error) = run(&["ip", "netns", "add", &namespace]) {
                last = error.to_string();
                continue;
            }
            remove_netns_at_exit(&namespace);
            let record = scratch.path().join(format!("{namespace}.pcap"));
            let outside = format!("kmb{number:04x}");
            let link = Self { namespace, outside, capture: None, record };
            link.join(number)?;
            return Ok(link);
        }
        bail!("this machine allows no network namespaces, without which nothing can be counted: {last}")
    }

    /// The veth pair, addresses, neighbours, the broker's name.
    fn join(&self, number: u16) -> Result<()> {
        let (ns, outside) = (self.namespace.as_str(), self.outside.as_str());
        let [high, low] = (number << 2).to_be_bytes();
        let net = |host: u8| format!("198.{}.{high}.{}", 18 + (number >> 14 & 1), low + host);
        let (ours, theirs) = (net(1), net(2));
        let inside = ["ip", "netns", "exec", ns];
        run(&[
            "ip", "link", "add", outside, "mtu", "1500", "type", "veth", "peer", "name", "wan", "mtu",
            "1500", "netns", ns,
        ])?;
        // A kernel without IPv6 has no such file.
        let without_ipv6 =
            "for file in /proc/sys/net/ipv6/conf/$0/disable_ipv6; do [ ! -e $file ] || echo 1 > $file; done";
        run(&["sh", "-c", without_ipv6, outside])?;
        run(&[&inside[..], &["sh", "-c", without_ipv6, "wan"]].concat())?;
        run(&["ethtool", "-K", outside, "tso", "off", "gso", "off", "gro", "off"])?;
        run(&[&inside[..], &["ethtool", "-K", "wan", "tso", "off", "gso", "off", "gro", "off"]].concat())?;
        run(&["ip", "address", "add", &format!("{ours}/30"), "dev", outside])?;
        run(&["ip", "link", "set", outside, "up"])?;
        run(&["ip", "-n", ns, "link", "set", "lo", "up"])?;
        run(&["ip", "-n", ns, "address", "add", &format!("{theirs}/30"), "dev", "wan"])?;
        run(&["ip", "-n", ns, "link", "set", "wan", "up"])?;
        let hardware = |prefix: &[&str], device: &str| -> Result<String> {
            let file = format!("/sys/class/net/{device}/address");
            Ok(run(&[prefix, &["cat", &file]].concat())?.trim().to_owned())
        };
        let (our_hardware, their_hardware) = (hardware(&[], outside)?, hardware(&inside, "wan")?);
        run(&[
            "ip",
            "neighbour",
            "replace",
            &theirs,
            "lladdr",
            &their_hardware,
            "dev",
            outside,
            "nud",
            "permanent",
        ])?;
        run(&[
            "ip",
            "-n",
            ns,
            "neighbour",
            "replace",
            &ours,
            "lladdr",
            &our_hardware,
            "dev",
            "wan",
            "nud",
            "permanent",
        ])?;
        let files = PathBuf::from("/etc/netns").join(ns);
        fs::create_dir_all(&files).with_context(|| format!("cannot create {}", files.display()))?;
        Ok(fs::write(files.join("hosts"), format!("127.0.0.1 localhost\n{ours} {BROKER_HOST}\n"))?)
    }

    /// The namespace as a file.
    pub(crate) fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }

    /// What starts a program inside, with these variables.
    pub(crate) fn launcher(&self, variables: &[(&str, String)]) -> Vec<String> {
        let mut command = ["ip", "netns", "exec", &self.namespace, "env"].map(str::to_owned).to_vec();
        command.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
        command
    }

    /// Packets and bytes with their Ethernet headers, both ways, as the interface itself has counted them.
    pub(crate) fn counted(&self) -> Result<(u64, u64)> {
        let counter = |name: &str| -> Result<u64> {
            let file = format!("/sys/class/net/{}/statistics/{name}", self.outside);
            Ok(fs::read_to_string(file)?.trim().parse()?)
        };
        Ok((counter("rx_packets")? + counter("tx_packets")?, counter("rx_bytes")? + counter("tx_bytes")?))
    }

    /// Ends the capture; what it recorded. An error if packets escaped it.
    pub(crate) fn recorded(&mut self) -> Result<Vec<u8>> {
        let capture = self.capture.take().context("the capture has ended already")?;
        let log = capture.log().to_owned();
        capture.terminate(STOP_GRACE)?;
        let said = read_log(&log);
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump missed packets: {said}");
        Ok(fs::read(&self.record)?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.capture = None;
        // With the namespace goes its end of the pair, and with that the other.
        run(&["ip", "netns", "del", &self.namespace]).ok();
        fs::remove_dir_all(PathBuf::from("/etc/netns").join(&self.namespace)).ok();
    }
}
