//! Reference files: what devices and bridge both know before a log is sent.
//!
//! A reference saves bytes and decides nothing: a device that has another one, or none, sends its logs whole. It is made here, from a runtime policy or the logs of
//! a golden machine, and then belongs on the devices and in the configuration of every bridge that serves them.

use crate::restore::{Replayed, UefiReplay};
use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder, ReferenceError};
use keylime_mqtt_schemas::messages::{Digest, PcrValues};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// A file that is no reference, or cannot become part of one
#[derive(Debug, Error)]
pub enum ReferenceFileError {
    /// A configured file cannot be read
    #[error("references: {path}: cannot be read ({source})")]
    Unreadable {
        /// Where
        path: PathBuf,
        /// What the system said
        source: io::Error,
    },
    /// A configured file is not a reference
    #[error("references: {path}: {source}")]
    Unfit {
        /// Where
        path: PathBuf,
        /// What is wrong with it
        source: ReferenceError,
    },
    /// An input cannot be read
    #[error("{option} {path}: cannot be read ({source})")]
    NoInput {
        /// The option that named it
        option: &'static str,
        /// Where
        path: PathBuf,
        /// What the system said
        source: io::Error,
    },
    /// An input is of another kind
    #[error("{option} {path}: {problem}")]
    Input {
        /// The option that named it
        option: &'static str,
        /// Where
        path: PathBuf,
        /// What it should have been
        problem: &'static str,
    },
    /// All inputs together make none
    #[error("{0}")]
    Together(ReferenceError),
    /// The policy is none
    #[error("--policy {path}: {source}")]
    Policy {
        /// Where
        path: PathBuf,
        /// What is wrong with it
        source: ReferenceError,
    },
    /// The output cannot be written
    #[error("--output {path}: cannot be written ({source})")]
    Output {
        /// Where
        path: PathBuf,
        /// What the system said
        source: io::Error,
    },
}

/// What a reference is made of
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Keylime runtime policy (JSON)
    pub policy: Option<PathBuf>,
    /// Ascii IMA log of a golden machine
    pub ima: Option<PathBuf>,
    /// Binary UEFI log of a golden machine
    pub uefi: Option<PathBuf>,
}

/// A reference that was written
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its name
    pub digest: Digest,
    /// Files that it knows
    pub entries: usize,
    /// Bytes of the UEFI log in it
    pub uefi: usize,
    /// Bytes of the file
    pub size: usize,
}

/// Reads the configured files
///
/// # Errors
/// The first that cannot be used.
pub fn read_references(files: &[PathBuf]) -> Result<Arc<[Reference]>, ReferenceFileError> {
    let read = |path: &PathBuf| {
        let unreadable = |source| ReferenceFileError::Unreadable { path: path.clone(), source };
        let bytes = fs::read(path).map_err(unreadable)?;
        Reference::from_file(bytes).map_err(|source| ReferenceFileError::Unfit { path: path.clone(), source })
    };
    files.iter().map(read).collect()
}

/// Makes a reference and writes it to `output`
///
/// # Errors
/// When an input is not what its option says, or the file cannot be written.
pub fn make_reference(sources: &Sources, output: &Path) -> Result<Made, ReferenceFileError> {
    let mut builder = ReferenceBuilder::new();
    let mut entries = 0;
    // the log first: what comes in the order of its reference costs least
    if let Some(path) = &sources.ima {
        let log = input("--ima", path)?;
        builder.ima_log(&log);
        entries = built(&builder)?.entries();
        if entries == 0 {
            let problem = "holds no measured file; expected lines as in \
                           /sys/kernel/security/ima/ascii_runtime_measurements";
            return Err(ReferenceFileError::Input { option: "--ima", path: path.clone(), problem });
        }
    }
    if let Some(path) = &sources.policy {
        let policy = input("--policy", path)?;
        let unfit = |source| ReferenceFileError::Policy { path: path.clone(), source };
        builder.runtime_policy(&policy).map_err(unfit)?;
        if sources.ima.is_none() && built(&builder)?.entries() == entries {
            let problem = "allows no file at all: there is nothing to know of it";
            return Err(ReferenceFileError::Input { option: "--policy", path: path.clone(), problem });
        }
    }
    if let Some(path) = &sources.uefi {
        let log = input("--uefi", path)?;
        if matches!(Replayed::of(&log).explains(&PcrValues::default()), UefiReplay::Malformed(_)) {
            let problem = "is no UEFI log with SHA-256 digests; expected the bytes of \
                           /sys/kernel/security/tpm0/binary_bios_measurements";
            return Err(ReferenceFileError::Input { option: "--uefi", path: path.clone(), problem });
        }
        builder.uefi_log(&log);
    }
    let file = builder.build().map_err(ReferenceFileError::Together)?;
    let unwritable = |source| ReferenceFileError::Output { path: output.to_owned(), source };
    fs::write(output, &file).map_err(unwritable)?;
    let reference = Reference::parse(&file).map_err(ReferenceFileError::Together)?;
    Ok(Made {
        digest: reference.digest(),
        entries: reference.entries(),
        uefi: reference.uefi_log().len(),
        size: file.len(),
    })
}

fn input(option: &'static str, path: &Path) -> Result<Vec<u8>, ReferenceFileError> {
    fs::read(path).map_err(|source| ReferenceFileError::NoInput { option, path: path.to_owned(), source })
}

fn built(builder: &ReferenceBuilder) -> Result<Reference, ReferenceFileError> {
    let file = builder.build().map_err(ReferenceFileError::Together)?;
    Reference::from_file(file).map_err(ReferenceFileError::Together)
}
