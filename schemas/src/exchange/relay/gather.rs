//! Logs that are not here: the UEFI log once per content, and long ranges of the IMA log before the quote.
//!
//! Parts come in batches that the bridge asked for, in order; a part that is missing is asked for again from where it
//! is missing, so a cut costs the batch under way at most.

use std::collections::VecDeque;
use std::sync::Arc;

use super::offer::Offer;
use super::phase::{Gather, Gathered, Phase, Repeat, Step};
use super::port::Command;
use super::unpack::Unpack;
use super::{Relay, Time};
use crate::messages::limits::MAX_UEFI_LOG;
use crate::messages::{Blob, Digest, LogKind, Need, Question, RefusedReason, UefiLog};

/// Above so many lines (some 13 KiB) the IMA log travels before the quote, in parts that survive a cut.
const BULK_LINES: u64 = 300;
/// Bytes of the packed UEFI log asked for at once: what may be lost and what may be on its way.
const UEFI_BATCH: u64 = 48 * 1024;
/// IMA lines asked for at once: as much.
const IMA_BATCH: u64 = 1024;
/// What cannot be packed travels as it is, and a little longer.
const MAX_PACKED_UEFI: u64 = MAX_UEFI_LOG as u64 + 1024;
/// A batch takes a quarter of a minute on NB-IoT, and twice that with a cut in it: so many times as long as for one
/// message it is waited for before it is asked for again.
const BATCH_PATIENCE: u32 = 3;
/// Packed bytes of one device that wait until the part before them is unpacked: a batch has less.
const MAX_AHEAD: usize = 256 * 1024;
/// Parts of one device that wait so, however small: a batch of lines of 4 KiB has some 70, of usual ones a handful.
const MOST_AHEAD: usize = 128;
/// IMA lines held for one device; 100 000 entries have some 20 MB.
const MAX_HELD_IMA: usize = 32 * 1024 * 1024;

impl Relay {
    pub(super) fn uefi_found(&mut self, offer: Offer, found: bool, now: Time) {
        if found {
            self.gather_ima_or_ask(offer, now);
        } else if self.uefi_size() > u64::from(MAX_UEFI_LOG) {
            self.dropped("Ready", "a UEFI log larger than any firmware writes");
            self.refuse(RefusedReason::Offer);
        } else {
            self.gather(offer, LogKind::Uefi, now);
        }
    }

    pub(super) fn gather_ima_or_ask(&mut self, offer: Offer, now: Time) {
        let Some(from) = offer.ima_offset() else { return self.ask(offer, now) };
        // lines beyond the log's end are nobody's
        let known = self.ima_known();
        if self
            .gathered
            .as_ref()
            .is_none_or(|gathered| gathered.from != from || gathered.next > known.max(from))
        {
            self.gathered = Some(Gathered { from, next: from, lines: Arc::default() });
        }
        let next = self.gathered.as_ref().map_or(from, |gathered| gathered.next);
        if self.ima_known().saturating_sub(next) > BULK_LINES {
            self.gather(offer, LogKind::Ima, now);
        } else {
            self.ask(offer, now);
        }
    }

    fn gather(&mut self, offer: Offer, log: LogKind, now: Time) {
        let repeat = self.batch_repeat(now);
        let gather =
            Gather { offer, log, uefi: Vec::new(), total: None, upto: 0, repeat, ahead: VecDeque::new() };
        self.ask_for_part(gather, now);
    }

    /// Asks for the next batch.
    pub(super) fn ask_for_part(&mut self, gather: Gather, now: Time) {
        let repeat = self.batch_repeat(now);
        self.need(gather, repeat);
    }

    fn batch_repeat(&self, now: Time) -> Repeat {
        Repeat::first(now, self.repeat_after() * BATCH_PATIENCE, self.settings.repeats)
    }

    pub(super) fn ask_for_part_again(&mut self, gather: Gather, now: Time) {
        if gather.offer.expires_at <= now {
            // what was gathered of the IMA log is kept for the next offer
            self.proceed(now);
            return;
        }
        match gather.repeat.again(self.longest_repeat()) {
            Some(repeat) => self.need(gather, repeat.at(now)),
            None if self.keeps_going() => self.ask_for_part(gather, now),
            None => self.phase = Phase::Gather(Gather { repeat: gather.repeat.spent(), ..gather }),
        }
    }

