//! What the kernel and the firmware wrote down about this boot, and which boot that is.
//!
//! [`ima`] reads the growing ascii IMA log, [`uefi`] the fixed log of the firmware, [`boot`] names the boot and its time.
//! Both logs are optional: a device without them attests by quote alone. Nothing here judges what the logs say; the
//! verifier replays them against the quote.

pub mod boot;
pub mod ima;
pub mod uefi;

use std::path::{Path, PathBuf};

/// Why a file could not give what it should. The configuration names the file under `key`.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operator's or the system's: missing, or no permission.
    #[error("{key}: {} cannot be read: {source}; correct the path, or give the agent's user the right to read it", .path.display())]
    Unreadable {
        /// Key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The operator's: another file than it should be.
    #[error("{key}: {} is not {expected}; correct the path", .path.display())]
    NotThat {
        /// Key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The caller's, or the log was replaced: such lines are not there.
    #[error("{key}: {} has {entries} lines, line {line} was asked for", .path.display())]
    NoSuchLine {
        /// Key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Lines there are.
        entries: u64,
        /// Line asked for, from 0.
        line: u64,
    },
    /// The system's: a log that is complete before the kernel runs is not what it was.
    #[error("{key}: {} is another log than earlier in this boot; restart the agent, and find out who changed it", .path.display())]
    Changed {
        /// Key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
}

impl LogError {
    fn unreadable(key: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { key, path, source }
    }
}
