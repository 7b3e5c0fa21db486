//! The kernel's part: IMA measuring what runs, into its list and into PCR 10.
//!
//! Entries are `ima-ng` lines in the ascii form of `ascii_runtime_measurements`. Like the kernel, [`ImaLog::run`]
//! appends to the list first and extends after (`ima_queue.c`), so a reader that quotes first never sees a PCR
//! ahead of the list.

use crate::tpm::{Bank, Tpm};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// IMA's PCR.
pub const IMA_PCR: u32 = 10;

/// PCRs that `boot_aggregate` covers (since Linux 5.8).
const BOOT_AGGREGATE_PCRS: std::ops::Range<u32> = 0..10;

/// The measurement list of one boot.
#[derive(Debug)]
pub struct ImaLog {
    path: PathBuf,
    entries: usize,
}

impl ImaLog {
    /// Starts a list as the kernel does at boot: one entry, `boot_aggregate`, over what firmware measured.
    pub fn boot(path: &Path, tpm: &mut Tpm) -> Result<Self> {
        let mut pcrs = Vec::new();
        for pcr in BOOT_AGGREGATE_PCRS {
            pcrs.extend(tpm.read(pcr, Bank::Sha256)?);
        }
        fs::write(path, "").with_context(|| format!("cannot write {}", path.display()))?;
        let mut log = Self { path: path.to_owned(), entries: 0 };
        log.append(tpm, &Bank::Sha256.digest(&pcrs), "boot_aggregate")?;
        Ok(log)
    }

    /// A program runs: its file is measured. The digest follows from the path, see [`digest_of`].
    pub fn run(&mut self, tpm: &mut Tpm, program: &str) -> Result<()> {
        self.append(tpm, &digest_of(program), program)
    }

    /// Many programs run: all are in the list before the first is in the PCR.
    pub fn run_all(&mut self, tpm: &mut Tpm, programs: &[String]) -> Result<()> {
        let banks = tpm.banks()?;
        let templates: Vec<_> = programs.iter().map(|path| template_data(&digest_of(path), path)).collect();
        let lines: String = programs
            .iter()
            .zip(&templates)
            .map(|(path, template)| line(template, &digest_of(path), path))
            .collect();
        OpenOptions::new().append(true).open(&self.path)?.write_all(lines.as_bytes())?;
        self.entries += programs.len();
        for template in &templates {
            let digests: Vec<_> = banks.iter().map(|bank| (*bank, bank.digest(template))).collect();
            tpm.extend(IMA_PCR, &digests)?;
        }
        Ok(())
    }

    /// Entries so far, `boot_aggregate` included.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Where the list is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The list as it stands.
    pub fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.path)?)
    }

    fn append(&mut self, tpm: &mut Tpm, digest: &[u8], path: &str) -> Result<()> {
        let template = template_data(digest, path);
        let line = line(&template, digest, path);
        OpenOptions::new().append(true).open(&self.path)?.write_all(line.as_bytes())?;
        self.entries += 1;
        let digests: Vec<_> = tpm.banks()?.into_iter().map(|bank| (bank, bank.digest(&template))).collect();
        tpm.extend(IMA_PCR, &digests)
    }
}

/// One line of the list.
fn line(template: &[u8], digest: &[u8], path: &str) -> String {
    let template = hex::encode(Bank::Sha1.digest(template));
    format!("{IMA_PCR} {template} ima-ng sha256:{} {path}\n", hex::encode(digest))
}

/// The list of a machine that ran these programs, as its kernel shows it but for `boot_aggregate`.
pub fn list(programs: &[String]) -> String {
    let line = |path: &String| line(&template_data(&digest_of(path), path), &digest_of(path), path);
    programs.iter().map(line).collect()
}

/// The fields of `ima-ng` as the kernel hashes them: each with its length, little endian (ima_template_lib.c).
fn template_data(digest: &[u8], path: &str) -> Vec<u8> {
    let mut data = Vec::new();
    for field in [[b"sha256:\0", digest].concat(), [path.as_bytes(), b"\0"].concat()] {
        data.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
        data.extend_from_slice(&field);
    }
    data
}

/// The digest that the file at `path` has on every device of a world.
pub fn digest_of(path: &str) -> Vec<u8> {
    Bank::Sha256.digest(path.as_bytes())
}

/// What PCR 10 holds after a list, by replay in memory.
pub fn replay(text: &str) -> Result<Vec<u8>> {
    let mut pcr = vec![0; Bank::Sha256.digest(b"").len()];
    for line in text.lines() {
        let mut fields = line.splitn(5, ' ').skip(3);
        let digest = fields.next().and_then(|field| field.strip_prefix("sha256:")).context("no digest")?;
        let path = fields.next().context("no path")?;
        pcr.extend(Bank::Sha256.digest(&template_data(&hex::decode(digest)?, path)));
        pcr = Bank::Sha256.digest(&pcr);
    }
    Ok(pcr)
}

/// A Keylime runtime policy that allows these programs and nothing else.
///
/// `boot_aggregate`, which differs with firmware, is left to measured-boot policies, as Keylime's manual has it.
/// Generator 2: with 0 or 1 the push-mode verifier silently asks for no IMA log at all.
pub fn runtime_policy(programs: &[&str]) -> Value {
    let digests: BTreeMap<&str, Vec<String>> =
        programs.iter().map(|program| (*program, vec![hex::encode(digest_of(program))])).collect();
    json!({
        "meta": { "version": 1, "generator": 2 },
        "release": 0,
        "digests": digests,
        "excludes": ["boot_aggregate"],
        "keyrings": {},
        "ima": { "ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": null },
        "ima-buf": {},
        "verification-keys": "",
    })
}
