//! Two ports in a row, as a TPM's TCTI wants them, that stay ours while a TPM restarts on them.
//!
//! Below the range from which the kernel gives ports to outgoing connections. A port is claimed by an abstract Unix socket of
//! its number, which every test process sees and the kernel releases with the claim: that a port can be bound now says
//! nothing about a neighbour who found the same a moment ago.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

pub(crate) struct PortPair {
    first: u16,
    _claims: [UnixListener; 2],
}

impl PortPair {
    pub(crate) fn claim() -> Self {
        loop {
            let first: u16 = rand::random_range(10_000..32_000);
            let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if let (Some(one), Some(two)) = (claim(first), claim(first + 1))
                && free(first)
                && free(first + 1)
            {
                return Self { first, _claims: [one, two] };
            }
        }
    }

    /// The lower one.
    pub(crate) fn first(&self) -> u16 {
        self.first
    }
}

/// The name is that of the harness of the scenarios, which run at the same time.
fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("keylime-mqtt-port-{port}")).unwrap();
    UnixListener::bind_addr(&name).ok()
}
