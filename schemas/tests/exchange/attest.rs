//! What the model's TPM signs, and what a bridge makes of a quote, in full or brief.

use std::sync::Arc;

use keylime_mqtt_schemas::codec::encode;
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::relay::{ImaState, ImaText, Restore, Restored, Restoring};
use keylime_mqtt_schemas::messages::{AkName, Brief, Digest, IMA_PCR, PcrMask, PcrValues, Quote, Signed};

use super::device::{BOOT, FIRMWARE_PCR, chained, count};

pub(crate) const QUOTE: u8 = 1;
pub(crate) const CERTIFY: u8 = 2;
pub(crate) const STATEMENT: u8 = 3;

/// TPMT_SIGNATURE in front of its number: RSASSA, SHA-256, size. TPM 2.0 Part 2, 11.3.4.
const TPMT_SIGNATURE: [u8; 6] = [0x00, 0x14, 0x00, 0x0b, 0x00, 0x20];

/// What stands for TPMS_ATTEST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attest {
    pub(crate) kind: u8,
    pub(crate) extra: Vec<u8>,
    pub(crate) ak: AkName,
    pub(crate) mask: PcrMask,
    pub(crate) pcrs: Digest,
    pub(crate) clock: u64,
    pub(crate) resets: u64,
    pub(crate) restarts: u32,
}

impl Attest {
    fn encoded(&self) -> Vec<u8> {
        [
            &[self.kind, self.extra.len() as u8][..],
            &self.extra,
            self.ak.as_bytes(),
            &u32::from(self.mask).to_be_bytes(),
            self.pcrs.as_bytes(),
            &self.clock.to_be_bytes(),
            &self.resets.to_be_bytes(),
            &self.restarts.to_be_bytes(),
        ]
        .concat()
    }

    /// The number in the signature; only the TPM and this model can make it.
    pub(crate) fn signature(&self) -> Vec<u8> {
        Digest::of(&[b"the AK's private half", self.ak.as_bytes(), &self.encoded()]).as_bytes().to_vec()
    }

    pub(crate) fn signed(&self) -> Signed {
        let signature = [&TPMT_SIGNATURE[..], &self.signature()].concat();
        Signed { attest: self.encoded().try_into().unwrap(), signature: signature.try_into().unwrap() }
    }

    /// What a signed structure says, once its signature was found good.
    pub(crate) fn read(signed: &Signed) -> Option<Self> {
        let (head, rest) = signed.attest.as_slice().split_first_chunk::<2>()?;
        let (extra, rest) = rest.split_at_checked(usize::from(head[1]))?;
        let (ak, rest) = rest.split_at_checked(34)?;
        let (mask, rest) = rest.split_first_chunk()?;
        let (pcrs, rest) = rest.split_at_checked(32)?;
        let (clock, rest) = rest.split_first_chunk()?;
        let (resets, restarts) = rest.split_first_chunk()?;
        let attest = Self {
            kind: head[0],
            extra: extra.to_vec(),
            ak: AkName::try_from(ak).ok()?,
            mask: PcrMask::try_from(u32::from_be_bytes(*mask)).ok()?,
            pcrs: Digest::try_from(pcrs).ok()?,
            clock: u64::from_be_bytes(*clock),
            resets: u64::from_be_bytes(*resets),
            restarts: u32::from_be_bytes(restarts.try_into().ok()?),
        };
        (attest.signed() == *signed).then_some(attest)
    }
}

/// What the bridge's shell makes of evidence. Where the lines begin is never guessed: a quote that nothing has judged, taken
/// for the start, would lead to itself without any lines.
pub(crate) fn restored(restore: &Restore, references: &[Reference]) -> Restoring {
    let text = match restore.ima.as_ref().map(|parts| parts.text(references)).transpose() {
        Ok(text) => text,
        Err(why) => return Restoring::Unreadable(why),
    };
    let led_to = text.as_ref().and_then(led_to);
    let (quote, pcrs) = match &restore.quote {
        Quote::Full(signed) => (signed.clone(), restore.pcrs.clone()),
        Quote::Brief(brief) => match completed(restore, brief, led_to) {
            Some(completed) => completed,
            None => return Restoring::Refuted,
        },
    };
    if !binds(restore, &quote, &pcrs) {
        return match restore.quote {
            Quote::Full(_) => Restoring::Unbound("the signature does not bind it"),
            Quote::Brief(_) => Restoring::Refuted,
        };
    }
    let restored = Arc::new(Restored {
        quote,
        pcr_blob: encode(&pcrs).unwrap(),
        ima: text.as_ref().map(|text| Arc::new(text.lines.clone())),
        uefi: restore.uefi,
    });
    let resets = |signed| Attest::read(signed).map(|attest| attest.resets);
    if resets(&restored.quote) != resets(&restore.boot_statement) {
        return Restoring::OtherBoot;
    }
    let firmware = pcrs.value(FIRMWARE_PCR);
    if restore.uefi.is_some_and(|uefi| firmware != Some(uefi.as_bytes())) {
        return Restoring::Unexplained { restored, pcrs, what: "the UEFI log" };
    }
    let Some(text) = &text else { return Restoring::Explained { restored, pcrs, ima: None } };
    match led_to {
        Some(pcr10) if pcrs.value(IMA_PCR) == Some(pcr10.as_bytes()) => {
            let entries = text.offset + count(&text.lines);
            Restoring::Explained { restored, pcrs, ima: Some(ImaState { entries, pcr10 }) }
        }
        _ => Restoring::Unexplained { restored, pcrs, what: "the IMA log" },
    }
}

/// The quote of which the device sent what only its TPM knew, if the rest is known.
fn completed(restore: &Restore, brief: &Brief, led_to: Option<Digest>) -> Option<(Signed, PcrValues)> {
    let stated = Attest::read(&restore.boot_statement)?;
    let mut pcrs = restore.pcrs.clone();
    if restore.offer.pcrs.contains(IMA_PCR) && pcrs.value(IMA_PCR).is_none() {
        let pcr10 = led_to?;
        let mask = PcrMask::try_from(1 << IMA_PCR).ok()?;
        pcrs = pcrs.overlaid(&PcrValues::new(mask, vec![*pcr10.as_bytes()]).ok()?);
    }
    let attest = Attest {
        kind: QUOTE,
        extra: restore.offer.nonce.as_bytes().to_vec(),
        mask: restore.offer.pcrs,
        pcrs: pcrs.digest(),
        clock: brief.clock,
        restarts: brief.restart_count.unwrap_or(stated.restarts),
        ..stated
    };
    let signature = [&TPMT_SIGNATURE[..], brief.signature.as_slice()].concat().try_into().ok()?;
    Some((Signed { attest: attest.encoded().try_into().ok()?, signature }, pcrs))
}

/// The quote is of this key, over this nonce and these values.
fn binds(restore: &Restore, quote: &Signed, pcrs: &PcrValues) -> bool {
    Attest::read(quote).is_some_and(|attest| {
        attest.kind == QUOTE
            && attest.extra == restore.offer.nonce.as_bytes()
            && Some(attest.ak) == AkName::of_public(restore.ak_public.as_slice())
            && attest.mask == restore.offer.pcrs
            && pcrs.mask() == attest.mask
            && pcrs.digest() == attest.pcrs
    })
}

/// PCR 10 where the lines end, when it is known where they begin.
fn led_to(text: &ImaText) -> Option<Digest> {
    let from = match text.state {
        Some(state) => state.pcr10,
        None if text.offset == 0 => Digest::from(BOOT),
        None => return None,
    };
    Some(chained(from, &text.lines))
}
