//! A device's wall clock, set by the harness: libfaketime around the agent, told the time by a file.
//!
//! The monotonic clock stays the kernel's, as it does where a device's clock is set.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian puts libraries of this machine.
const LIBRARIES: &str = "/usr/lib";

/// A clock of its own for one agent.
#[derive(Debug)]
pub struct WallClock {
    file: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// Stands at `time`, such as `1970-01-01 00:00:10`, and runs.
    pub fn at(time: &str, dir: &Path) -> Result<Self> {
        let library = fs::read_dir(LIBRARIES)?
            .flatten()
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())
            .context("no libfaketime: `make setup` installs it")?;
        let clock = Self { file: dir.join("wall-clock"), library };
        clock.set(&format!("@{time}"))?;
        Ok(clock)
    }

    /// Sets it right, as NTP does.
    pub fn set_right(&self) -> Result<()> {
        self.set("+0")
    }

    fn set(&self, time: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{time}\n"))?;
        Ok(fs::rename(new, &self.file)?)
    }

    /// A launcher for an agent that has this clock.
    pub fn launcher(&self) -> Vec<String> {
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "FAKETIME_DONT_RESET=1".to_owned(),
        ]
    }
}