    fn need(&mut self, gather: Gather, repeat: Repeat) {
        let Some(boot) = self.facts.as_ref().map(|facts| facts.stated.boot.tag()) else {
            return self.start_over();
        };
        let offset = self.next_offset(&gather);
        let (end, batch) = match gather.log {
            LogKind::Uefi => (gather.total.unwrap_or(MAX_PACKED_UEFI), UEFI_BATCH),
            LogKind::Ima => (self.ima_known(), IMA_BATCH),
        };
        let upto = end.min(offset + batch);
        let reference = self.reference().is_some();
        self.send(Question::Need(Need { log: gather.log, boot, offset, upto, reference }));
        self.phase = Phase::Gather(Gather { upto, repeat, ..gather });
    }

    fn uefi_size(&self) -> u64 {
        self.facts.as_ref().and_then(|facts| facts.stated.uefi).map_or(0, |log| u64::from(log.size))
    }

    fn ima_known(&self) -> u64 {
        self.facts.as_ref().and_then(|facts| facts.ima_entries).unwrap_or(0)
    }

    /// The reference that device and bridge both have.
    pub(super) fn reference(&self) -> Option<Digest> {
        let named = self.facts.as_ref().filter(|_| !self.plain)?.stated.reference?;
        self.settings.references.iter().any(|reference| reference.digest() == named).then_some(named)
    }

    fn next_offset(&self, gather: &Gather) -> u64 {
        match gather.log {
            LogKind::Uefi => gather.uefi.len() as u64,
            LogKind::Ima => self.gathered.as_ref().map_or(0, |gathered| gathered.next),
        }
    }

    pub(super) fn blob(&mut self, blob: Blob, now: Time) {
        let gather = match std::mem::take(&mut self.phase) {
            Phase::Gather(gather) => gather,
            Phase::Busy(Step::Unpacking(mut gather)) => {
                let room = gather.ahead.len() < MOST_AHEAD
                    && gather.bytes_ahead() + blob.part.as_slice().len() <= MAX_AHEAD;
                if room {
                    gather.ahead.push_back(blob);
                }
                self.phase = Phase::Busy(Step::Unpacking(gather));
                if !room {
                    self.dropped("Blob", "more parts at once than were asked for");
                }
                return;
            }
            other => {
                self.phase = other;
                return self.dropped("Blob", "no log was asked for");
            }
        };
        let of_this_boot = self.facts.as_ref().is_some_and(|facts| facts.stated.boot.tag() == blob.boot);
        if blob.log != gather.log || !of_this_boot || blob.offset != self.next_offset(&gather) {
            self.phase = Phase::Gather(gather);
            return self.dropped("Blob", "not the part that comes next");
        }
        match gather.log {
            LogKind::Uefi => self.uefi_part(gather, blob, now),
            LogKind::Ima => self.ima_part(gather, blob, now),
        }
    }

    fn uefi_part(&mut self, mut gather: Gather, blob: Blob, now: Time) {
        let Some(log) = self.facts.as_ref().and_then(|facts| facts.stated.uefi) else {
            return self.start_over();
        };
        let total = blob.total.map(u64::from).filter(|total| (1..=MAX_PACKED_UEFI).contains(total));
        let grown = (gather.uefi.len() + blob.part.as_slice().len()) as u64;
        let fits = |total: &u64| *total >= grown && gather.total.is_none_or(|same| same == *total);
        let Some(total) = total.filter(fits) else {
            // which of the parts lied cannot be told
            return self.uefi_spoiled("parts of the UEFI log that do not belong together", now);
        };
        gather.total = Some(total);
        gather.upto = gather.upto.min(total);
        let ended = blob.part.as_slice().is_empty();
        gather.uefi.extend(blob.part.into_vec());
        if grown < total && !ended {
            return self.go_on(gather, now);
        }
        let packed = std::mem::take(&mut gather.uefi);
        self.unpack(gather, packed, Some(log));
    }

