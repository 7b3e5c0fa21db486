//! The firmware's measurement log: complete before the kernel runs, so it is read once per boot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use keylime_mqtt_schemas::messages::limits::MAX_UEFI_LOG;
use keylime_mqtt_schemas::messages::{BootMarker, Digest, UefiLog as Summary};

use super::LogError;

const KEY: &str = "uefi_log";

/// The log of one boot.
#[derive(Debug)]
pub struct UefiLog {
    path: PathBuf,
    read: Option<(BootMarker, Content)>,
}

/// What the firmware wrote.
#[derive(Debug)]
pub struct Content {
    bytes: Vec<u8>,
    summary: Summary,
}

impl Content {
    /// Digest and size.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// At most `max_bytes` from `offset` on; nothing at the end.
    pub fn part(&self, offset: u64, max_bytes: usize) -> &[u8] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(max_bytes).min(self.bytes.len());
        self.bytes.get(start..end).unwrap_or_default()
    }
}

impl UefiLog {
    /// A log not read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None }
    }

    /// The log of this boot.
    ///
    /// # Errors
    /// Also when the file holds more than [`MAX_UEFI_LOG`] bytes: no firmware writes that much.
    pub fn content(&mut self, boot: BootMarker) -> Result<&Content, LogError> {
        let content = match self.read.take() {
            Some((read, content)) if read == boot => content,
            _ => self.load()?,
        };
        Ok(&self.read.insert((boot, content)).1)
    }

    fn load(&self) -> Result<Content, LogError> {
        let unreadable = |source| LogError::unreadable(KEY, &self.path)(source);
        let mut bytes = Vec::new();
        let file = File::open(&self.path).map_err(unreadable)?;
        file.take(u64::from(MAX_UEFI_LOG) + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let size = u32::try_from(bytes.len()).ok().filter(|size| (1..=MAX_UEFI_LOG).contains(size));
        let Some(size) = size else {
            let expected = "a UEFI event log (binary_bios_measurements)";
            return Err(LogError::NotThat { key: KEY, path: self.path.clone(), expected });
        };
        Ok(Content { summary: Summary { digest: Digest::of(&[&bytes]), size }, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/device-secure-violations/binary_bios_measurements");

    #[test]
    fn a_recorded_log_is_given_whole_and_in_parts() {
        let bytes = std::fs::read(RECORDED).unwrap();
        let mut log = UefiLog::new(Path::new(RECORDED));
        let content = log.content(BootMarker::from([1; 16])).unwrap();
        assert_eq!(content.summary(), Summary { digest: Digest::of(&[&bytes]), size: 14_008 });
        let parts: Vec<u8> = (0..3).flat_map(|part| content.part(part * 5000, 5000).to_vec()).collect();
        assert_eq!(parts, bytes);
        assert_eq!(content.part(14_008, 10), b"");
        assert_eq!(content.part(u64::MAX, usize::MAX), b"");
    }

    #[test]
    fn it_is_read_again_in_another_boot_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"first").unwrap();
        let mut log = UefiLog::new(&path);
        let first = log.content(BootMarker::from([1; 16])).unwrap().summary();
        std::fs::write(&path, b"second").unwrap();
        assert_eq!(log.content(BootMarker::from([1; 16])).unwrap().summary(), first);
        assert_ne!(log.content(BootMarker::from([2; 16])).unwrap().summary(), first);
    }

    #[test]
    fn an_empty_or_endless_file_is_no_log() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        for path in [empty.as_path(), Path::new("/dev/zero")] {
            let read = UefiLog::new(path).content(BootMarker::from([1; 16])).map(Content::summary);
            assert!(matches!(read, Err(LogError::NotThat { .. })), "{read:?}");
        }
    }
}
