//! UEFI logs on the disk, so that a bridge that starts anew need not ask a whole fleet for them.
//!
//! Invariants: what is read under a digest has it, or is dropped; no more is kept than was configured, the oldest goes first; nothing that is wrong with
//! the disk is more than a miss. Everything here waits for the disk: only on threads that may.

use cacache::{Error, Metadata, RemoveOpts, SyncReader, WriteOpts};
use keylime_mqtt_schemas::messages::Digest;
use keylime_mqtt_schemas::messages::limits::MAX_UEFI_LOG;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an entry takes beside its bytes: its line in the index, and what is left of both files' last blocks
const ENTRY_OVERHEAD: u64 = 8 * 1024;
/// Something that stays wrong is said again so often
const SAID_EVERY: Duration = Duration::from_secs(3600);

/// A directory of logs
#[derive(Debug)]
pub(in crate::fleet) struct Disk {
    dir: PathBuf,
    max_bytes: u64,
    /// Bytes held, once counted; writers wait for each other
    held: Mutex<Option<u64>>,
    said: Mutex<Option<Instant>>,
}

impl Disk {
    /// Nothing is touched before it is needed
    pub(in crate::fleet) fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self { dir, max_bytes, held: Mutex::new(None), said: Mutex::new(None) }
    }

    /// The log with this digest, if it is there and whole
    pub(super) fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let log = self.read_entry(&key(digest)).unwrap_or_else(|error| {
            self.say("cannot be read", &error);
            None
        })?;
        if Digest::of(&[&log]) == *digest {
            return Some(log);
        }
        self.say("holds a log with other bytes than it was kept with; it is dropped", &"wrong digest");
        self.remove(&key(digest));
        None
    }

    /// Keeps a log, and drops the oldest for it
    pub(super) fn write(&self, digest: &Digest, log: &[u8]) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match self.write_entry(&key(digest), log, *held) {
            Ok(now) => *held = Some(now),
            Err(error) => {
                *held = None;
                self.say("cannot be written", &error);
            }
        }
    }

    fn read_entry(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut log = Vec::new();
        let reader = match SyncReader::open(&self.dir, key) {
            Ok(reader) => reader,
            Err(error) if is_miss(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // a foreign file may be of any size
        let limit = u64::from(MAX_UEFI_LOG) + 1;
        let read = reader.take(limit).read_to_end(&mut log);
        read.map_err(|error| Error::IoError(error, "reading an entry".to_owned()))?;
        Ok(Some(log))
    }

    /// Bytes held afterwards
    fn write_entry(&self, key: &str, log: &[u8], held: Option<u64>) -> Result<u64, Error> {
        let held = match held {
            Some(held) => held,
            None => self.open()?,
        };
        let size = log.len() as u64 + ENTRY_OVERHEAD;
        let there = cacache::metadata_sync(&self.dir, key)?;
        if size > self.max_bytes || there.is_some_and(|entry| self.has_content(&entry)) {
            return Ok(held);
        }
        let mut held = held + size;
        if held > self.max_bytes {
            // first, so that a full disk has room again
            held = self.evict(size)? + size;
        }
        let options = WriteOpts::new().algorithm(cacache::Algorithm::Sha256).size(log.len());
        let mut writer = options.open_sync(&self.dir, key)?;
        writer.write_all(log).map_err(|error| Error::IoError(error, "writing an entry".to_owned()))?;
        writer.commit()?;
        Ok(held)
    }

    /// Makes the directory and counts what it holds
    fn open(&self) -> Result<u64, Error> {
        let dir = |error: io::Error| Error::IoError(error, "making the directory".to_owned());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(dir)?;
        // what a bridge that was killed left half written
        match fs::remove_dir_all(self.dir.join("tmp")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(dir(error)),
            _ => {}
        }
        Ok(self.entries()?.iter().map(bytes_of).sum())
    }

    fn entries(&self) -> Result<Vec<Metadata>, Error> {
        let mut entries = Vec::new();
        for entry in cacache::list_sync(&self.dir) {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) if is_miss(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Drops the oldest until there is room; gives the bytes held then
    fn evict(&self, room: u64) -> Result<u64, Error> {
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| entry.time);
        let mut held: u64 = entries.iter().map(bytes_of).sum();
        for entry in entries {
            if held + room <= self.max_bytes {
                break;
            }
            self.remove(&entry.key);
            held = held.saturating_sub(bytes_of(&entry));
        }
        Ok(held)
    }

    fn remove(&self, key: &str) {
        let removed = RemoveOpts::new().remove_fully(true).remove_sync(&self.dir, key).or_else(|_| {
            // without its content an entry is removed from the index alone
            cacache::remove_sync(&self.dir, key)
        });
        if let Err(error) = removed {
            self.say("cannot be written", &error);
        }
    }

    fn has_content(&self, entry: &Metadata) -> bool {
        cacache::exists_sync(&self.dir, &entry.integrity)
    }

    fn say(&self, what: &str, error: &dyn std::fmt::Display) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            *said = Some(Instant::now());
            tracing::warn!(
                dir = %self.dir.display(),
                %error,
                "the UEFI cache ([cache] dir) {what}; devices are asked for their UEFI logs again, at 25 kB each"
            );
        }
    }
}

fn key(digest: &Digest) -> String {
    hex::encode(digest.as_bytes())
}

fn bytes_of(entry: &Metadata) -> u64 {
    entry.size as u64 + ENTRY_OVERHEAD
}

fn is_miss(error: &Error) -> bool {
    match error {
        Error::EntryNotFound(..) => true,
        Error::IoError(error, _) => error.kind() == ErrorKind::NotFound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_disk_that_fails_is_one_line_and_not_one_per_device() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("uefi");
        fs::write(&in_the_way, "a file").unwrap();
        let disk = Disk::new(in_the_way, 1024 * 1024);
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..50u8 {
                let log = [n; 100];
                disk.write(&Digest::of(&[&log]), &log);
                assert_eq!(disk.read(&Digest::of(&[&log])), None);
            }
        });
        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("[cache] dir"), "{said}");
    }

    #[test]
    fn a_healthy_disk_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().join("uefi"), 1024 * 1024);
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..200u8 {
                let log = vec![n; 20_000];
                let digest = Digest::of(&[&log]);
                assert_eq!(disk.read(&digest), None);
                disk.write(&digest, &log);
                disk.write(&digest, &log);
                assert_eq!(disk.read(&digest), Some(log));
            }
        });
        assert_eq!(String::from_utf8(lines.0.lock().unwrap().clone()).unwrap(), "");
        // counted anew, as by the next bridge
        let held = Disk::new(disk.dir.clone(), disk.max_bytes).open().unwrap();
        assert_eq!(Some(held), *disk.held.lock().unwrap());
        assert!(held <= 1024 * 1024);
    }

    #[test]
    fn a_file_of_any_size_in_the_place_of_a_log_is_not_taken_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().join("uefi"), 1024 * 1024);
        let digest = Digest::of(&[b"a log"]);
        disk.write(&digest, b"a log");
        let entry = cacache::metadata_sync(&disk.dir, key(&digest)).unwrap().unwrap();
        let (_, hex) = entry.integrity.to_hex();
        let content = disk.dir.join("content-v2/sha256").join(&hex[0..2]).join(&hex[2..4]).join(&hex[4..]);
        // sparse: takes no room on the disk
        fs::File::options().write(true).open(&content).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(disk.read(&digest), None);
        assert!(!content.exists(), "it was dropped");
    }
}
