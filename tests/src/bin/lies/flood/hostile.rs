//! What hostile devices send, each by a certificate of its own: rubbish by the thousand, registrations of a genuine TPM in a
//! loop, a log without an end from a device that was truly attested.

use anyhow::{Context, Result};
use keylime_mqtt_liar::Forger;
use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::compact::pack_ima;
use keylime_mqtt_schemas::messages::{
    Blob, Bounded, Down, Enrol, LogKind, Need, Question, Ready, Unchanged, Up,
};
use keylime_mqtt_tests::device::{Device, DeviceSettings};
use keylime_mqtt_tests::ima;
use keylime_mqtt_tests::observe::{Observer, Seen};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::pki::Certificate;
use keylime_mqtt_tests::stranger::Stranger;
use keylime_mqtt_tests::world::World;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Below what the bridge hears of one device, so that none of it is lost on the way to what it is aimed at.
const PACE: Duration = Duration::from_millis(50);
/// A device that says again how long its log is has the bridge ask for it, where it does not already.
const SPEAK_UP_EVERY: Duration = Duration::from_secs(1);
/// Lines that the endless log is said to have.
const ENDLESS: u64 = 100_000_000;
/// Of a part: two of them are a batch that the bridge asks for.
const LINES: usize = 512;
/// Bytes of a name in them.
const NAME: usize = 200;
/// Where in an AK's public area its modulus may be changed: far from both ends.
const IN_MODULUS: std::ops::Range<usize> = 100..104;

/// What was sent and what came of it.
#[derive(Default)]
pub(super) struct Sent {
    /// Rubbish and fragments
    pub(super) rubbish: AtomicU64,
    /// `Enrol`s of the genuine TPM, and credentials that the registrar made for it
    pub(super) enrols: AtomicU64,
    pub(super) credentials: AtomicU64,
    /// Parts of the endless log that the bridge had asked for, and others
    pub(super) parts: AtomicU64,
    pub(super) unasked: AtomicU64,
}

/// Three hostile devices.
pub(super) struct Hostile {
    genuine: Device,
    keys: Enrol,
    turned: Device,
    ready: Ready,
    stranger: Stranger,
}

impl Hostile {
    /// A TPM of the trusted maker under an id that nobody has registered, and a device that has passed; the agents of both
    /// are gone, and what they said is known.
    pub(super) fn prepare(world: &World) -> Result<Self> {
        let settings = DeviceSettings { id: Some("genuine".to_owned()), ..DeviceSettings::default() };
        let mut genuine = world.device("genuine", settings)?;
        genuine.start_agent()?;
        // Not admitted yet, so that the registrar hears of no AK of it.
        let keys = world.observer()?.wait_from(0, "its Enrol", |seen| match said(seen, genuine.id())? {
            Up::Enrol(enrol) => Some(enrol),
            _ => None,
        })?;
        genuine.kill_agent();
        world.admit(genuine.id(), genuine.ek_hash())?;
        let mut turned = world.passing_device("turned", DeviceSettings::with_ima(), &Policies::ima())?;
        turned.kill_agent();
        let readies = world.observer()?.collect_from(0, |seen| match said(seen, turned.id())? {
            Up::Ready(ready) => Some(ready),
            _ => None,
        });
        let ready = readies.into_iter().next_back().context("it passed without a Ready")?;
        Ok(Self { genuine, keys, turned, ready, stranger: Stranger::with_a_new_key(&world.scratch)? })
    }

