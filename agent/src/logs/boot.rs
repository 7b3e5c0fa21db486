//! Which boot this is, and when it began.
//!
//! The verifier tells boots apart by their time alone: the same time means that the IMA log goes on, a later one that it
//! starts anew, an earlier one is refused for good. So the time is read once per boot, kept with the boot's marker, and
//! always later than that of the boot before, whatever a device without a real-time clock believes.

use std::path::{Path, PathBuf};

use keylime_mqtt_schemas::messages::{BootMarker, Digest};
use serde::{Deserialize, Serialize};

use super::LogError;

const ID_KEY: &str = "boot_id_file";
const TIME_KEY: &str = "boot_time_file";
/// A UUID has 36 characters; simulated devices may use another name.
const LONGEST_ID: usize = 256;

/// Where boot id and boot time come from. Configurable, since simulated devices share a kernel.
#[derive(Debug, Clone)]
pub struct BootSources {
    /// Text that differs in every boot.
    pub id: PathBuf,
    /// `/proc/stat`, or a file with a number of Unix seconds.
    pub time: PathBuf,
}

/// One boot as the verifier will know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// Names the boot.
    pub marker: BootMarker,
    /// Unix seconds.
    pub time: u64,
}

impl BootSources {
    /// Names this boot. A TPM reset is a boot of its own, since it zeroes the PCRs.
    pub fn marker(&self, reset_count: u32) -> Result<BootMarker, LogError> {
        let id = read(ID_KEY, &self.id)?;
        let id = id.trim();
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(not_that(ID_KEY, &self.id, "a boot id"));
        }
        let digest = Digest::of(&[id.as_bytes(), &reset_count.to_be_bytes()]);
        let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = digest.as_bytes();
        Ok(BootMarker::from(*first))
    }

    /// The record of this boot: the one kept, if it is of this boot, else a new one that is later than the one kept.
    pub fn record(&self, marker: BootMarker, kept: Option<BootRecord>) -> Result<BootRecord, LogError> {
        if let Some(kept) = kept.filter(|kept| kept.marker == marker) {
            return Ok(kept);
        }
        let text = read(TIME_KEY, &self.time)?;
        let time = boot_time(&text).ok_or_else(|| {
            not_that(TIME_KEY, &self.time, "/proc/stat (with a btime line) or a number of Unix seconds")
        })?;
        let earliest = kept.map_or(0, |kept| kept.time.saturating_add(1));
        Ok(BootRecord { marker, time: time.max(earliest) })
    }

    /// Tries both files without keeping anything.
    pub fn check(&self) -> Result<(), LogError> {
        let marker = self.marker(0)?;
        self.record(marker, None).map(drop)
    }
}

fn read(key: &'static str, path: &Path) -> Result<String, LogError> {
    std::fs::read_to_string(path).map_err(LogError::unreadable(key, path))
}

fn not_that(key: &'static str, path: &Path, expected: &'static str) -> LogError {
    LogError::NotThat { key, path: path.to_owned(), expected }
}

/// The btime line of proc(5)'s `/proc/stat`, or the text as a number.
fn boot_time(text: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix("btime ")).unwrap_or(text);
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(id: &str, time: &str) -> (tempfile::TempDir, BootSources) {
        let directory = tempfile::tempdir().unwrap();
        let sources = BootSources { id: directory.path().join("id"), time: directory.path().join("time") };
        std::fs::write(&sources.id, id).unwrap();
        std::fs::write(&sources.time, time).unwrap();
        (directory, sources)
    }

    #[test]
    fn the_marker_changes_with_the_boot_id_and_with_a_tpm_reset() {
        let (_one, boot) = sources("d9e0\n", "1");
        let (_two, other) = sources("d9e1\n", "1");
        assert_eq!(boot.marker(7).unwrap(), boot.marker(7).unwrap());
        assert_ne!(boot.marker(7).unwrap(), boot.marker(8).unwrap());
        assert_ne!(boot.marker(7).unwrap(), other.marker(7).unwrap());
        assert_eq!(boot.marker(7).unwrap().as_bytes(), &Digest::of(&[b"d9e0\0\0\0\x07"]).as_bytes()[..16]);
    }

    #[test]
    fn the_time_stays_within_a_boot_and_always_grows_between_boots() {
        let (_directory, boot) = sources("a", "1000");
        let (one, two) = (boot.marker(1).unwrap(), boot.marker(2).unwrap());
        let first = boot.record(one, None).unwrap();
        assert_eq!(first.time, 1000);
        std::fs::write(&boot.time, "1003").unwrap();
        assert_eq!(boot.record(one, Some(first)).unwrap(), first, "the clock was set, the boot is the same");
        // No real-time clock: the device believes it is 1970 again.
        std::fs::write(&boot.time, "12").unwrap();
        assert_eq!(boot.record(two, Some(first)).unwrap().time, 1001);
        std::fs::write(&boot.time, "5000").unwrap();
        assert_eq!(boot.record(two, Some(first)).unwrap().time, 5000);
    }

    #[test]
    fn both_forms_of_the_boot_time_are_read_and_nothing_else() {
        assert_eq!(
            boot_time("cpu  1 2\nintr 3\nctxt 4\nbtime 1790000000\nprocesses 5\n"),
            Some(1_790_000_000)
        );
        assert_eq!(boot_time("1790000000\n"), Some(1_790_000_000));
        for text in ["", "now", "-5", "cpu 1\nctxt 2\n", "btime x"] {
            assert_eq!(boot_time(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_file_is_named_with_its_key() {
        let (_directory, boot) = sources("", "soon");
        let marker = boot.marker(1).unwrap_err().to_string();
        assert!(marker.contains("boot_id_file"), "{marker}");
        let time = boot.record(BootMarker::from([0; 16]), None).unwrap_err().to_string();
        assert!(time.contains("boot_time_file") && time.contains("Unix seconds"), "{time}");
    }

    #[test]
    fn this_machine_has_both() {
        BootSources { id: "/proc/sys/kernel/random/boot_id".into(), time: "/proc/stat".into() }
            .check()
            .unwrap();
    }
}
