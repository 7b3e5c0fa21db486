//! The link between two namespaces: a TUN interface in each, and between them packets that come late, or not.
//!
//! The kernels this runs on have no netem, and a packet that is in this program's hands can have any fate.

use super::link::{Carried, Direction, LinkProfile, Time};
use super::namespace::Namespace;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tun_rs::{AsyncDevice, DeviceBuilder, SyncDevice};

/// The largest packet of IP.
const LARGEST: usize = 64 * 1024;

/// A link that lives as long as this value.
#[derive(Debug)]
pub(super) struct Shaper {
    made: Instant,
    up: Arc<Mutex<Direction>>,
    down: Arc<Mutex<Direction>>,
    tasks: [JoinHandle<()>; 2],
}

/// What carries the packets of all links of a lab.
pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("links")
        .enable_all()
        .build()
        .context("no thread for the links")
}

impl Shaper {
    /// Makes the interface `inner` in one namespace and `outer` in the other. They are down and without an address.
    pub(super) fn between(
        (inside, inner): (&Namespace, &str),
        (outside, outer): (&Namespace, &str),
        seed: u64,
        runtime: &Handle,
    ) -> Result<Self> {
        let (inner, outer) = (tun(inside, inner)?, tun(outside, outer)?);
        let inside_runtime = runtime.enter();
        let (inner, outer) = (Arc::new(AsyncDevice::new(inner)?), Arc::new(AsyncDevice::new(outer)?));
        drop(inside_runtime);
        let made = Instant::now();
        let direction = |seed| Arc::new(Mutex::new(Direction::new(seed)));
        let (up, down) = (direction(seed * 2), direction(seed * 2 + 1));
        let there = carry(Arc::clone(&inner), Arc::clone(&outer), Arc::clone(&up), made);
        let back = carry(outer, inner, Arc::clone(&down), made);
        Ok(Self { made, up, down, tasks: [runtime.spawn(there), runtime.spawn(back)] })
    }

    /// Both directions are like this from now on.
    pub(super) fn set(&self, profile: LinkProfile) {
        let now = self.made.elapsed();
        lock(&self.up).set(profile, now);
        lock(&self.down).set(profile, now);
    }

    /// What went up and what went down.
    pub(super) fn carried(&self) -> (Carried, Carried) {
        (lock(&self.up).carried, lock(&self.down).carried)
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock(direction: &Mutex<Direction>) -> MutexGuard<'_, Direction> {
    direction.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tun(namespace: &Namespace, name: &str) -> Result<SyncDevice> {
    let made = namespace.enter(|| Ok(DeviceBuilder::new().name(name).enable(false).build_sync()?));
    made.with_context(|| format!("no TUN interface {name} in {} (is there /dev/net/tun?)", namespace.name()))
}

async fn carry(from: Arc<AsyncDevice>, to: Arc<AsyncDevice>, link: Arc<Mutex<Direction>>, made: Instant) {
    let mut under_way: VecDeque<(Time, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let next = under_way.front().map(|(arrival, _)| made + *arrival);
        tokio::select! {
            () = reached(next) => {}
            read = from.recv(&mut buffer) => {
                let Some(packet) = read.ok().and_then(|length| buffer.get(..length)) else { continue };
                if let Some(arrival) = lock(&link).send(packet.len(), made.elapsed()) {
                    under_way.push_back((arrival, packet.to_vec()));
                }
            }
        }
        while under_way.front().is_some_and(|(arrival, _)| *arrival <= made.elapsed()) {
            let Some((_, packet)) = under_way.pop_front() else { break };
            let delivered = lock(&link).deliver(packet.len(), made.elapsed());
            // an interface that is down takes no packet, as it would not from a cable
            if delivered && let Err(error) = to.send(&packet).await {
                eprintln!("a link: {error}");
            }
        }
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
