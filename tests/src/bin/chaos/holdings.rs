//! What processes and TPMs hold: memory, file descriptors, files, handles. None may grow.

use crate::rig::Rig;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Of a process that lives on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) rss_kib: u64,
    pub(crate) descriptors: usize,
}

/// Of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

pub(crate) fn process(pid: u32) -> Result<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rss| rss.split_whitespace().next()).context("no VmRSS")?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(Process { rss_kib: rss.parse()?, descriptors })
}

pub(crate) fn bridge(rig: &mut Rig) -> Result<Process> {
    process(rig.world.bridge.process()?.pid())
}

pub(crate) fn agents(rig: &mut Rig) -> Result<Vec<Process>> {
    rig.members.iter_mut().map(|member| process(member.device.agent()?.pid())).collect()
}

/// Of all agents' states, and of the bridge's directory.
pub(crate) fn files(rig: &Rig) -> Result<Vec<Files>> {
    let dirs = rig.members.iter().map(|member| member.device.state_dir());
    dirs.chain([rig.bridge_dir.clone()]).map(|dir| files_below(&dir)).collect()
}

fn files_below(dir: &Path) -> Result<Files> {
    let mut files = Files { count: 0, bytes: 0 };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Gone in between.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let below = files_below(&entry.path())?;
            files = Files { count: files.count + below.count, bytes: files.bytes + below.bytes };
        } else {
            files = Files { count: files.count + 1, bytes: files.bytes + metadata.len() };
        }
    }
    Ok(files)
}

/// That each TPM holds its agent's key and nothing else, and counts nothing towards its lockout.
pub(crate) fn nothing_left_in_tpms(rig: &Rig) -> Result<()> {
    for member in &rig.members {
        let mut tpm = member.device.tpm()?;
        let (handles, lockout) = (tpm.handles()?, tpm.lockout_counter()?);
        let name = member.device.name();
        ensure!(handles.objects == 1 && handles.sessions == 0, "left in the TPM of {name}: {handles:?}");
        ensure!(lockout == 0, "the TPM of {name} counts {lockout} towards its lockout");
    }
    Ok(())
}
