//! Disks that are full: small file systems of their own (tmpfs), filled up and emptied again.
//!
//! Mounting takes root. The mounts are made in a mount namespace of this process and of what it starts, so that they
//! end with it, however it ends.

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What takes all the room while the disk is full.
const FILLER: &str = "filler";

/// Written at once.
const BLOCK: usize = 4096;

/// From here on mounts of this process are its own. Call it while there is one thread; false where it is not allowed.
pub fn own_mounts() -> bool {
    let nothing: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).is_ok()
        && mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).is_ok()
}

/// A small file system.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many KiB over `at`; what is there is hidden. [`own_mounts`] must have been called.
    pub fn mount(at: &Path, kib: u32) -> Result<Self> {
        fs::create_dir_all(at)?;
        let options = format!("size={kib}k,mode=0700");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("no tmpfs can be mounted at {}", at.display()))?;
        Ok(Self { at: at.to_owned() })
    }

    /// Leaves no room for a single byte.
    pub fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.at.join(FILLER))?;
        loop {
            match filler.write_all(&[0; BLOCK]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        let probe = fs::write(self.at.join("probe"), [0]);
        fs::remove_file(self.at.join("probe")).ok();
        ensure!(probe.is_err(), "{} is not full", self.at.display());
        Ok(())
    }

    /// Gives the room back.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.at.join(FILLER))?)
    }
}
