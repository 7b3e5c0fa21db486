//! UEFI logs by their SHA-256.
//!
//! A log is constant for a boot and often the same for all devices of a kind, so it crosses the network once. Invariant: bytes found under a digest
//! have that digest. A log that was pushed out costs one more transfer, never a wrong submission.

use keylime_mqtt_schemas::messages::Digest;
use moka::sync::Cache;
use std::sync::Arc;

/// A bounded, content-addressed cache
#[derive(Debug)]
pub(super) struct UefiCache(Cache<[u8; 32], Arc<Vec<u8>>>);

impl UefiCache {
    pub(super) fn new(max_bytes: u64) -> Self {
        let weigh = |_: &[u8; 32], log: &Arc<Vec<u8>>| u32::try_from(log.len()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(max_bytes).weigher(weigh).build())
    }

    pub(super) fn find(&self, digest: &Digest) -> Option<Arc<Vec<u8>>> {
        self.0.get(digest.as_bytes())
    }

    /// Keeps a log; nothing if it has another digest
    pub(super) fn keep(&self, digest: &Digest, log: Vec<u8>) -> Option<Arc<Vec<u8>>> {
        if Digest::of(&[&log]) != *digest {
            return None;
        }
        let log = Arc::new(log);
        self.0.insert(*digest.as_bytes(), Arc::clone(&log));
        Some(log)
    }
}
