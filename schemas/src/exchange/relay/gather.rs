//! Logs that are not here: the UEFI log once per content, and long ranges of the IMA log before the quote.
//!
//! Parts come in batches that the bridge asked for, in order; a part that is missing is asked for again from where it
//! is missing, so a cut costs the batch under way at most.

use super::phase::{Gather, Gathered, Phase, Repeat};
use super::port::{Command, Offer};
use super::{Relay, Time};
use crate::exchange::attester::lines;
use crate::messages::limits::MAX_UEFI_LOG;
use crate::messages::{Blob, Digest, LogKind, Need, Question, RefusedReason};

/// Above so many lines (some 64 KiB) the IMA log travels before the quote, in parts that survive a cut.
const BULK_LINES: u64 = 300;
/// Bytes of the UEFI log asked for at once: what may be lost and what may be on its way.
const UEFI_BATCH: u64 = 48 * 1024;
/// IMA lines asked for at once: as much.
const IMA_BATCH: u64 = 256;
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
        if self.gathered.as_ref().is_none_or(|gathered| gathered.from != from) {
            self.gathered = Some(Gathered { from, next: from, lines: Vec::new() });
        }
        let next = self.gathered.as_ref().map_or(from, |gathered| gathered.next);
        if self.ima_known().saturating_sub(next) > BULK_LINES {
            self.gather(offer, LogKind::Ima, now);
        } else {
            self.ask(offer, now);
        }
    }

    fn gather(&mut self, offer: Offer, log: LogKind, now: Time) {
        let repeat = self.repeat(now);
        self.ask_for_part(Gather { offer, log, uefi: Vec::new(), upto: 0, repeat }, now);
    }

    /// Asks for the next batch.
    pub(super) fn ask_for_part(&mut self, gather: Gather, now: Time) {
        let repeat = self.repeat(now);
        self.need(gather, repeat);
    }

    pub(super) fn ask_for_part_again(&mut self, gather: Gather, now: Time) {
        if gather.offer.expires_at <= now {
            // what was gathered of the IMA log is kept for the next offer
            self.proceed(now);
            return;
        }
        match gather.repeat.again() {
            Some(repeat) => self.need(gather, repeat.at(now)),
            None => self.phase = Phase::Gather(Gather { repeat: gather.repeat.spent(), ..gather }),
        }
    }

    fn need(&mut self, gather: Gather, repeat: Repeat) {
        let Some(boot) = self.facts.as_ref().map(|facts| facts.boot) else { return self.start_over() };
        let offset = self.next_offset(&gather);
        let (end, batch) = match gather.log {
            LogKind::Uefi => (self.uefi_size(), UEFI_BATCH),
            LogKind::Ima => (self.ima_known(), IMA_BATCH),
        };
        let upto = end.min(offset + batch);
        self.send(Question::Need(Need { log: gather.log, boot, offset, upto }));
        self.phase = Phase::Gather(Gather { upto, repeat, ..gather });
    }

    fn uefi_size(&self) -> u64 {
        self.facts.as_ref().and_then(|facts| facts.uefi).map_or(0, |log| u64::from(log.size))
    }

    fn ima_known(&self) -> u64 {
        self.facts.as_ref().and_then(|facts| facts.ima_entries).unwrap_or(0)
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
            other => {
                self.phase = other;
                return self.dropped("Blob", "no log was asked for");
            }
        };
        let of_this_boot = self.facts.as_ref().is_some_and(|facts| facts.boot == blob.boot);
        if blob.log != gather.log || !of_this_boot || blob.offset != self.next_offset(&gather) {
            self.phase = Phase::Gather(gather);
            return self.dropped("Blob", "not the part that comes next");
        }
        let part = blob.part.into_vec();
        match gather.log {
            LogKind::Uefi => self.uefi_part(gather, part, now),
            LogKind::Ima => self.ima_part(gather, &part, now),
        }
    }

    fn uefi_part(&mut self, mut gather: Gather, part: Vec<u8>, now: Time) {
        let Some(log) = self.facts.as_ref().and_then(|facts| facts.uefi) else { return self.start_over() };
        let size = usize::try_from(log.size).unwrap_or(usize::MAX);
        let ended = part.is_empty();
        gather.uefi.extend(part);
        if gather.uefi.len() < size && !ended {
            self.go_on(gather, now);
        } else if Digest::of(&[&gather.uefi]) == log.digest {
            self.outputs.push_back(super::Output::Command(Command::KeepUefi(log.digest, gather.uefi)));
            self.gather_ima_or_ask(gather.offer, now);
        } else {
            self.dropped("Blob", "the UEFI log does not have the digest that was announced");
            self.facts = None;
            self.spoiled += 2;
            self.anew_later();
        }
    }

    fn ima_part(&mut self, gather: Gather, part: &[u8], now: Time) {
        let Some(gathered) = &mut self.gathered else { return self.start_over() };
        if part.last().is_some_and(|byte| *byte != b'\n') {
            self.phase = Phase::Gather(gather);
            return self.dropped("Blob", "an IMA part that is not whole lines");
        }
        if gathered.next + lines(part) > gather.upto {
            self.phase = Phase::Gather(gather);
            return self.dropped("Blob", "more IMA lines than were asked for");
        }
        if gathered.lines.len() + part.len() > MAX_HELD_IMA {
            self.dropped("Blob", "more of an IMA log than a bridge holds");
            return self.refuse(RefusedReason::Offer);
        }
        gathered.lines.extend(part);
        gathered.next += lines(part);
        let next = gathered.next;
        let batch_done = next >= gather.upto;
        if part.is_empty() || (batch_done && self.ima_known().saturating_sub(next) <= BULK_LINES) {
            self.ask(gather.offer, now);
        } else {
            self.go_on(gather, now);
        }
    }

    /// A part came: the next batch once this one is here, and new patience in any case.
    fn go_on(&mut self, gather: Gather, now: Time) {
        if self.next_offset(&gather) >= gather.upto {
            self.ask_for_part(gather, now);
        } else {
            let repeat = self.repeat(now);
            self.phase = Phase::Gather(Gather { repeat, ..gather });
        }
    }
}
