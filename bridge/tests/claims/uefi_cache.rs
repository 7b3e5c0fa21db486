//! Claims about the cache of UEFI logs: the same result, at more bytes, whatever has become of it.

use crate::fixtures::bytes;
use crate::logs::{Gateway, Policies};
use crate::world::{Device, World};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use keylime_mqtt_schemas::messages::{LogKind, Need};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes that the cache may keep, the least that can be configured
const MAX: usize = 1024 * 1024;
/// More logs than there is room for
const KINDS: u8 = 12;

/// A device and bridges one after the other, with the same cache directory
struct Restarts {
    world: World,
    keylime: std::sync::Arc<Policies>,
    dir: TempDir,
}

impl Restarts {
    async fn new(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let set = format!("cache.dir={}", dir.path().join("uefi").display());
        // each bridge has a session of its own
        let sessions = "verifier.sessions_per_minute=1000";
        let overrides: Vec<&str> = [set.as_str(), sessions].into_iter().chain(more.iter().copied()).collect();
        let (world, keylime) = Policies::world(&overrides).await;
        Self { world, keylime, dir }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("uefi")
    }

    /// Files in the cache that hold logs
    fn contents(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.cache().join("content-v2")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found
    }

    /// The log is on the disk once its writer is done
    async fn kept(&self, logs: usize) {
        crate::eventually(|| self.contents().len() == logs).await;
    }

    /// This device's log is on the disk once its writer is done
    async fn kept_of(&self, gateway: &Gateway) {
        let name = hex::encode(Sha256::digest(gateway.uefi.as_ref().unwrap()));
        // the digest is spread over two directories and the file
        let named = |file: &PathBuf| file.to_str().unwrap().replace('/', "").ends_with(&name);
        crate::eventually(|| self.contents().iter().any(named)).await;
    }

    /// Whether a bridge without memory has to ask for the log; the verifier gets the same in any case
    async fn asked_again(&self) -> bool {
        let bridge = self.world.next_bridge();
        let needs = Gateway { ima: None, ..Gateway::new() }.passes(&bridge).await;
        let log = bytes("device-secure/binary_bios_measurements");
        assert_eq!(self.keylime.log("uefi_log"), BASE64.encode(log));
        uefi(&needs)
    }
}

fn uefi(needs: &[Need]) -> bool {
    needs.iter().any(|need| need.log == LogKind::Uefi)
}

/// A machine of another kind: its log has one large event more, which changes no PCR
fn of_kind(n: u8) -> Gateway {
    const EV_NO_ACTION: u32 = 3;
    let mut log = bytes("device-secure/binary_bios_measurements");
    // PCR, type, number of digests, size
    for number in [0, EV_NO_ACTION, 0, 100_000] {
        log.extend_from_slice(&u32::to_le_bytes(number));
    }
    log.resize(log.len() + 100_000, n);
    let device = Device::new(&format!("gateway-{n}"));
    Gateway { device, uefi: Some(log), ima: None, ..Gateway::new() }
}

fn write_protected(dir: &Path) {
    // root writes where it may not, so a file stands in the way of the directory
    fs::write(dir, "in the way").unwrap();
}

#[tokio::test]
async fn a_bridge_that_starts_anew_does_not_ask_for_a_log_that_it_kept() {
    let restarts = Restarts::new(&[]).await;
    assert!(restarts.asked_again().await);
    restarts.kept(1).await;
    assert!(!restarts.asked_again().await);
}

#[tokio::test]
async fn without_a_directory_a_log_is_asked_for_once_per_bridge() {
    let (world, _) = Policies::world(&[]).await;
    let gateway = || Gateway { ima: None, ..Gateway::new() };
    assert!(uefi(&gateway().passes(&world).await));
    let second = world.next_bridge();
    assert!(uefi(&gateway().passes(&second).await));
}

#[tokio::test]
async fn a_cache_that_is_gone_is_made_again() {
    let restarts = Restarts::new(&[]).await;
    assert!(restarts.asked_again().await);
    restarts.kept(1).await;
    fs::remove_dir_all(restarts.cache()).unwrap();
    assert!(restarts.asked_again().await);
    restarts.kept(1).await;
    assert!(!restarts.asked_again().await);
}

#[tokio::test]
async fn an_entry_with_other_bytes_is_dropped_and_the_log_asked_for_again() {
    let restarts = Restarts::new(&[]).await;
    let log = bytes("device-secure/binary_bios_measurements");
    for wrong in [&b"short"[..], b"", &[&log[..log.len() - 1], b"\x00"].concat()] {
        assert!(restarts.asked_again().await);
        restarts.kept(1).await;
        fs::write(&restarts.contents()[0], wrong).unwrap();
        assert!(restarts.asked_again().await, "{} bytes", wrong.len());
        let whole = || fs::read(&restarts.contents()[0]).is_ok_and(|bytes| bytes == log);
        crate::eventually(|| restarts.contents().len() == 1 && whole()).await;
        assert!(!restarts.asked_again().await, "the entry was made again");
        fs::remove_dir_all(restarts.cache()).unwrap();
    }
}

#[tokio::test]
async fn an_index_that_is_garbage_costs_a_transfer_and_nothing_else() {
    let restarts = Restarts::new(&[]).await;
    assert!(restarts.asked_again().await);
    restarts.kept(1).await;
    let mut open = vec![restarts.cache().join("index-v5")];
    let mut spoiled = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                fs::write(entry.path(), b"\xFF\xFE\nno index\tat all\n").unwrap();
                spoiled += 1;
            }
        }
    }
    assert_eq!(spoiled, 1);
    assert!(restarts.asked_again().await);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_or_read_changes_no_result() {
    let restarts = Restarts::new(&[]).await;
    write_protected(&restarts.cache());
    assert!(restarts.asked_again().await);
    assert!(restarts.asked_again().await);
    assert_eq!(fs::read_to_string(restarts.cache()).unwrap(), "in the way");
}

#[tokio::test]
async fn no_more_is_kept_than_was_configured_and_the_oldest_goes() {
    let restarts = Restarts::new(&[&format!("cache.max_bytes={MAX}")]).await;
    assert!(restarts.asked_again().await);
    restarts.kept(1).await;
    let bridge = restarts.world.next_bridge();
    for n in 0..KINDS {
        assert!(uefi(&of_kind(n).passes(&bridge).await));
        restarts.kept_of(&of_kind(n)).await;
    }
    let held: u64 = restarts.contents().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(held <= MAX as u64, "{held}");
    assert!(restarts.asked_again().await, "the first went");
    let next = restarts.world.next_bridge();
    assert!(!uefi(&of_kind(KINDS - 1).passes(&next).await), "the last stays");
}
