//! Which PCR values a quote covers and where in the IMA log it ends, found with as few questions to the TPM as possible.
//!
//! A quote names its values by one digest. The device remembers the values of its last evidence and how far it had
//! followed the IMA log then: most often nothing but the log has moved since, and following its new lines until the
//! digest fits gives PCR 10 and the very line at which the quote was made. So a log that grows all the time is no race,
//! and the TPM is asked for values only when something else has moved.
//!
//! Invariant: what is explained hashes to the quoted digest. Nothing that is remembered is believed without that, so a
//! wrong memory costs a question to the TPM and is never sent.
//!
//! TPM 2.0 Part 1, 17.5 (quoted digest); Linux `ima_queue.c` (a line is appended first, then PCR 10 extended).

use keylime_mqtt_schemas::ima::{ImaState, extend_by};
use keylime_mqtt_schemas::messages::{BootMarker, IMA_PCR, PcrMask, PcrValues};
use sha2::{Digest as _, Sha256};

use crate::logs::LogError;
use crate::logs::ima::ImaLog;

/// What the device knows of its PCRs and its IMA log in one boot.
#[derive(Debug)]
pub(super) struct Known {
    boot: BootMarker,
    /// As in the last evidence.
    values: PcrValues,
    /// How far the IMA log was followed, and to which value; below `followed_from` it was not.
    ima: ImaState,
    /// Lines before this one could not be followed; PCR 10 after them was read from the TPM.
    followed_from: u64,
}

/// The values that a quote covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Explained {
    /// Of all PCRs quoted.
    pub(super) values: PcrValues,
    /// Where the IMA log leads to the quoted PCR 10, if it does.
    pub(super) ima: Option<ImaState>,
}

impl Known {
    /// Nothing yet.
    pub(super) fn nothing(boot: BootMarker) -> Self {
        Self { boot, values: PcrValues::default(), ima: ImaState::BOOT, followed_from: 0 }
    }

    /// Which boot it is about.
    pub(super) fn boot(&self) -> BootMarker {
        self.boot
    }

    /// The values of the last evidence, of the PCRs in `mask`, if it had all of them.
    pub(super) fn values(&self, mask: PcrMask) -> Option<PcrValues> {
        Some(self.values.only(mask)).filter(|values| values.mask() == mask)
    }

    /// Whether following the lines from `offset` on leads to PCR 10.
    pub(super) fn leads_from(&self, offset: u64) -> bool {
        offset >= self.followed_from
    }

    /// Another IMA log came in place of the one that was followed.
    pub(super) fn forget_ima(&mut self) {
        self.ima = ImaState::BOOT;
        self.followed_from = 0;
    }

    /// Explains a quote from memory and the log's new lines.
    pub(super) fn explain(
        &self,
        mask: PcrMask,
        quoted: &[u8; 32],
        log: Option<&ImaLog>,
    ) -> Result<Option<Explained>, LogError> {
        if let Some(values) = self.values(mask).filter(|values| values.digest().as_bytes() == quoted) {
            let ima = Some(self.ima).filter(|ima| values.value(IMA_PCR) == Some(&ima.pcr10));
            return Ok(Some(Explained { values, ima }));
        }
        match self.values(mask.without(IMA_PCR)) {
            Some(others) => self.follow(mask, &others, quoted, log),
            None => Ok(None),
        }
    }

    /// Explains a quote from values that the TPM gave after it, and from the log where PCR 10 has moved on meanwhile.
    pub(super) fn explain_with(
        &self,
        read: PcrValues,
        quoted: &[u8; 32],
        log: Option<&ImaLog>,
    ) -> Result<Option<Explained>, LogError> {
        let mask = read.mask();
        if read.digest().as_bytes() != quoted {
            return self.follow(mask, &read.only(mask.without(IMA_PCR)), quoted, log);
        }
        let ima = match (log, read.value(IMA_PCR)) {
            (Some(log), Some(value)) => self.follow_until(log, |pcr10| pcr10 == value)?,
            _ => None,
        };
        Ok(Some(Explained { values: read, ima }))
    }

    /// Keeps what evidence was made with. `entries`: lines of the IMA log, read after the quote.
    pub(super) fn remember(&mut self, explained: &Explained, entries: Option<u64>) {
        self.values = self.values.overlaid(&explained.values);
        match (explained.ima, entries, explained.values.value(IMA_PCR)) {
            (Some(reached), _, _) => self.ima = reached,
            // A line that cannot be followed, or a log that does not fit the PCR: goes on from what the TPM said. If it
            // has moved since, the next quote is not explained by it and the TPM is asked again.
            (None, Some(entries), Some(value)) => {
                self.ima = ImaState { entries, pcr10: *value };
                self.followed_from = entries;
            }
            (None, _, _) => {}
        }
    }

    fn follow(
        &self,
        mask: PcrMask,
        others: &PcrValues,
        quoted: &[u8; 32],
        log: Option<&ImaLog>,
    ) -> Result<Option<Explained>, LogError> {
        let Some(log) = log.filter(|_| mask.contains(IMA_PCR)) else { return Ok(None) };
        let (below, above): (Vec<_>, Vec<_>) = others.iter().partition(|(pcr, _)| *pcr < IMA_PCR);
        let mut before = Sha256::new();
        for (_, value) in below {
            before.update(value);
        }
        let after: Vec<u8> = above.into_iter().flat_map(|(_, value)| *value).collect();
        let reached = self.follow_until(log, |pcr10| {
            let hash: [u8; 32] = before.clone().chain_update(pcr10).chain_update(&after).finalize().into();
            hash == *quoted
        })?;
        let Some(ima) = reached else { return Ok(None) };
        let pcr10 =
            PcrMask::try_from(1 << IMA_PCR).ok().and_then(|mask| PcrValues::new(mask, vec![ima.pcr10]).ok());
        Ok(pcr10.map(|pcr10| Explained { values: others.overlaid(&pcr10), ima: Some(ima) }))
    }

    /// Follows the log from where it was left to the first line after which PCR 10 is as wanted.
    ///
    /// Before the first line it never is: a TPM that holds nothing of a log which has lines does not cover that log.
    fn follow_until(
        &self,
        log: &ImaLog,
        is_wanted: impl Fn(&[u8; 32]) -> bool,
    ) -> Result<Option<ImaState>, LogError> {
        let mut at = self.ima;
        if at.entries > log.entries() {
            return Ok(None);
        }
        let mut reached = Some(at).filter(|at| at.entries > 0 && is_wanted(&at.pcr10));
        if reached.is_none() {
            log.visit(at.entries, log.entries(), |line| {
                if extend_by(&mut at, line).is_err() {
                    return false;
                }
                reached = Some(at).filter(|at| is_wanted(&at.pcr10));
                reached.is_none()
            })?;
        }
        Ok(reached)
    }
}
