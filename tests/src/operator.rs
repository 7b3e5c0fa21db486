//! The operator: the unmodified `keylime_tenant`, used as its manual says for push mode.

use crate::keylime::Keylime;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

/// What a device is held against. All empty is refused by Keylime in effect: it would never ask for anything.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// PCR -> allowed values, `{"23": ["<64 lowercase hex>"]}`
    pub tpm: Option<Value>,
    /// IMA runtime policy, see [`crate::ima::runtime_policy`]
    pub runtime: Option<Value>,
    /// Measured-boot policy; anything but `{}` makes the verifier compare PCRs and log
    pub measured_boot: Option<Value>,
}

/// Keylime's word on a device.
#[derive(Clone, Debug)]
pub struct CvStatus {
    /// PENDING, PASS, FAIL or TIMEOUT
    pub attestation_status: String,
    /// Attestations that passed, as the verifier counts them
    pub attestation_count: u64,
    /// Everything it said
    pub all: Value,
}

impl Keylime {
    /// Runs `keylime_tenant` with these arguments; its output, or an error with it.
    pub fn tenant(&self, arguments: &[&str]) -> Result<String> {
        let (succeeded, text) = self.run_tenant(arguments)?;
        ensure!(succeeded, "keylime_tenant {arguments:?} failed:\n{text}");
        Ok(text)
    }

    fn run_tenant(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.program("keylime_tenant").args(arguments).stdin(Stdio::null()).output()?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    /// `-c add`: Keylime will hold the device against these policies. The device must be registered.
    pub fn add(&self, id: &str, policies: &Policies) -> Result<()> {
        self.enrol("add", id, policies)
    }

    /// `-c update`: deletes and adds, which also clears a FAIL.
    pub fn update(&self, id: &str, policies: &Policies) -> Result<()> {
        self.enrol("update", id, policies)
    }

    /// `-c delete`: Keylime forgets what it holds the device against; its registration stays.
    pub fn delete(&self, id: &str) -> Result<()> {
        self.tenant(&["-c", "delete", "--push-model", "-u", id]).map(drop)
    }

    /// `-c regdelete`: the registrar forgets the device.
    pub fn regdelete(&self, id: &str) -> Result<()> {
        self.tenant(&["-c", "regdelete", "-u", id]).map(drop)
    }

    /// `-c reglist`: what the registrar knows.
    pub fn registered(&self, id: &str) -> Result<bool> {
        Ok(self.tenant(&["-c", "reglist"])?.contains(id))
    }

    /// `-c cvstatus`: Keylime's word on the device; `None` where the verifier does not know it.
    pub fn cvstatus(&self, id: &str) -> Result<Option<CvStatus>> {
        let (succeeded, text) = self.run_tenant(&["-c", "cvstatus", "--push-model", "-u", id])?;
        if !succeeded && text.contains("does not exist on Verifier") {
            return Ok(None);
        }
        ensure!(succeeded, "keylime_tenant -c cvstatus failed:\n{text}");
        // One line of JSON after a log line: {"<id>": {...}}
        let status = text.lines().find_map(|line| {
            let value: Value = serde_json::from_str(line.trim()).ok()?;
            value.get(id).cloned()
        });
        let all = status.with_context(|| format!("cvstatus says nothing about {id}:\n{text}"))?;
        let word = all.get("attestation_status").and_then(Value::as_str).context("no attestation_status")?;
        let count = all.get("attestation_count").and_then(Value::as_u64);
        Ok(Some(CvStatus {
            attestation_status: word.to_owned(),
            attestation_count: count.context("no attestation_count in cvstatus")?,
            all,
        }))
    }

    /// `keylime-policy create measured-boot`: a policy for one UEFI log.
    pub fn measured_boot_policy(&self, log: &crate::measured_boot::UefiLog) -> Result<Value> {
        let file = self.policy_file("uefi", log.bytes())?;
        let policy = file.with_extension("policy.json");
        let output = self
            .program("keylime-policy")
            .args(["create", "measured-boot", "-e"])
            .arg(&file)
            .arg("-o")
            .arg(&policy)
            .output()?;
        ensure!(output.status.success(), "keylime-policy: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&fs::read(&policy).context("keylime-policy wrote nothing")?)?)
    }

    fn enrol(&self, how: &str, id: &str, policies: &Policies) -> Result<()> {
        let mut arguments: Vec<String> =
            ["-c", how, "--push-model", "-u", id, "-v", "127.0.0.1"].map(str::to_owned).to_vec();
        if let Some(policy) = &policies.tpm {
            arguments.extend(["--tpm_policy".to_owned(), policy.to_string()]);
        }
        for (option, policy) in
            [("--runtime-policy", &policies.runtime), ("--mb-policy", &policies.measured_boot)]
        {
            if let Some(policy) = policy {
                let file = self.policy_file(&format!("{id}{option}.json"), policy.to_string().as_bytes())?;
                arguments.extend([option.to_owned(), file.display().to_string()]);
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.tenant(&arguments).map(drop)
    }

    fn policy_file(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let dir = self.state().join("policies");
        fs::create_dir_all(&dir)?;
        let file = dir.join(name);
        fs::write(&file, content)?;
        Ok(file)
    }
}
