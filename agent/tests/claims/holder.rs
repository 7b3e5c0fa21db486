//! What a bridge holds and does with evidence, made anew from the messages' grammar: puts together what the device left
//! out and believes it only if the AK signed it.

use keylime_mqtt_schemas::codec;
use keylime_mqtt_schemas::compact::{Reference, unpack_ima};
use keylime_mqtt_schemas::ima::{ImaState, extend_by};
use keylime_mqtt_schemas::messages::{
    Brief, Challenge, Evidence, IMA_PCR, Nonce, PcrMask, PcrValues, Quote, Ready, Up,
};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};

const LIMIT: usize = 1024 * 1024;

pub(crate) struct Holder {
    ready: Ready,
    pub(crate) held: Option<PcrValues>,
    pub(crate) ima: Option<ImaState>,
    pub(crate) reference: Option<Reference>,
    nonce: u8,
}

/// Evidence after it was believed.
pub(crate) struct Believed {
    pub(crate) values: PcrValues,
    /// Lines of the IMA log that came with it.
    pub(crate) lines: Vec<u8>,
    /// As it travels.
    pub(crate) bytes: usize,
}

impl Holder {
    /// Knows what `Ready` said. `ima`: wants the IMA log.
    pub(crate) fn of(ready: Ready, ima: bool) -> Self {
        Self { ready, held: None, ima: ima.then_some(ImaState::BOOT), reference: None, nonce: 0 }
    }

    pub(crate) fn challenge(&mut self, pcrs: u32) -> Challenge {
        self.nonce += 1;
        let pcrs = PcrMask::try_from(pcrs).unwrap();
        Challenge {
            nonce: Nonce::from([self.nonce; 16]),
            boot: self.ready.boot.tag(),
            pcrs,
            good_for: 60,
            silence: 60,
            ima_offset: self.ima.map(|ima| ima.entries),
            held: self.held_of(pcrs).map(|held| held.tag()),
            ticket: None,
            full: false,
            reference: self.reference.is_some(),
        }
    }

    /// The values held, of the PCRs that do not follow from lines.
    fn held_of(&self, pcrs: PcrMask) -> Option<PcrValues> {
        let wanted = if self.ima.is_some() { pcrs.without(IMA_PCR) } else { pcrs };
        self.held.as_ref().map(|held| held.only(wanted)).filter(|held| held.mask() == wanted)
    }

    /// What was left out put in its place; `None` when the AK did not sign that.
    pub(crate) fn believe(&mut self, challenge: &Challenge, evidence: &Evidence) -> Option<Believed> {
        assert_eq!(evidence.tag, challenge.nonce.tag());
        let bytes = codec::encode(&Up::Evidence(evidence.clone())).unwrap().len();
        let lines = evidence.ima.as_ref().map_or_else(Vec::new, |segment| {
            assert_eq!(Some(segment.offset), challenge.ima_offset);
            let reference = self.reference.as_ref().filter(|_| challenge.reference);
            unpack_ima(segment.packed.as_slice(), LIMIT, reference).unwrap()
        });
        let sent = evidence.pcrs.clone().unwrap_or_default();
        let mut ima = self.ima;
        if let Some(ima) = &mut ima {
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                if extend_by(ima, line).is_err() {
                    ima.entries += 1;
                }
            }
            if let Some(value) = sent.value(IMA_PCR) {
                ima.pcr10 = *value;
            }
        }
        let (attest, signature, values) = match &evidence.quote {
            Quote::Full(signed) => {
                assert_eq!(sent.mask(), challenge.pcrs, "the full form has all values");
                let signature = signed.signature.as_slice();
                assert_eq!(signature[..6], [0x00, 0x14, 0x00, 0x0B, 0x01, 0x00]);
                assert!(signed.attest.as_slice().ends_with(sent.digest().as_bytes()));
                (signed.attest.as_slice().to_vec(), signature[6..].to_vec(), sent)
            }
            Quote::Brief(brief) => {
                assert!(!challenge.full);
                let mut values = self.held_of(challenge.pcrs).unwrap_or_default().overlaid(&sent);
                if let Some(ima) = ima.filter(|_| challenge.pcrs.contains(IMA_PCR)) {
                    let mask = PcrMask::try_from(1 << IMA_PCR).unwrap();
                    values = values.overlaid(&PcrValues::new(mask, vec![ima.pcr10]).unwrap());
                }
                assert_eq!(values.mask(), challenge.pcrs, "a value neither held nor sent");
                let attest = self.attest(challenge, brief, &values);
                (attest, brief.signature.as_slice().to_vec(), values)
            }
        };
        let modulus = &self.ready.ak_public.as_slice()[self.ready.ak_public.as_slice().len() - 256..];
        let ak = RsaPublicKeyComponents { n: modulus, e: &[1, 0, 1] };
        ak.verify(&RSA_PKCS1_2048_8192_SHA256, &attest, &signature).ok()?;
        self.held = Some(self.held.take().unwrap_or_default().overlaid(&values));
        self.ima = ima;
        Some(Believed { values, lines, bytes })
    }

    /// TPMS_ATTEST of a quote, from the one in the boot's statement. TPM 2.0 Part 2, 10.12.12.
    fn attest(&self, challenge: &Challenge, brief: &Brief, values: &PcrValues) -> Vec<u8> {
        let statement = self.ready.statement.attest.as_slice();
        let sized = |at: usize| at + 2 + usize::from(u16::from_be_bytes([statement[at], statement[at + 1]]));
        let after_signer = sized(6);
        // clock (8 bytes), resetCount, restartCount, safe, firmwareVersion
        let clock = sized(after_signer);
        let restarts = brief
            .restart_count
            .map_or_else(|| statement[clock + 12..clock + 16].to_vec(), |count| count.to_be_bytes().to_vec());
        let mask = u32::from(challenge.pcrs).to_le_bytes();
        [
            &statement[..after_signer],
            &[0, 16],
            challenge.nonce.as_bytes(),
            &brief.clock.to_be_bytes(),
            &statement[clock + 8..clock + 12],
            &restarts,
            &[1],
            &statement[clock + 17..clock + 25],
            &[0, 0, 0, 1, 0x00, 0x0B, 3, mask[0], mask[1], mask[2], 0, 32],
            values.digest().as_bytes(),
        ]
        .concat()
    }
}
