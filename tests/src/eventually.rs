//! Waiting for what real parts do in their own time.
//!
//! The bound is generous, since the machine may be slow: it only ends a wait that would never end, and no claim
//! rests on it. What a failure shows are the logs, not a number of seconds.

use crate::scratch::tails;
use anyhow::{Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than any recovery takes, also on two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How often an outside state is looked at that cannot announce itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Polls `condition` until it yields a value; fails with what was awaited and the tails of all logs.
pub fn eventually<T>(awaited: &str, logs: &Path, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    within(PATIENCE, awaited, logs, condition)
}

/// Like [`eventually`], for the few things that take longer than [`PATIENCE`].
pub fn within<T>(
    bound: Duration,
    awaited: &str,
    logs: &Path,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("in vain awaited within {bound:?}: {awaited}\n{}", tails(logs));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
