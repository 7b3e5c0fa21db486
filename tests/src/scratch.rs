//! The directory in which one world lives: configurations, states, and every part's log.
//!
//! It is removed with the world, and by the [guard](crate::process) when the process is killed first. Set
//! `KEYLIME_MQTT_KEEP=1` to look at it afterwards.

use crate::process;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Lines of each log that a failing scenario shows.
const TAIL_LINES: usize = 25;

/// A temporary directory with a place for logs.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A new, empty directory under the system's temporary directory.
    pub fn new() -> Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("keylime-mqtt-").tempdir()?;
        if std::env::var_os("KEYLIME_MQTT_KEEP").is_some() {
            dir.disable_cleanup(true);
            eprintln!("kept: {}", dir.path().display());
        } else {
            process::remove_at_exit(dir.path());
        }
        let scratch = Self { dir };
        fs::create_dir(scratch.logs())?;
        Ok(scratch)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where every part's log goes, one file a part.
    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// The log of the part called `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Creates (if need be) and returns a subdirectory.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }
}

/// The last lines of every log in `logs`, to be shown when something did not happen.
pub fn tails(logs: &Path) -> String {
    let mut files: Vec<PathBuf> =
        fs::read_dir(logs).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let tail = |file: PathBuf| {
        let content = read_log(&file);
        let lines: Vec<&str> = content.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        let tail = lines.get(from..).unwrap_or_default().join("\n");
        format!("--- {} ({} lines)\n{tail}\n", file.display(), lines.len())
    };
    files.into_iter().map(tail).collect()
}

/// A log's text so far; empty while the part has not written any.
pub fn read_log(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A log that is read on from where it was read last.
#[derive(Debug)]
pub struct Tail {
    log: PathBuf,
    at: u64,
}

impl Tail {
    /// What is written to `log` from now on.
    pub fn of(log: &Path) -> Self {
        Self { log: log.to_owned(), at: fs::metadata(log).map_or(0, |metadata| metadata.len()) }
    }

    /// The whole lines since the last call.
    pub fn read(&mut self) -> Result<String> {
        let Ok(mut file) = File::open(&self.log) else { return Ok(String::new()) };
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        self.at += u64::try_from(bytes.len())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
