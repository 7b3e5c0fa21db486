//! The last lines of the log, so that what has just been read need not be read again.

/// Bytes of whole lines kept: some hundred lines, more than a device measures from one attestation to the next.
const KEPT: usize = 32 * 1024;

/// Whole lines up to the last one that was read.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Number of the first line here.
    first: u64,
    bytes: Vec<u8>,
    /// A line was longer than what is kept: nothing is known until the end of this read.
    lost: bool,
}

impl Recent {
    /// Takes what was read on.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.lost {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        let Some(least) = self.bytes.len().checked_sub(KEPT).filter(|least| *least > 0) else { return };
        let end = self.bytes.iter().skip(least - 1).position(|byte| *byte == b'\n');
        let Some(end) = end.map(|behind| least + behind) else {
            self.lost = true;
            self.bytes = Vec::new();
            return;
        };
        let gone = self.bytes.drain(..end).filter(|byte| *byte == b'\n').count();
        self.first += gone as u64;
    }

    /// What was read ends with `partial` bytes of a line that is still being written, after `entries` whole ones.
    pub(super) fn end(&mut self, partial: usize, entries: u64) {
        self.bytes.truncate(self.bytes.len().saturating_sub(partial));
        if std::mem::take(&mut self.lost) {
            self.forget(entries);
        }
    }

    /// From here on nothing is known of the `entries` lines before.
    pub(super) fn forget(&mut self, entries: u64) {
        *self = Self { first: entries, ..Self::default() };
    }

    /// The lines from number `from` on, if they are all here.
    pub(super) fn lines(&self, from: u64) -> Option<impl Iterator<Item = &[u8]>> {
        let skipped = usize::try_from(from.checked_sub(self.first)?).ok()?;
        Some(self.bytes.split_inclusive(|byte| *byte == b'\n').skip(skipped))
    }
}
