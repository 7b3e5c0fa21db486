//! A hostile device: thousands of messages a second, rubbish, messages that never end, and enrolment in a loop. What it
//! costs the others is the time from a challenge to its verdict, in one run: first without it, then with it.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_schemas::codec::{decode, encode};
use keylime_mqtt_schemas::messages::{Down, Enrol, Question, Up, Verdict};
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::observe::{Observer, Seen};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::world::{World, WorldSettings};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Devices whose attestations are timed.
const DEVICES: usize = 6;
/// Attestations of each phase.
const SAMPLES: usize = 240;
/// The others' p99 may grow by this factor.
const MOST: f64 = 2.0;
/// A phase that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(300);
/// Where the hostile device may speak.
const TOPIC: &str = "keylime/v1/hostile/evidence";

/// Measures, prints and claims.
pub(crate) fn hostile_device() -> Result<()> {
    println!("\n==> a hostile device beside {DEVICES} honest ones");
    let keylime = KeylimeSettings {
        quote_interval: 2,
        sessions_per_ip: 60_000,
        sessions_per_agent: 60_000,
        ..KeylimeSettings::default()
    };
    let mut world = World::start(&WorldSettings { keylime, ..WorldSettings::default() })?;
    let devices = (0..DEVICES)
        .map(|number| {
            world.passing_device(
                &format!("honest-{number}"),
                DeviceSettings::default(),
                &Policies::quote_only(),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    // what the flood says does not pass the stopwatch
    world.observe(&["keylime/v1/+/challenge", "keylime/v1/+/result"])?;
    let quiet = timed(&world)?;
    let (flooding, sent) = (AtomicBool::new(true), AtomicU64::new(0));
    let flooded = std::thread::scope(|scope| {
        let hostile = scope.spawn(|| flood(&world, &flooding, &sent));
        let began = Instant::now();
        let flooded = timed(&world);
        flooding.store(false, Ordering::Relaxed);
        let told = hostile.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?;
        told?;
        #[allow(clippy::cast_precision_loss)]
        let rate = sent.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        println!("the hostile device sent {rate:.0} messages a second");
        flooded
    })?;
    let (before, with) = (p99(&quiet)?, p99(&flooded)?);
    let ratio = with.as_secs_f64() / before.as_secs_f64();
    println!(
        "challenge to verdict, p99 of {SAMPLES}: quiet {before:.0?}, with the flood {with:.0?}: {ratio:.2} times"
    );
    let (succeeded, said) = world.bridge.ask(&["waiting", "--json"])?;
    ensure!(succeeded, "{said}");
    let status: serde_json::Value = serde_json::from_str(&said)?;
    println!("refused by the bridge: {}", status.get("refused").unwrap_or_default());
    for device in &devices {
        world.never_failed(device)?;
    }
    ensure!(ratio <= MOST, "the flood costs the others more than {MOST} times their quiet p99");
    Ok(())
}

/// Times from a challenge to the PASS it led to.
fn timed(world: &World) -> Result<Vec<Duration>> {
    let observer = world.observer()?;
    let mark = observer.mark();
    let began = Instant::now();
    loop {
        let times = times(&observer.seen_from(mark));
        if times.len() >= SAMPLES {
            return Ok(times);
        }
        ensure!(began.elapsed() < PATIENCE, "only {} attestations\n{}", times.len(), world.tails());
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn times(seen: &[Seen]) -> Vec<Duration> {
    let mut asked: BTreeMap<&str, Instant> = BTreeMap::new();
    let mut times = Vec::new();
    for message in seen {
        let Some(device) = message.topic.split('/').nth(2) else { continue };
        if message.topic.ends_with("/challenge") {
            let challenge = decode::<Down>(&message.payload).ok();
            if challenge.is_some_and(|down| matches!(down.question, Question::Challenge(_))) {
                asked.entry(device).or_insert(message.at);
            }
        } else if message.result().is_some_and(|result| result.verdict == Verdict::Pass)
            && let Some(at) = asked.remove(device)
        {
            times.push(message.at.saturating_duration_since(at));
        }
    }
    times
}

fn p99(times: &[Duration]) -> Result<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() * 99 / 100).copied().context("nothing was timed")
}

fn flood(world: &World, flooding: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let certificate = world.pki.issue("hostile", &[])?;
    let logs = world.scratch.logs();
    let ca = world.pki.ca();
    let filter = "keylime/v1/hostile/challenge";
    let client = Observer::connect(world.broker.port(), &ca, &certificate, &[filter], &logs)?;
    let enrol = encode(&Up::Enrol(Enrol {
        ek_public: vec![7; 300].try_into()?,
        ak_public: vec![8; 300].try_into()?,
        ek_certificate: Some(vec![0x30; 4000].try_into()?),
    }))?;
    let rubbish = vec![0xff; 64];
    for round in 0_u32.. {
        if !flooding.load(Ordering::Relaxed) {
            break;
        }
        // The first part of a message in 2000 parts, of which no other comes.
        let endless = encode(&(round, 0_u16, 2000_u16, serde_bytes_of(400)))?;
        for payload in [&enrol, &rubbish, &endless, &rubbish] {
            client.publish(TOPIC, false, payload)?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A byte string as CBOR has it.
fn serde_bytes_of(length: usize) -> keylime_mqtt_schemas::messages::Bounded<1024> {
    vec![1; length].try_into().unwrap_or_default()
}
