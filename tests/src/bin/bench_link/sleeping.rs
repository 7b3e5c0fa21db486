//! The workloads in which a device mostly does nothing: waking to attest, and keeping a connection open.

use crate::phases::whole;
use crate::rig::{CALM, Plan, Rig, Trace};
use crate::statistics::Statistics;
use crate::workloads::{Figure, Outcome, Spent, WAKES};
use anyhow::{Result, ensure};
use std::time::Duration;

/// Longest time awake.
const AWAKE: Duration = Duration::from_secs(60);
/// `run --every`: seconds between wakes, above the interval and below Keylime's TIMEOUT of five intervals.
const EVERY: &str = "3";
/// The same without `--every`. Above the interval, so that each wake attests anew.
const SLEEP: Duration = Duration::from_millis(2_500);
/// Wakes to look at; each takes seconds, and they differ by a few bytes.
const WAKES_MOST: usize = 100;

/// Pings in an hour at the default keep-alive of 300 s.
const PINGS: u16 = 12;
/// The shortest keep-alive: about the same number of pings in a minute.
const KEEP_ALIVE: u16 = 5;
/// No attestation falls into the idle time.
const RARELY: u32 = 600;
/// After the first PASS: what it still has to say.
const SETTLED: Duration = Duration::from_secs(3);

/// Connects, attests, disconnects, and so on.
pub(crate) fn wake(cycles: usize) -> Result<Outcome> {
    let mut rig = Rig::build(Plan::quote_only("wake"))?;
    rig.device.start_agent()?;
    rig.world.enrol(&rig.device, &rig.plan.policies)?;
    rig.passes_after(Duration::ZERO)?;
    rig.device.stop_agent()?;
    let from = rig.now();
    // One more: the first cannot resume what never was.
    let count = cycles.min(WAKES_MOST) + 1;
    if rig.device.ask_agent(&["run", "--help"])?.1.contains("--every") {
        rig.device.start_agent_with(&["--every", EVERY])?;
        let mut passed = from;
        for _ in 0..count {
            passed = rig.passes_after(passed)?;
        }
        std::thread::sleep(SETTLED);
    } else {
        for _ in 0..count {
            std::thread::sleep(SLEEP);
            let status = rig.device.run_once(AWAKE)?;
            ensure!(status.success(), "run --once ended with {status}:\n{}", rig.world.tails());
        }
    }
    let trace = rig.finish()?;
    let wakes: Vec<Wake> = wakes(&trace, from)?.into_iter().filter(|wake| wake.attested.is_some()).collect();
    let sizes = |resumed: bool| {
        let sizes = wakes.iter().filter(|wake| wake.resumed == resumed).map(|wake| whole(wake.bytes));
        Statistics::of(&sizes.collect::<Vec<_>>())
    };
    let (resumed, full) = (sizes(true), sizes(false));
    let mut figures = Vec::new();
    if resumed.count > 0 {
        let note = format!("{} of {} wakes resumed TLS", resumed.count, wakes.len());
        figures.push(Figure::new("wake", resumed, note));
    } else {
        figures.push(Figure::new("wake", full, "TLS was never resumed"));
    }
    if full.count > 0 {
        figures.push(Figure::new("wake-full", full, ""));
    }
    let resumed = resumed.count > 0;
    let spans = wakes.iter().filter(|wake| wake.resumed == resumed).filter_map(|wake| wake.attested);
    let mean = trace.breakdown(&spans.collect::<Vec<_>>())?;
    Ok(Outcome::Measured(figures, vec![Spent { table: WAKES, column: "wake", mean }]))
}

/// One connection from SYN to its end.
struct Wake {
    bytes: usize,
    resumed: bool,
    /// From its first message to the end, where there was evidence
    attested: Option<(Duration, Duration)>,
}

fn wakes(trace: &Trace, from: Duration) -> Result<Vec<Wake>> {
    let packets = &trace.capture.packets;
    let opened = packets.iter().filter(|packet| packet.syn && packet.up && packet.at > from);
    let mut wakes = Vec::new();
    for opening in opened {
        let ours = || packets.iter().filter(|packet| packet.port == opening.port && packet.at >= opening.at);
        // Ports come again.
        let reopened = ours().find(|packet| packet.syn && packet.up && packet.at > opening.at);
        let reopened = reopened.map_or(Duration::MAX, |packet| packet.at);
        let ours = || ours().filter(|packet| packet.at < reopened);
        let closed = ours().map(|packet| packet.at).max().unwrap_or(opening.at) + CALM;
        let mut said = trace.messages.iter().filter(|message| (opening.at..closed).contains(&message.at));
        let evidence = said.clone().any(|message| message.kind == "Evidence");
        let first = said.find(|message| message.up && message.kind != "Presence").filter(|_| evidence);
        let attested = match first {
            Some(first) => Some((trace.begins(&first.kind, opening.at)?, closed)),
            None => None,
        };
        wakes.push(Wake {
            bytes: ours().map(|packet| packet.bytes).sum(),
            resumed: trace.capture.resumed.contains(&opening.port),
            attested,
        });
    }
    Ok(wakes)
}

/// A connection that only keeps itself alive: a minute at the shortest keep-alive, all bytes shared among its pings,
/// of which an hour at the default keep-alive has twelve.
pub(crate) fn idle() -> Result<Outcome> {
    let plan = Plan { quote_interval: RARELY, keep_alive: KEEP_ALIVE, ..Plan::quote_only("idle") };
    let mut rig = Rig::build(plan)?;
    rig.device.start_agent()?;
    rig.world.enrol(&rig.device, &rig.plan.policies)?;
    rig.passes_after(Duration::ZERO)?;
    std::thread::sleep(SETTLED);
    let from = rig.now();
    std::thread::sleep(Duration::from_secs(u64::from(KEEP_ALIVE) * u64::from(PINGS)));
    let to = rig.now();
    rig.device.stop_agent()?;
    std::thread::sleep(SETTLED);
    let trace = rig.finish()?;
    let spoken = trace.messages.iter().filter(|message| (from..to).contains(&message.at)).count();
    ensure!(spoken == 0, "{spoken} messages in a time that should be idle");
    let spent = whole(trace.bytes(from, to));
    let pings = trace.pings(from, to);
    ensure!(pings > 0, "no ping in {PINGS} intervals");
    let ping = Statistics::shared(spent, pings);
    Ok(Outcome::Measured(
        vec![
            Figure::new(
                "idle-hour",
                Statistics::of(&[ping.mean * f64::from(PINGS)]),
                format!("{PINGS} pings, from {pings} at a keep-alive of {KEEP_ALIVE} s"),
            ),
            Figure::new("ping", ping, ""),
            Figure::bytes("disconnect", trace.bytes(to, Duration::MAX)),
        ],
        Vec::new(),
    ))
}
