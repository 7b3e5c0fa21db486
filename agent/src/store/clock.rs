//! The clock shown last: no quote is sent whose clock is not above every clock sent before.
//!
//! It changes with every attestation, and flash wears with every write that is waited for. So it is overwritten in place
//! in a file of its own without waiting for the disk, and is kept durably, in the state, only now and then. What that
//! withstands:
//!
//! - The agent is killed: the kernel has what was written, to the last clock.
//! - The machine loses its power: the file may be behind by what the kernel had not written yet, the durable clock by
//!   [`DURABLE_EVERY`]. But then the TPM lost its power too without TPM2_Shutdown, and says so: its clock is not `safe`
//!   until it has passed every clock that it can have shown (TPM 2.0 Part 1, 36.3), and such a quote is never sent.
//! - The file is damaged: only what can stand there beside the durable clock counts, else that one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{StoreError, io};
use crate::tpm::Clock;

/// The file inside `state_dir`.
const FILE: &str = "clock";
/// Milliseconds of the TPM's clock between durable writes: as many of them a day as an operator's log rotates.
const DURABLE_EVERY: u64 = 10 * 60 * 1000;
/// clock, resetCount, restartCount, big endian.
const SIZE: usize = 16;

#[derive(Debug)]
pub(super) struct ShownClock {
    path: PathBuf,
    file: Option<File>,
    /// As in the state.
    durable: Option<Clock>,
}

impl ShownClock {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FILE), file: None, durable: None }
    }

    /// The durable clock, or the one in the file where that is later.
    pub(super) fn latest(&self, durable: Clock) -> Clock {
        let written = std::fs::read(&self.path).ok().and_then(|bytes| parse(&bytes));
        written.filter(|written| follows(durable, *written)).unwrap_or(durable)
    }

    /// Whether the durable clock is near enough, and of the same life of the TPM.
    pub(super) fn is_kept_durably(&self, clock: Clock) -> bool {
        self.durable.is_some_and(|durable| follows(durable, clock))
    }

    /// The state has this clock now.
    pub(super) fn keep_durably(&mut self, clock: Clock) -> Result<(), StoreError> {
        self.durable = Some(clock);
        self.overwrite(clock)
    }

    /// In place, so that a process that is killed leaves the old clock or the new one.
    pub(super) fn overwrite(&mut self, clock: Clock) -> Result<(), StoreError> {
        let mut bytes = [0; SIZE];
        let (time, counts) = bytes.split_at_mut(8);
        let (resets, restarts) = counts.split_at_mut(4);
        time.copy_from_slice(&clock.clock_ms.to_be_bytes());
        resets.copy_from_slice(&clock.reset_count.to_be_bytes());
        restarts.copy_from_slice(&clock.restart_count.to_be_bytes());
        self.file()?.write_all_at(&bytes, 0).map_err(io("written", &self.path))
    }

    fn file(&mut self) -> Result<&File, StoreError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(io("opened", &self.path))?,
        };
        Ok(self.file.insert(file))
    }
}

/// Whether `clock` may stand in the file while `durable` stands in the state.
fn follows(durable: Clock, clock: Clock) -> bool {
    durable.reset_count == clock.reset_count
        && (durable.clock_ms..durable.clock_ms.saturating_add(DURABLE_EVERY)).contains(&clock.clock_ms)
}

fn parse(bytes: &[u8]) -> Option<Clock> {
    let (time, counts) = bytes.split_first_chunk()?;
    let (resets, restarts) = counts.split_first_chunk()?;
    let clock_ms = u64::from_be_bytes(*time);
    let restarts = restarts.try_into().ok()?;
    // Only safe clocks are ever quoted.
    Some(Clock {
        clock_ms,
        reset_count: u32::from_be_bytes(*resets),
        restart_count: u32::from_be_bytes(restarts),
        safe: true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    const fn at(clock_ms: u64, reset_count: u32) -> Clock {
        Clock { clock_ms, reset_count, restart_count: 3, safe: true }
    }

    fn written(directory: &Path) -> std::time::SystemTime {
        std::fs::metadata(directory.join("state.json")).unwrap().modified().unwrap()
    }

    fn kept(directory: &Path) -> Option<Clock> {
        Store::peek(directory).unwrap().state().last_quote
    }

    #[test]
    fn a_killed_agent_finds_the_last_clock_although_the_state_is_not_written_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        store.show_clock(at(1000, 1)).unwrap();
        let first = written(directory.path());
        for clock in (2000..500_000).step_by(60_000) {
            store.show_clock(at(clock, 1)).unwrap();
            // beside the living one, as after its end
            assert_eq!(kept(directory.path()), Some(at(clock, 1)));
            assert_eq!(store.state().last_quote, Some(at(clock, 1)));
        }
        assert_eq!(written(directory.path()), first, "nothing was waited for");
    }

    #[test]
    fn after_a_power_cut_the_durable_clock_is_at_most_ten_minutes_behind_and_of_the_same_life() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        let clocks = [(1000, 1), (500_000, 1), (601_000, 1), (1_200_999, 1), (1_300_000, 2)];
        for ((clock, resets), durable) in clocks.into_iter().zip([1000, 1000, 601_000, 601_000, 1_300_000]) {
            store.show_clock(at(clock, resets)).unwrap();
            // what the kernel had not written yet is gone
            let lost = std::fs::read(directory.path().join(FILE)).unwrap();
            std::fs::write(directory.path().join(FILE), b"").unwrap();
            assert_eq!(kept(directory.path()).unwrap().clock_ms, durable);
            std::fs::write(directory.path().join(FILE), lost).unwrap();
        }
    }

    #[test]
    fn rubbish_in_the_file_is_no_clock() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        store.show_clock(at(1000, 1)).unwrap();
        for rubbish in [&b""[..], &[0; 15], &[0; 17], &[0; 16], &[0xFF; 16], &[0xFF; 100]] {
            std::fs::write(directory.path().join(FILE), rubbish).unwrap();
            assert_eq!(kept(directory.path()), Some(at(1000, 1)), "{rubbish:?}");
        }
    }
}
