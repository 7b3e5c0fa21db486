//! The firmware's measurement log: complete before the kernel runs, so it is read and packed once per boot.
//!
//! Only what is sent is kept: digest and size, and the packed bytes once somebody wants them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use keylime_mqtt_schemas::compact::{Reference, pack_uefi};
use keylime_mqtt_schemas::messages::limits::MAX_UEFI_LOG;
use keylime_mqtt_schemas::messages::{BootMarker, Digest, UefiLog as Summary};

use super::LogError;

const KEY: &str = "uefi_log";

/// The log of one boot.
#[derive(Debug)]
pub struct UefiLog {
    path: PathBuf,
    summary: Option<(BootMarker, Summary)>,
    packed: Option<Packed>,
}

/// The log as it travels.
#[derive(Debug)]
struct Packed {
    boot: BootMarker,
    reference: Option<Digest>,
    bytes: Vec<u8>,
}

impl UefiLog {
    /// A log not read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), summary: None, packed: None }
    }

    /// Digest and size of the log of this boot.
    ///
    /// # Errors
    /// Also when the file holds more than [`MAX_UEFI_LOG`] bytes: no firmware writes that much.
    pub fn summary(&mut self, boot: BootMarker) -> Result<Summary, LogError> {
        if let Some((_, summary)) = self.summary.filter(|(of, _)| *of == boot) {
            return Ok(summary);
        }
        let (summary, _) = self.load()?;
        self.summary = Some((boot, summary));
        self.packed = None;
        Ok(summary)
    }

    /// The log of this boot, packed with the reference that both sides have, if any.
    ///
    /// # Errors
    /// Also when the file is not what [`Self::summary`] said of it.
    pub fn packed(&mut self, boot: BootMarker, reference: Option<&Reference>) -> Result<&[u8], LogError> {
        let named = reference.map(Reference::digest);
        let kept = self.packed.take().filter(|packed| packed.boot == boot && packed.reference == named);
        let packed = if let Some(packed) = kept {
            packed
        } else {
            let announced = self.summary(boot)?;
            let (found, bytes) = self.load()?;
            if found != announced {
                return Err(LogError::Changed { key: KEY, path: self.path.clone() });
            }
            Packed { boot, reference: named, bytes: pack_uefi(&bytes, reference) }
        };
        Ok(&self.packed.insert(packed).bytes)
    }

    /// The log as the file has it now.
    ///
    /// # Errors
    /// Also when the file is empty or holds more than [`MAX_UEFI_LOG`] bytes.
    pub fn bytes(path: &Path) -> Result<Vec<u8>, LogError> {
        let unreadable = |source| LogError::unreadable(KEY, path)(source);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(u64::from(MAX_UEFI_LOG) + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let fits = u32::try_from(bytes.len()).is_ok_and(|size| (1..=MAX_UEFI_LOG).contains(&size));
        if !fits {
            let expected = "a UEFI event log (binary_bios_measurements)";
            return Err(LogError::NotThat { key: KEY, path: path.to_owned(), expected });
        }
        Ok(bytes)
    }

    fn load(&self) -> Result<(Summary, Vec<u8>), LogError> {
        let bytes = Self::bytes(&self.path)?;
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Ok((Summary { digest: Digest::of(&[&bytes]), size }, bytes))
    }
}

#[cfg(test)]
mod tests {
    use keylime_mqtt_schemas::compact::unpack_uefi;

    use super::*;

    const RECORDED: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/device-secure-violations/binary_bios_measurements");

    #[test]
    fn a_recorded_log_is_named_and_packed() {
        let bytes = std::fs::read(RECORDED).unwrap();
        let mut log = UefiLog::new(Path::new(RECORDED));
        let boot = BootMarker::from([1; 16]);
        assert_eq!(log.summary(boot).unwrap(), Summary { digest: Digest::of(&[&bytes]), size: 14_008 });
        let packed = log.packed(boot, None).unwrap();
        assert!(packed.len() < bytes.len());
        assert_eq!(unpack_uefi(packed, bytes.len(), None).unwrap(), bytes);
    }

    #[test]
    fn it_is_read_again_in_another_boot_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"first").unwrap();
        let mut log = UefiLog::new(&path);
        let (one, two) = (BootMarker::from([1; 16]), BootMarker::from([2; 16]));
        let first = log.summary(one).unwrap();
        let packed = log.packed(one, None).unwrap().to_vec();
        std::fs::write(&path, b"second").unwrap();
        assert_eq!((log.summary(one).unwrap(), log.packed(one, None).unwrap()), (first, packed.as_slice()));
        assert_ne!(log.summary(two).unwrap(), first);
        assert_ne!(log.packed(two, None).unwrap(), packed);
    }

    #[test]
    fn a_log_that_changed_within_a_boot_is_not_sent_under_the_name_of_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"first").unwrap();
        let mut log = UefiLog::new(&path);
        let boot = BootMarker::from([1; 16]);
        log.summary(boot).unwrap();
        std::fs::write(&path, b"other").unwrap();
        assert!(matches!(log.packed(boot, None), Err(LogError::Changed { key: "uefi_log", .. })));
    }

    #[test]
    fn an_empty_or_endless_file_is_no_log() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        for path in [empty.as_path(), Path::new("/dev/zero")] {
            let read = UefiLog::new(path).summary(BootMarker::from([1; 16]));
            assert!(matches!(read, Err(LogError::NotThat { .. })), "{read:?}");
        }
    }
}