    /// Rubbish, unfinished fragments, and `Enrol`s of which no two are alike, as fast as the broker takes them.
    pub(super) fn rubbish(&self, world: &World, flooding: &AtomicBool, sent: &Sent) -> Result<()> {
        let client = client(world, "hostile", &world.pki.issue("hostile", &[])?)?;
        let rubbish = vec![0xff; 64];
        for round in 0_u32.. {
            if !flooding.load(Ordering::Relaxed) {
                break;
            }
            let certificate = [&[0x30; 4000][..], &round.to_be_bytes()].concat();
            let enrol = encode(&Up::Enrol(Enrol {
                ek_certificate: Some(certificate.try_into()?),
                ..self.keys_with_ak(round)?
            }))?;
            // The first part of a message in 2000 parts, of which no other comes.
            let part: Bounded<1024> = vec![1; 400].try_into()?;
            let endless = encode(&(round, 0_u16, 2000_u16, part))?;
            for payload in [&enrol, &rubbish, &endless, &rubbish] {
                client.publish(&evidence("hostile"), false, payload)?;
                sent.rubbish.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The genuine EK and its certificate with another AK each time: admitted, and registered anew.
    pub(super) fn enrols(&self, world: &World, flooding: &AtomicBool, sent: &Sent) -> Result<()> {
        let id = self.genuine.id();
        let client = client(world, id, &self.genuine.access().certificate)?;
        for round in 0_u32.. {
            if !flooding.load(Ordering::Relaxed) {
                break;
            }
            let enrol = encode(&Up::Enrol(self.keys_with_ak(round)?))?;
            client.publish(&evidence(id), false, &enrol)?;
            sent.enrols.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PACE);
        }
        let credentials = client.collect_from(0, |seen| match asked(seen)? {
            Question::Credential(_) => Some(()),
            _ => None,
        });
        sent.credentials.store(credentials.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// A log of the right boot in the parts that the bridge asks for, and it never ends.
    pub(super) fn endless_log(&self, world: &World, flooding: &AtomicBool, sent: &Sent) -> Result<()> {
        let id = self.turned.id();
        let client = client(world, id, &self.turned.access().certificate)?;
        let programs: Vec<String> = (0..LINES).map(|number| format!("/{number:0>NAME$}")).collect();
        let part = pack_ima(ima::list(&programs).as_bytes(), None);
        let speak_up =
            encode(&Up::Unchanged(Unchanged { ready: self.ready.tag(), ima_entries: Some(ENDLESS) }))?;
        let (mut heard, mut spoke) = (0, None::<Instant>);
        while flooding.load(Ordering::Relaxed) {
            if spoke.is_none_or(|at| at.elapsed() > SPEAK_UP_EVERY) {
                client.publish(&evidence(id), false, &speak_up)?;
                spoke = Some(Instant::now());
            }
            let news = client.seen_from(heard);
            heard += news.len();
            let asked_for = news.iter().rev().find_map(|seen| match asked(seen)? {
                Question::Need(need) => Some(need),
                _ => None,
            });
            let (counter, need) = match asked_for {
                Some(need) => (&sent.parts, need),
                None => (&sent.unasked, self.unasked()),
            };
            for offset in (need.offset..need.upto).step_by(LINES) {
                let part = part.clone().try_into()?;
                let blob = Blob { log: need.log, boot: need.boot, offset, part, total: None };
                client.publish(&evidence(id), false, &encode(&Up::Blob(blob))?)?;
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PACE);
            }
        }
        Ok(())
    }

    fn unasked(&self) -> Need {
        Need { log: LogKind::Ima, boot: self.ready.boot.tag(), offset: 0, upto: 1, reference: false }
    }

    fn keys_with_ak(&self, number: u32) -> Result<Enrol> {
        let mut ak_public = self.stranger.public();
        let place = ak_public.get_mut(IN_MODULUS).context("a short public area")?;
        place.copy_from_slice(&number.to_be_bytes());
        Ok(Enrol { ak_public: ak_public.try_into()?, ..self.keys.clone() })
    }
}

fn client(world: &World, id: &str, certificate: &Certificate) -> Result<Observer> {
    let filter = format!("keylime/v1/{id}/challenge");
    Observer::connect(world.broker.port(), &world.pki.ca(), certificate, &[&filter], &world.scratch.logs())
}

fn evidence(id: &str) -> String {
    format!("keylime/v1/{id}/evidence")
}

fn said(seen: &Seen, id: &str) -> Option<Up> {
    (seen.topic == evidence(id)).then(|| decode(&seen.payload).ok()).flatten()
}

fn asked(seen: &Seen) -> Option<Question> {
    decode::<Down>(&seen.payload).ok().map(|down| down.question)
}