    fn unpack(&mut self, gather: Gather, packed: Vec<u8>, uefi: Option<UefiLog>) {
        let unpack = Unpack { packed, uefi, reference: self.reference() };
        self.command(Step::Unpacking(gather), Command::Unpack(unpack));
    }

    pub(super) fn unpacked(&mut self, gather: Gather, unpacked: Result<Vec<u8>, &'static str>, now: Time) {
        match (gather.log, unpacked) {
            (LogKind::Uefi, Ok(log)) => {
                let Some(digest) =
                    self.facts.as_ref().and_then(|facts| facts.stated.uefi).map(|log| log.digest)
                else {
                    return self.start_over();
                };
                self.outputs.push_back(super::Output::Command(Command::KeepUefi(digest, log)));
                self.gather_ima_or_ask(gather.offer, now);
            }
            (LogKind::Uefi, Err(why)) => self.uefi_spoiled(why, now),
            (LogKind::Ima, Ok(lines)) => self.ima_lines(gather, &lines, now),
            (LogKind::Ima, Err(why)) => self.ima_spoiled(gather, why, now),
        }
    }

    /// What came while the part before it was unpacked.
    pub(super) fn parts_ahead(&mut self, now: Time) {
        while let Phase::Gather(gather) = &mut self.phase
            && let Some(blob) = gather.ahead.pop_front()
        {
            self.blob(blob, now);
        }
    }

    /// Once more, without what a reference may have done to it; then the device has to say `Ready` again.
    fn uefi_spoiled(&mut self, why: &'static str, now: Time) {
        self.dropped("Blob", why);
        self.spoiled += 2;
        if self.reference().is_some() {
            self.plain = true;
            self.proceed(now);
        } else {
            self.facts = None;
            self.anew_later();
        }
    }

    fn ima_part(&mut self, gather: Gather, blob: Blob, now: Time) {
        if blob.part.as_slice().is_empty() {
            // the end of the log
            self.ask(gather.offer, now);
        } else {
            self.unpack(gather, blob.part.into_vec(), None);
        }
    }

    fn ima_lines(&mut self, gather: Gather, part: &[u8], now: Time) {
        let Some(gathered) = &mut self.gathered else { return self.start_over() };
        if gathered.next + lines(part) > gather.upto {
            return self.ima_spoiled(gather, "more IMA lines than were asked for", now);
        }
        if gathered.lines.len() + part.len() > MAX_HELD_IMA {
            self.dropped("Blob", "more of an IMA log than a bridge holds");
            self.gathered = None;
            return self.refuse(RefusedReason::Offer);
        }
        Arc::make_mut(&mut gathered.lines).extend_from_slice(part);
        gathered.next += lines(part);
        let next = gathered.next;
        let batch_done = next >= gather.upto;
        if part.is_empty() || (batch_done && self.ima_known().saturating_sub(next) <= BULK_LINES) {
            self.ask(gather.offer, now);
        } else {
            self.go_on(gather, now);
        }
    }

    /// Once more, for it may have been changed on the way, and without what a reference may have done to it; then anew after
    /// a while: each part is work for the bridge, however small it is.
    fn ima_spoiled(&mut self, gather: Gather, why: &'static str, now: Time) {
        self.dropped("Blob", why);
        self.spoiled += 1;
        self.plain |= self.reference().is_some();
        if self.spoiled % 2 == 1 {
            self.ask_for_part(Gather { ahead: VecDeque::new(), ..gather }, now);
        } else {
            self.anew_later();
        }
    }

    /// A part came: the next batch once this one is here, and new patience in any case.
    fn go_on(&mut self, gather: Gather, now: Time) {
        if self.next_offset(&gather) >= gather.upto {
            self.ask_for_part(gather, now);
        } else {
            let repeat = self.batch_repeat(now);
            self.phase = Phase::Gather(Gather { repeat, ..gather });
        }
    }
}

/// Lines of an IMA log: every one ends in a newline.
pub(super) fn lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}
