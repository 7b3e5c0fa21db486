//! What processes and TPMs hold: memory, file descriptors, files, handles. None may grow.

use crate::rig::Rig;
use anyhow::{Result, ensure};
use keylime_mqtt_tests::held::Held;
use keylime_mqtt_tests::process::Process;
use std::fs;
use std::path::Path;

/// Of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

/// Every process that must not grow, from one moment on, each for as long as nobody kills it.
pub(crate) struct Lives(Vec<Life>);

/// Of one of them.
pub(crate) struct Life {
    pub(crate) who: String,
    pid: u32,
    /// How many faults it has lived through
    pub(crate) faults: usize,
    pub(crate) before: Held,
    pub(crate) after: Held,
    ended: bool,
}

impl Lives {
    pub(crate) fn begin(rig: &mut Rig) -> Result<Self> {
        let names = (0..rig.members.len()).map(|number| format!("agent {number}"));
        let names = ["the bridge".to_owned()].into_iter().chain(names);
        let lives = names.zip(running(rig)?).map(|(who, process)| {
            let before = Held::by(process)?;
            Ok(Life { who, pid: process.pid(), faults: 0, before, after: before, ended: false })
        });
        lives.collect::<Result<_>>().map(Self)
    }

    /// After a fault.
    pub(crate) fn look(&mut self, rig: &mut Rig) -> Result<()> {
        for (life, process) in self.0.iter_mut().zip(running(rig)?) {
            // One that has ended by itself holds nothing; the watchman tells of it.
            let held = Held::by(process).ok().filter(|_| process.pid() == life.pid && !life.ended);
            if let Some(held) = held {
                life.after = held;
                life.faults += 1;
            }
            life.ended = held.is_none();
        }
        Ok(())
    }

    /// Those that lived through any fault.
    pub(crate) fn told(&self) -> impl Iterator<Item = &Life> {
        self.0.iter().filter(|life| life.faults > 0)
    }
}

fn running(rig: &mut Rig) -> Result<Vec<&Process>> {
    let bridge: &Process = rig.world.bridge.process()?;
    let mut running = vec![bridge];
    for member in &mut rig.members {
        running.push(member.device.agent()?);
    }
    Ok(running)
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
