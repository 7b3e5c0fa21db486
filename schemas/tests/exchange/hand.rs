//! A relay driven by hand, for what the modelled Keylime does not do.

use std::sync::Arc;
use std::time::Duration;

use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::attester::{Done as Worked, Work};
use keylime_mqtt_schemas::exchange::relay::{
    Command, Done, Input, Offer, Offered, Output, Proven, Relay, Requested, Restored, Restoring, Session,
    Settings, Standing, StatedAt, Status, Submitted, Token,
};
use keylime_mqtt_schemas::messages::{
    BootTag, Challenge, Evidence, Nonce, PcrMask, Prove, Quote, Ready, Up, Verdict,
};

use super::device::Device;
use super::keylime::INTERVAL;

/// When the statements were made that these tests let pass.
pub(crate) const STATED_AT: StatedAt = StatedAt { resets: 1, restarts: 0, clock: 1000 };

pub(crate) const AT: fn(u64) -> Time = Duration::from_secs;

/// Asks for a quote and nothing else.
pub(crate) fn plain_challenge(nonce: Nonce, boot: BootTag, pcrs: PcrMask) -> Challenge {
    Challenge {
        nonce,
        boot,
        pcrs,
        good_for: 100,
        silence: 100,
        ima_offset: None,
        held: None,
        ticket: None,
        full: false,
        reference: false,
    }
}

pub(crate) struct Hand {
    pub(crate) relay: Relay,
    pub(crate) device: Device,
    nonce: u8,
    /// Logs that were unpacked for the relay.
    pub(crate) unpacked: usize,
}

impl Hand {
    pub(crate) fn new() -> Self {
        let device = Device::new("device-1", 1);
        Self { relay: Relay::new(device.id.clone(), Settings::default()), device, nonce: 0, unpacked: 0 }
    }

    pub(crate) fn described(&mut self) -> Ready {
        let Worked::Described(ready) = self.device.work(Work::Describe) else { unreachable!() };
        ready
    }

    pub(crate) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.relay.poll_output()).collect()
    }

    /// What a shell does at once for a relay: it unpacks.
    fn unpack(&mut self, outputs: Vec<Output>, now: Time) -> Vec<Output> {
        let mut rest = Vec::new();
        for output in outputs {
            match output {
                Output::Command(Command::Unpack(unpack)) => {
                    self.unpacked += 1;
                    rest.extend(self.done(Done::Unpacked(unpack.carry_out(&[])), now));
                }
                other => rest.push(other),
            }
        }
        rest
    }

    pub(crate) fn told(&mut self, input: Input, now: Time) -> Vec<Output> {
        self.relay.handle(input, now);
        let outputs = self.outputs();
        self.unpack(outputs, now)
    }

    pub(crate) fn says(&mut self, up: Up, now: Time) -> Vec<Output> {
        self.told(Input::Received(up, None), now)
    }

    pub(crate) fn speaks_up(&mut self, now: Time) -> Vec<Output> {
        let ready = self.described();
        self.says(Up::Ready(ready), now)
    }

    pub(crate) fn done(&mut self, done: Done, now: Time) -> Vec<Output> {
        self.told(Input::Done(done), now)
    }

    pub(crate) fn offer(&mut self, now: Time) -> Offer {
        self.nonce = self.nonce.wrapping_add(1);
        Offer {
            index: u64::from(self.nonce),
            nonce: Nonce::from([self.nonce; 16]),
            pcrs: PcrMask::try_from(7).unwrap(),
            requested: vec![Requested::Quote],
            expires_at: now + AT(1770),
        }
    }

    /// The verifier's status is read.
    pub(crate) fn read(&mut self, verdict: Verdict, count: u64, now: Time) -> Vec<Output> {
        self.outputs();
        self.done(Done::Status(Status::Standing(standing(verdict, count))), now)
    }

    /// From nothing to an open challenge.
    pub(crate) fn challenged(&mut self, now: Time) -> Offer {
        self.offering(now);
        let offer = self.offer(now);
        self.done(Done::Offered(Offered::Opened(offer.clone())), now);
        offer
    }

    /// From nothing to the moment when the verifier is asked for a challenge.
    pub(crate) fn offering(&mut self, now: Time) {
        self.speaks_up(now);
        let (session, nonce) = ("s".to_owned(), Nonce::from([200; 16]));
        self.done(Done::Session(Session::Opened { session, nonce, good_for: AT(50) }), now);
        let Worked::Proved(proof) = self.device.work(Work::Prove(Prove { nonce })) else { unreachable!() };
        self.says(Up::Proof(proof), now);
        let token = Token::new("token".to_owned());
        self.done(Done::Proven(Proven::Token { token, certified: self.device.ak(), ticket: None }), now);
        self.done(Done::StatementChecked(Some(STATED_AT)), now);
        self.done(Done::Status(Status::Standing(standing(Verdict::Pending, 0))), now);
    }

    /// The device's evidence over this nonce, in full.
    pub(crate) fn evidence(&mut self, nonce: Nonce, pcrs: PcrMask) -> Evidence {
        let challenge = plain_challenge(nonce, self.device.marker().tag(), pcrs);
        let Worked::Collected { evidence, .. } = self.device.work(Work::Collect(challenge)) else {
            unreachable!()
        };
        evidence
    }

    /// The device's evidence, bound and on its way to the verifier, with these IMA lines.
    pub(crate) fn bound(&mut self, offer: &Offer, ima: Option<Vec<u8>>, now: Time) {
        let evidence = self.evidence(offer.nonce, offer.pcrs);
        let (Quote::Full(quote), Some(pcrs)) = (evidence.quote.clone(), evidence.pcrs.clone()) else {
            unreachable!()
        };
        let restored = Arc::new(Restored { quote, pcr_blob: Vec::new(), ima: ima.map(Arc::new), uefi: None });
        self.says(Up::Evidence(evidence), now);
        self.done(Done::Restored(Restoring::Explained { restored, pcrs, ima: None }), now);
    }

    /// The device's evidence, bound, submitted and taken.
    pub(crate) fn submitted(&mut self, offer: &Offer, now: Time) {
        self.bound(offer, None, now);
        self.done(Done::Submitted(Submitted::Accepted(INTERVAL)), now);
    }
}

pub(crate) fn standing(verdict: Verdict, attestation_count: u64) -> Standing {
    Standing { verdict, attestation_count, last_success: attestation_count * 10, interval: None }
}
