//! Hostile devices: thousands of messages a second, rubbish, messages that never end, enrolment in a loop, a log without an
//! end. What they cost the others is the time from a challenge to its verdict, in one run: first without them, then with
//! them. What they cost the bridge is memory.

mod hostile;

use anyhow::{Context, Result, anyhow, ensure};
use hostile::{Hostile, Sent};
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::messages::{Down, Question, Verdict};
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::held::Held;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::observe::Seen;
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
/// A token's time, in seconds: the device that was attested needs no new one.
const SESSION: u32 = 3600;
/// What the bridge may hold for the endless log (`MAX_HELD_IMA`) and for a message in parts, beside what allocators keep.
const HELD_KIB: u64 = 33 * 1024;

/// Measures, prints and claims.
pub(crate) fn hostile_devices() -> Result<()> {
    println!("\n==> hostile devices beside {DEVICES} honest ones");
    let keylime = KeylimeSettings {
        quote_interval: 2,
        sessions_per_ip: 60_000,
        sessions_per_agent: 60_000,
        session_lifetime: SESSION,
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
    let hostile = Hostile::prepare(&world)?;
    // what the flood says does not pass the stopwatch
    world.observe(&["keylime/v1/+/challenge", "keylime/v1/+/result"])?;
    let quiet = timed(&world)?;
    let held_before = Held::by(world.bridge.process()?)?;
    let (flooded, sent) = flooded(&world, &hostile)?;
    let held_with = Held::by(world.bridge.process()?)?;
    let (before, with) = (p99(&quiet)?, p99(&flooded)?);
    let ratio = with.as_secs_f64() / before.as_secs_f64();
    println!(
        "challenge to verdict, p99 of {SAMPLES}: quiet {before:.0?}, with the flood {with:.0?}: {ratio:.2} times\n\
         the bridge: {held_before} -> {held_with}"
    );
    let (succeeded, said) = world.bridge.ask(&["waiting", "--json"])?;
    ensure!(succeeded, "{said}");
    let status: serde_json::Value = serde_json::from_str(&said)?;
    println!("refused by the bridge: {}", status.get("refused").unwrap_or_default());
    for device in &devices {
        world.never_failed(device)?;
    }
    for (what, count) in
        [("registered the genuine TPM again", &sent.credentials), ("asked for the endless log", &sent.parts)]
    {
        ensure!(count.load(Ordering::Relaxed) > 1, "the bridge never {what}: the flood missed its aim");
    }
    ensure!(held_with.stays(&held_before, HELD_KIB), "the bridge grew by more than {HELD_KIB} KiB and slack");
    ensure!(ratio <= MOST, "the flood costs the others more than {MOST} times their quiet p99");
    Ok(())
}

/// Times while all hostile devices send, and what they sent.
fn flooded(world: &World, hostile: &Hostile) -> Result<(Vec<Duration>, Sent)> {
    let (flooding, sent) = (AtomicBool::new(true), Sent::default());
    let began = Instant::now();
    let times = std::thread::scope(|scope| {
        let floods = [
            scope.spawn(|| hostile.rubbish(world, &flooding, &sent)),
            scope.spawn(|| hostile.enrols(world, &flooding, &sent)),
            scope.spawn(|| hostile.endless_log(world, &flooding, &sent)),
        ];
        let times = timed(world);
        flooding.store(false, Ordering::Relaxed);
        for flood in floods {
            flood.join().map_err(|_| anyhow!("a flood panicked"))??;
        }
        times
    })?;
    let seconds = began.elapsed().as_secs();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "in {seconds} s: {} messages of rubbish; {} Enrols of a genuine TPM, {} credentials; {} parts of the endless log that \
         were asked for and {} that were not",
        count(&sent.rubbish),
        count(&sent.enrols),
        count(&sent.credentials),
        count(&sent.parts),
        count(&sent.unasked)
    );
    Ok((times, sent))
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
