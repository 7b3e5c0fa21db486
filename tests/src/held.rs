//! What a process that lives on holds: memory and file descriptors. Neither may grow.

use crate::process::Process;
use anyhow::{Context, Result};
use std::fmt;
use std::fs;

/// What allocators keep, and no leak.
const SLACK_PERCENT: u64 = 20;
const SLACK_KIB: u64 = 2048;
/// Connections that the bridge opens when it first needs them and keeps: up to eight to the registrar by default. Those to
/// the verifier are there from the start.
const SLACK_DESCRIPTORS: usize = 8;

/// Held at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    rss_kib: u64,
    descriptors: usize,
}

impl Held {
    /// By a process that runs.
    pub fn by(process: &Process) -> Result<Self> {
        let pid = process.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.split_whitespace().next()).context("no VmRSS")?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { rss_kib: rss.parse()?, descriptors })
    }

    /// Whether this is no growth since `before`, but for what varies and what it may hold besides.
    pub fn stays(&self, before: &Self, besides_kib: u64) -> bool {
        let limit = before.rss_kib + before.rss_kib * SLACK_PERCENT / 100 + SLACK_KIB + besides_kib;
        self.rss_kib <= limit && self.descriptors <= before.descriptors + SLACK_DESCRIPTORS
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB resident and {} descriptors", self.rss_kib, self.descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slack_is_no_growth_and_a_leak_is() {
        let held = |rss_kib, descriptors| Held { rss_kib, descriptors };
        let before = held(10_000, 20);
        assert!(held(14_048, 28).stays(&before, 0));
        assert!(!held(14_049, 28).stays(&before, 0));
        assert!(!held(10_000, 29).stays(&before, 0));
        assert!(held(15_048, 20).stays(&before, 1000));
    }
}
