//! UEFI logs by their SHA-256.
//!
//! A log is constant for a boot and often the same for all devices of a kind, so it crosses the network once. Invariant: bytes found under a digest
//! have that digest. A log that is found nowhere costs one more transfer, never a wrong submission, so whatever is wrong with the disk is no error of an
//! attestation.
//!
//! ```text
//! find -> memory (moka) -> disk (cacache), on threads that may wait -> not found: the device is asked for it
//! ```

mod disk;

pub(super) use disk::Disk;

use crate::keylime::UefiText;
use crate::restore::Replayed;
use keylime_mqtt_schemas::messages::Digest;
use moka::sync::Cache;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// A disk that takes longer is slower than asking the device
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// Reads and writes at once: more would only wait for each other
const AT_DISK: usize = 4;
/// What is made of a log takes room beside it: its base64 form
const WEIGHT: usize = 3;

/// A log and what every attestation needs of it, made once
#[derive(Debug)]
pub(super) struct UefiLog {
    bytes: Vec<u8>,
    text: OnceLock<Option<UefiText>>,
    replayed: OnceLock<Replayed>,
}

impl UefiLog {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, text: OnceLock::new(), replayed: OnceLock::new() }
    }

    /// Bytes that it takes, with what is made of it
    pub(super) fn weight(&self) -> usize {
        self.bytes.len().saturating_mul(WEIGHT)
    }

    /// As the verifier wants it
    pub(super) fn text(&self) -> Option<UefiText> {
        self.text.get_or_init(|| UefiText::of(&self.bytes)).clone()
    }

    /// Where it leads
    pub(super) fn replayed(&self) -> &Replayed {
        self.replayed.get_or_init(|| Replayed::of(&self.bytes))
    }

    pub(super) fn is_replayed(&self) -> bool {
        self.replayed.get().is_some()
    }
}

/// A bounded, content-addressed cache
#[derive(Debug)]
pub(super) struct UefiCache {
    memory: Cache<[u8; 32], Arc<UefiLog>>,
    disk: Option<Arc<Disk>>,
    at_disk: Arc<Semaphore>,
}

impl UefiCache {
    pub(super) fn new(max_bytes: u64, disk: Option<Disk>) -> Self {
        let weigh = |_: &[u8; 32], log: &Arc<UefiLog>| u32::try_from(log.weight()).unwrap_or(u32::MAX);
        Self {
            memory: Cache::builder().max_capacity(max_bytes).weigher(weigh).build(),
            disk: disk.map(Arc::new),
            at_disk: Arc::new(Semaphore::new(AT_DISK)),
        }
    }

    /// Looks in memory, then on the disk
    pub(super) async fn find(&self, digest: &Digest) -> Option<Arc<UefiLog>> {
        if let Some(log) = self.memory.get(digest.as_bytes()) {
            return Some(log);
        }
        let disk = Arc::clone(self.disk.as_ref()?);
        tokio::time::timeout(DISK_PATIENCE, self.read(disk, *digest)).await.ok()?
    }

    async fn read(&self, disk: Arc<Disk>, digest: Digest) -> Option<Arc<UefiLog>> {
        let turn = Arc::clone(&self.at_disk).acquire_owned().await.ok()?;
        // a whole fleet that comes back asks for the same log at once
        if let Some(log) = self.memory.get(digest.as_bytes()) {
            return Some(log);
        }
        let memory = self.memory.clone();
        let reading = move || {
            let _turn = turn;
            let log = Arc::new(UefiLog::new(disk.read(&digest)?));
            memory.insert(*digest.as_bytes(), Arc::clone(&log));
            Some(log)
        };
        tokio::task::spawn_blocking(reading).await.ok()?
    }

    /// Keeps a log that has this digest: the exchange has checked it
    pub(super) fn keep(&self, digest: &Digest, log: Vec<u8>) -> Arc<UefiLog> {
        let log = Arc::new(UefiLog::new(log));
        self.memory.insert(*digest.as_bytes(), Arc::clone(&log));
        // a disk that is behind does without this one
        if let Some(disk) = &self.disk
            && let Ok(turn) = Arc::clone(&self.at_disk).try_acquire_owned()
        {
            let (disk, log, digest) = (Arc::clone(disk), Arc::clone(&log), *digest);
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                disk.write(&digest, &log.bytes);
            });
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_in_memory_take_no_more_room_than_was_configured() {
        let room = 30_000;
        let cache = UefiCache::new(room, None);
        for n in 0..200_u8 {
            let log = vec![n; 1000];
            cache.keep(&Digest::of(&[&log]), log);
            cache.memory.run_pending_tasks();
            assert!(cache.memory.weighted_size() <= room);
        }
        assert_eq!(cache.memory.entry_count(), 10);
    }
}
