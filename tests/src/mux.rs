//! One TPM for several clients: the agent, and the harness that plays firmware and kernel beside it.
//!
//! swtpm serves one connection at a time, so while the agent holds it nobody could extend PCR 10. This
//! multiplexer owns swtpm's only connection and passes whole commands on, one at a time, from as many clients as
//! come. It is no resource manager: handles are shared and leaks stay, as on a bare TPM.
//! tpm2-tss's swtpm TCTI also wants the control channel on the next port; of it, it uses locality and cancel.
//! The listeners live as long as the device, so a power cut looks to the agent like a TPM that went away and
//! came back at the same address.

use crate::tpm::read_frame;
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Attempts to find two neighbouring free ports.
const PAIR_DRAWS: usize = 100;

// swtpm's tpm_ioctl.h, as big-endian numbers on the control channel.
const CONTROL_SET_LOCALITY: u32 = 5;
const CONTROL_CANCEL: u32 = 9;
const CONTROL_SUCCESS: [u8; 4] = [0; 4];
/// TPM_FAIL
const CONTROL_FAILURE: [u8; 4] = [0, 0, 0, 9];

/// The multiplexer in front of one swtpm.
#[derive(Debug)]
pub struct TpmMux {
    shared: Arc<Shared>,
    data_port: u16,
}

#[derive(Debug)]
struct Shared {
    swtpm: PathBuf,
    /// Held for one command and its response; `None` until the first command and after a failure.
    link: Mutex<Option<UnixStream>>,
    clients: Mutex<Vec<TcpStream>>,
    commands: AtomicU64,
    closed: AtomicBool,
}

impl TpmMux {
    /// Listens on two free neighbouring ports in front of the swtpm whose data channel is `swtpm`.
    pub fn listen(swtpm: PathBuf) -> Result<Self> {
        let (data, control) =
            (0..PAIR_DRAWS).find_map(|_| neighbouring_ports()).context("no free port pair")?;
        let data_port = data.local_addr()?.port();
        let shared = Arc::new(Shared {
            swtpm,
            link: Mutex::new(None),
            clients: Mutex::default(),
            commands: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let mux = Self { shared, data_port };
        mux.serve(data, control);
        Ok(mux)
    }

    /// Listens on the same two ports of another network namespace's loopback, for clients that live there.
    ///
    /// A socket stays in the namespace in which it was made, so only the thread that makes it goes there.
    pub fn listen_in(&self, namespace: &Path) -> Result<()> {
        let namespace = File::open(namespace).with_context(|| format!("no {}", namespace.display()))?;
        let ports = [self.data_port, self.data_port + 1];
        let listeners = std::thread::spawn(move || -> Result<[TcpListener; 2]> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let [data, control] = ports.map(|port| TcpListener::bind(("127.0.0.1", port)));
            Ok([data?, control?])
        });
        let [data, control] = listeners.join().map_err(|_| anyhow!("the listening thread panicked"))??;
        self.serve(data, control);
        Ok(())
    }

    fn serve(&self, data: TcpListener, control: TcpListener) {
        for (listener, serve) in [(data, serve_data as fn(&Shared, TcpStream)), (control, serve_control)] {
            let shared = Arc::clone(&self.shared);
            std::thread::spawn(move || accept(&shared, &listener, serve));
        }
    }

    /// Port of the data channel; the control channel is the next.
    pub fn port(&self) -> u16 {
        self.data_port
    }

    /// TPM commands passed on so far.
    pub fn commands(&self) -> u64 {
        self.shared.commands.load(Ordering::Relaxed)
    }

    /// Drops every connection, as the end of the TPM behind them does.
    pub fn disconnect(&self) {
        self.shared.disconnect();
    }
}

impl Drop for TpmMux {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Accepting threads look at the flag after each accept: wake both.
        for port in [self.data_port, self.data_port + 1] {
            TcpStream::connect(("127.0.0.1", port)).ok();
        }
        self.shared.disconnect();
    }
}

impl Shared {
    fn disconnect(&self) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for client in self.clients.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            client.shutdown(Shutdown::Both).ok();
        }
    }

    /// Passes one command to swtpm and returns its response.
    fn exchange(&self, command: &[u8]) -> Result<Vec<u8>> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that a failure leaves none behind.
        let mut stream = match link.take() {
            Some(stream) => stream,
            None => UnixStream::connect(&self.swtpm).context("swtpm is not there")?,
        };
        stream.write_all(command)?;
        let response = read_frame(&mut stream)?.context("swtpm went away")?;
        *link = Some(stream);
        self.commands.fetch_add(1, Ordering::Relaxed);
        Ok(response)
    }
}

fn neighbouring_ports() -> Option<(TcpListener, TcpListener)> {
    let data = TcpListener::bind(("127.0.0.1", 0)).ok()?;
    let next = data.local_addr().ok()?.port().checked_add(1)?;
    Some((data, TcpListener::bind(("127.0.0.1", next)).ok()?))
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, serve: fn(&Shared, TcpStream)) {
    while let Ok((client, _)) = listener.accept() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let Ok(handle) = client.try_clone() else { continue };
        shared.clients.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(&shared, client));
    }
}

/// Ends with the client, with swtpm, or with what is no TPM command: the client sees a closed connection.
fn serve_data(shared: &Shared, mut client: TcpStream) {
    client.set_nodelay(true).ok();
    while let Ok(Some(command)) = read_frame(&mut client) {
        let answered = shared.exchange(&command).and_then(|response| Ok(client.write_all(&response)?));
        if answered.is_err() {
            break;
        }
    }
    client.shutdown(Shutdown::Both).ok();
}

fn serve_control(_: &Shared, mut client: TcpStream) {
    let mut code = [0; 4];
    while client.read_exact(&mut code).is_ok() {
        let answer = match u32::from_be_bytes(code) {
            CONTROL_SET_LOCALITY if client.read_exact(&mut [0; 1]).is_ok() => CONTROL_SUCCESS,
            CONTROL_CANCEL => CONTROL_SUCCESS,
            _ => CONTROL_FAILURE,
        };
        if client.write_all(&answer).is_err() {
            break;
        }
    }
}
