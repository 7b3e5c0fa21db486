//! Where the built binaries are: beside the test that runs.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// The path of a binary of this workspace, built in the same profile as this test.
pub fn path(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    let mut dir = running.parent().context("a program without a directory")?;
    // Tests lie in `deps`, the demo beside the other binaries.
    if dir.ends_with("deps") {
        dir = dir.parent().context("`deps` without a parent")?;
    }
    let path = dir.join(name);
    ensure!(path.exists(), "{} is not built: run `make build` first", path.display());
    Ok(path)
}
