//! A way between a client and a server that can be cut, stalled and slowed: a TCP forwarder with a port of its own.

use anyhow::Result;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Read at once; small, so that a slow link delays smoothly.
const CHUNK: usize = 1024;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Carried,
    /// Connections are reset, new ones closed at once
    Cut,
    /// Connections stay, and nothing passes: what a lost signal looks like
    Stalled,
}

/// The forwarder. It ends with the value.
#[derive(Debug)]
pub struct Link {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    fate: Fate,
    /// Of both directions together, where it is slow
    bytes_per_second: Option<u32>,
    ended: bool,
    next: u64,
    connections: HashMap<u64, [TcpStream; 2]>,
}

impl Link {
    /// A link to the server on this port of the loopback interface.
    pub fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let state = State {
            fate: Fate::Carried,
            bytes_per_second: None,
            ended: false,
            next: 0,
            connections: HashMap::new(),
        };
        let shared = Arc::new(Shared { server, state: Mutex::new(state), changed: Condvar::new() });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || accept(&serving, &listener));
        Ok(Self { port, shared })
    }

    /// Where clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Resets all connections and lets none through.
    pub fn cut(&self) {
        self.shared.change(|state| {
            state.fate = Fate::Cut;
            state.reset_all();
        });
    }

    /// Holds everything back; nobody is told.
    pub fn stall(&self) {
        self.shared.change(|state| state.fate = Fate::Stalled);
    }

    /// Ends [`cut`](Self::cut) and [`stall`](Self::stall).
    pub fn mend(&self) {
        self.shared.change(|state| state.fate = Fate::Carried);
    }

    /// From now on as slow as this, or as fast as it goes.
    pub fn slow_down(&self, bytes_per_second: Option<u32>) {
        self.shared.change(|state| state.bytes_per_second = bytes_per_second);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.ended = true;
            state.reset_all();
        });
        // The accepting thread looks at the flag after each accept.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

impl State {
    fn reset_all(&mut self) {
        for stream in self.connections.drain().flat_map(|(_, pair)| pair) {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    fn passes(&self) -> bool {
        self.fate == Fate::Carried && !self.ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until something may pass; false where it never will.
    fn admits(&self) -> bool {
        let stalls = |state: &mut State| state.fate == Fate::Stalled && !state.ended;
        self.changed.wait_while(self.lock(), stalls).unwrap_or_else(PoisonError::into_inner).passes()
    }

    /// How long so many bytes take.
    fn duration(&self, length: usize) -> Duration {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let speed = self.lock().bytes_per_second;
        speed.map_or(Duration::ZERO, |speed| Duration::from_secs(1) * length / speed.max(1))
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while let Ok((client, _)) = listener.accept() {
        if shared.lock().ended {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || carry(&shared, client));
    }
}

fn carry(shared: &Arc<Shared>, client: TcpStream) {
    // A server that is away looks like a connection closed at once.
    if !shared.admits() {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.server)) else { return };
    let Some((number, pairs)) = register(shared, client, server) else { return };
    std::thread::scope(|scope| {
        for (from, to) in pairs {
            scope.spawn(move || pump(shared, from, to));
        }
    });
    shared.lock().connections.remove(&number);
}

type Pairs = [(TcpStream, TcpStream); 2];

/// Both directions, and the number under which they are reset; nothing where the link was cut in between.
fn register(shared: &Shared, client: TcpStream, server: TcpStream) -> Option<(u64, Pairs)> {
    let copy = |stream: &TcpStream| stream.try_clone().ok();
    client.set_nodelay(true).ok()?;
    server.set_nodelay(true).ok()?;
    let pairs = [(copy(&client)?, copy(&server)?), (copy(&server)?, copy(&client)?)];
    let mut state = shared.lock();
    if state.ended || state.fate == Fate::Cut {
        return None;
    }
    state.next += 1;
    let number = state.next;
    state.connections.insert(number, [client, server]);
    Some((number, pairs))
}

fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = [0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let bytes = chunk.get(..length).unwrap_or_default();
        if !shared.admits() || to.write_all(bytes).is_err() {
            break;
        }
        std::thread::sleep(shared.duration(length));
    }
    for stream in [from, to] {
        stream.shutdown(Shutdown::Both).ok();
    }
}
