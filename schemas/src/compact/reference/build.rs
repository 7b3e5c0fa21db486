//! Making a reference: from a Keylime runtime policy, or from what a golden machine measured.

use super::{Entry, MAGIC, MAX_ENTRIES, MAX_FILE, MAX_UEFI, ReferenceError};
use crate::compact::bytes::push_number;
use crate::compact::ima::Measured;
use serde_json::Value;
use std::collections::HashSet;

/// Every machine has its own; it is no file.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// Collects what a reference is to know. The order matters a little: a log in the order of its reference costs least.
#[derive(Debug, Default)]
pub struct ReferenceBuilder {
    /// Digest and path of each entry
    seen: HashSet<(Vec<u8>, Vec<u8>)>,
    /// As they stand in the file
    entries: Vec<u8>,
    uefi: Vec<u8>,
}

impl ReferenceBuilder {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the files of a golden machine's ascii IMA log, in its order, with their signatures.
    ///
    /// Violations, the boot aggregate and lines of templates that are not known here are left out.
    pub fn ima_log(&mut self, log: &[u8]) -> &mut Self {
        for line in log.split(|byte| *byte == b'\n') {
            if let Some(Measured { digest, name, signature }) = Measured::of(line) {
                self.add(Entry { digest: &digest, path: name, signature: &signature });
            }
        }
        self
    }

    /// Adds what a runtime policy allows: all pairs of its `digests`, `ima-buf` and `keyrings`.
    pub fn runtime_policy(&mut self, policy: &[u8]) -> Result<&mut Self, ReferenceError> {
        let policy: Value = serde_json::from_slice(policy).map_err(|_| ReferenceError::Policy)?;
        if policy.get("digests").is_none() {
            return Err(ReferenceError::Policy);
        }
        for part in ["digests", "ima-buf", "keyrings"] {
            let Some(names) = policy.get(part) else { continue };
            for (name, digests) in names.as_object().ok_or(ReferenceError::Policy)? {
                for digest in digests.as_array().ok_or(ReferenceError::Policy)? {
                    let digest = digest.as_str().and_then(|text| hex::decode(text).ok());
                    let digest = digest.ok_or(ReferenceError::Policy)?;
                    self.add(Entry { digest: &digest, path: name.as_bytes(), signature: &[] });
                }
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
        if self.seen.len() > MAX_ENTRIES || self.uefi.len() > MAX_UEFI {
            return Err(ReferenceError::TooLarge);
        }
        let mut file = MAGIC.to_vec();
        push_number(&mut file, self.seen.len() as u64);
        file.extend_from_slice(&self.entries);
        push_number(&mut file, self.uefi.len() as u64);
        file.extend_from_slice(&self.uefi);
        if file.len() > MAX_FILE { Err(ReferenceError::TooLarge) } else { Ok(file) }
    }

    /// What no line of a log can say is passed over: it could never be found.
    fn add(&mut self, entry: Entry) {
        let mut is_new = || self.seen.insert((entry.digest.to_vec(), entry.path.to_vec()));
        if entry.is_sayable() && entry.path != BOOT_AGGREGATE && is_new() {
            entry.write(&mut self.entries);
        }
    }
}
