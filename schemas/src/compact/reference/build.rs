//! Making a reference: from a Keylime runtime policy, or from what a golden machine measured.

use super::{DIGEST_SIZES, MAGIC, MAX_ENTRIES, MAX_FILE, MAX_PATH, MAX_UEFI, ReferenceError};
use crate::compact::bytes::push_number;
use crate::compact::ima::measured;
use serde_json::Value;
use std::collections::HashSet;

/// Collects what a reference is to know. The order matters a little: a log in the order of its reference costs least.
#[derive(Debug, Default)]
pub struct ReferenceBuilder {
    seen: HashSet<(Vec<u8>, Vec<u8>)>,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    uefi: Vec<u8>,
}

impl ReferenceBuilder {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the files of a golden machine's ascii IMA log, in its order. Lines of unknown templates, violations and
    /// the boot aggregate, which differ from machine to machine, are left out.
    pub fn ima_log(&mut self, log: &[u8]) -> &mut Self {
        for line in log.split(|byte| *byte == b'\n') {
            if let Some((digest, path)) = measured(line)
                && path != b"boot_aggregate"
            {
                self.add(digest, path.to_vec());
            }
        }
        self
    }

    /// Adds the files that a runtime policy allows: all pairs of its `digests`.
    pub fn runtime_policy(&mut self, policy: &[u8]) -> Result<&mut Self, ReferenceError> {
        let policy: Value = serde_json::from_slice(policy).map_err(|_| ReferenceError::Policy)?;
        let files = policy.get("digests").and_then(Value::as_object).ok_or(ReferenceError::Policy)?;
        for (path, digests) in files {
            for digest in digests.as_array().ok_or(ReferenceError::Policy)? {
                let digest = digest.as_str().and_then(|text| hex::decode(text).ok());
                self.add(digest.ok_or(ReferenceError::Policy)?, path.as_bytes().to_vec());
            }
        }
        Ok(self)
    }

    /// Sets the UEFI log: the binary form of one machine of the kind.
    pub fn uefi_log(&mut self, log: &[u8]) -> &mut Self {
        self.uefi = log.to_vec();
        self
    }

    /// The reference as a file, to be given to both sides.
    pub fn build(&self) -> Result<Vec<u8>, ReferenceError> {
        if self.entries.len() > MAX_ENTRIES || self.uefi.len() > MAX_UEFI {
            return Err(ReferenceError::TooLarge);
        }
        let mut file = MAGIC.to_vec();
        push_number(&mut file, self.entries.len() as u64);
        for (digest, path) in &self.entries {
            file.push(u8::try_from(digest.len()).unwrap_or_default());
            file.extend_from_slice(digest);
            push_number(&mut file, path.len() as u64);
            file.extend_from_slice(path);
        }
        push_number(&mut file, self.uefi.len() as u64);
        file.extend_from_slice(&self.uefi);
        if file.len() > MAX_FILE { Err(ReferenceError::TooLarge) } else { Ok(file) }
    }

    /// What no line of a log can say is passed over: it could never be found.
    fn add(&mut self, digest: Vec<u8>, path: Vec<u8>) {
        let sayable =
            DIGEST_SIZES.contains(&digest.len()) && path.len() <= MAX_PATH && !path.contains(&b'\n');
        let entry = (digest, path);
        if sayable && !self.seen.contains(&entry) {
            self.seen.insert(entry.clone());
            self.entries.push(entry);
        }
    }
}
