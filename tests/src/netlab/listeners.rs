//! Who waits for connections: what the kernel says of a process and of its network namespace.

use super::namespace::Namespace;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Shorter than any connection takes to be made and used.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// `include/net/tcp_states.h`.
const TCP_LISTEN: &str = "0A";
/// The same file; what a UDP socket says that takes packets from anybody.
const UDP_UNCONNECTED: &str = "07";

/// Sockets of the process, and of others in its namespace beyond loopback, to which anybody may connect or send.
pub fn listening(pid: u32) -> Result<Vec<String>> {
    let own = sockets(pid)?;
    let mut found = Vec::new();
    for (table, waiting) in
        [("tcp", TCP_LISTEN), ("tcp6", TCP_LISTEN), ("udp", UDP_UNCONNECTED), ("udp6", UDP_UNCONNECTED)]
    {
        // A kernel without IPv6 has no such table.
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let is_own = own.contains(*inode);
            if *state == waiting && (is_own || !is_loopback(local)) {
                found.push(format!("{table} {local}{}", if is_own { "" } else { " of another process" }));
            }
        }
    }
    Ok(found)
}

/// As the kernel prints it: the address in hexadecimal, each word turned round.
fn is_loopback(local: &str) -> bool {
    local.starts_with("0100007F:") || local.starts_with("00000000000000000000000001000000:")
}

fn sockets(pid: u32) -> Result<BTreeSet<String>> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("process {pid} is gone"))?;
    let inode = |target: std::path::PathBuf| {
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
    };
    // a descriptor may be closed while this looks
    Ok(files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).filter_map(inode).collect())
}

/// Looks at a process again and again until it is asked.
#[derive(Debug)]
pub struct Listeners {
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<(u64, BTreeSet<String>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Listeners {
    /// Watches this process from now on. A look counts once the process has entered its namespace.
    pub fn watch(pid: u32, namespace: &Namespace) -> Self {
        let inside = fs::metadata(namespace.path()).map(|file| file.ino()).ok();
        let entered = move || {
            inside.is_some()
                && fs::metadata(format!("/proc/{pid}/ns/net")).map(|file| file.ino()).ok() == inside
        };
        let stop = Arc::new(AtomicBool::new(false));
        let found = Arc::new(Mutex::new((0, BTreeSet::new())));
        let (stopped, record) = (Arc::clone(&stop), Arc::clone(&found));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if entered()
                    && let Ok(sockets) = listening(pid)
                {
                    let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                    record.0 += 1;
                    record.1.extend(sockets);
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Self { stop, found, thread: Some(thread) }
    }

    /// How often it looked, and all sockets that it ever found open to others.
    pub fn found(&self) -> (u64, BTreeSet<String>) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    #[test]
    fn a_listening_and_an_open_udp_socket_of_this_process_are_seen() -> Result<()> {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let found = listening(std::process::id())?;
        for (table, port) in [("tcp", tcp.local_addr()?.port()), ("udp", udp.local_addr()?.port())] {
            let socket = format!("{table} 0100007F:{port:04X}");
            assert!(found.contains(&socket), "no {socket} in {found:?}");
        }
        Ok(())
    }
}
