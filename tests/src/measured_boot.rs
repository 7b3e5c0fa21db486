//! Firmware's part of a boot: measuring what it runs, so that PCRs and the UEFI log tell the same story.
//!
//! The logs are recorded ones of real boots (OVMF under QEMU), since Keylime and the agent must read what real
//! firmware writes; their digests are extended into the TPM, event by event, as firmware did.
//! Format: TCG PC Client Platform Firmware Profile, section 10 (crypto-agile log).

use crate::tpm::{Bank, Tpm};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;

/// EV_NO_ACTION is recorded, not extended.
const EV_NO_ACTION: u32 = 3;

/// Digest algorithms of a SpecID header; more is no log.
const ALGORITHMS_MAX: u32 = 8;

/// A UEFI event log as firmware hands it to the system.
#[derive(Clone, Debug)]
pub struct UefiLog {
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Event {
    pcr: u32,
    kind: u32,
    digests: Vec<(u16, std::ops::Range<usize>)>,
}

impl UefiLog {
    /// A boot with Secure Boot through shim and GRUB: 14 kB.
    pub fn secure_boot() -> Result<Self> {
        Self::recorded("uefi-secure-boot.bin")
    }

    /// A boot straight into a kernel, without Secure Boot: 1.9 kB.
    pub fn direct_boot() -> Result<Self> {
        Self::recorded("uefi-direct-boot.bin")
    }

    fn recorded(name: &str) -> Result<Self> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { bytes })
    }

    /// A log that was made or recorded elsewhere; an error if it is none.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let log = Self { bytes };
        log.events()?;
        Ok(log)
    }

    /// The log as the kernel shows it in `binary_bios_measurements`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same log with one measurement changed (and still well formed): it no longer matches the PCRs.
    pub fn with_changed_measurement(&self) -> Result<Self> {
        let events = self.events()?;
        let event = events.iter().rev().find(|event| event.kind != EV_NO_ACTION).context("no event")?;
        let mut bytes = self.bytes.clone();
        for (_, range) in &event.digests {
            for byte in bytes.get_mut(range.clone()).context("digest beyond the log")? {
                *byte ^= 0xff;
            }
        }
        Ok(Self { bytes })
    }

    /// Extends every measurement into the TPM, as firmware did while it wrote the log.
    pub fn replay(&self, tpm: &mut Tpm) -> Result<()> {
        let banks = tpm.banks()?;
        for event in self.events()?.iter().filter(|event| event.kind != EV_NO_ACTION) {
            let mut digests = Vec::new();
            for bank in &banks {
                let range =
                    event.digests.iter().find(|(id, _)| *id == bank.id()).map(|(_, range)| range.clone());
                let digest =
                    range.and_then(|range| self.bytes.get(range)).context("a bank without digests")?;
                digests.push((*bank, digest.to_vec()));
            }
            tpm.extend(event.pcr, &digests)?;
        }
        Ok(())
    }

    /// What the PCRs 0 to 15 hold after this boot, by replay in memory.
    pub fn pcrs(&self, bank: Bank) -> Result<Vec<Vec<u8>>> {
        let mut pcrs = vec![vec![0; bank.digest(b"").len()]; 16];
        for event in self.events()?.iter().filter(|event| event.kind != EV_NO_ACTION) {
            let digest = event.digests.iter().find(|(id, _)| *id == bank.id()).context("no such bank")?;
            let pcr = pcrs.get_mut(usize::try_from(event.pcr)?).context("a PCR above 15")?;
            pcr.extend_from_slice(self.bytes.get(digest.1.clone()).context("digest beyond the log")?);
            *pcr = bank.digest(pcr);
        }
        Ok(pcrs)
    }

    fn events(&self) -> Result<Vec<Event>> {
        // The first event is in the old format (PCR, type, SHA-1, size, data) and names the digest sizes.
        let mut at = Cursor { bytes: &self.bytes, at: 28 };
        let size = usize::try_from(at.u32()?)?;
        let mut header = Cursor { bytes: &self.bytes, at: at.at + 24 };
        let algorithms = header.u32()?;
        ensure!(algorithms <= ALGORITHMS_MAX, "{algorithms} digest algorithms");
        let mut sizes = Vec::new();
        for _ in 0..algorithms {
            sizes.push((header.u16()?, usize::from(header.u16()?)));
        }
        at.at += size;
        let mut events = Vec::new();
        while at.at < self.bytes.len() {
            let (pcr, kind, count) = (at.u32()?, at.u32()?, at.u32()?);
            let mut digests = Vec::new();
            for _ in 0..count {
                let id = at.u16()?;
                let size =
                    sizes.iter().find(|(known, _)| *known == id).context("a digest of unknown size")?.1;
                digests.push((id, at.at..at.at + size));
                at.at += size;
            }
            at.at += usize::try_from(at.u32()?)?;
            events.push(Event { pcr, kind, digests });
        }
        ensure!(at.at == self.bytes.len(), "the log ends in the middle of an event");
        Ok(events)
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..self.at + N).context("the log ends early")?;
        self.at += N;
        Ok(bytes.try_into()?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.take()?))
    }
}
