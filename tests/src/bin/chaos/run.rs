//! The run: strikes in three acts, then the faults that kill nobody, then a fleet without tickets.

use crate::Arguments;
use crate::faults::{self, Fault};
use crate::holdings::{self, Files, Life, Lives};
use crate::plan::{self, Act, Kind, Moment, PARTS, Part, Strike};
use crate::recovery::{Back, Watchman, cadence};
use crate::report::{Entry, Report};
use crate::rig::Rig;
use crate::strike::{Struck, strike};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

/// Rounds of PASSes by which an interval is measured.
const ROUNDS: usize = 4;

/// A client comes again after a second; then come a handshake and its first words.
const RECONNECT: Duration = Duration::from_secs(3);

/// Two keep-alives: until then a client trusts a connection on which nothing comes.
const WATCHDOG: Duration = Duration::from_secs(10);

/// What the files of devices and bridge may differ by: counters have more digits, and a ticket is there or not yet.
const BYTES_SLACK: u64 = 16 * 1024;

/// Intervals for the sessions that a verifier's restart costs, of which the budget spares one in a while.
const PROVEN_WITHIN: u32 = 5;

/// With so many violations the run ends.
const VIOLATIONS: usize = 20;

/// Sessions a minute of the fleet without tickets: so few that the budget rules.
const FEW_SESSIONS: u32 = 10;

pub(crate) fn run(arguments: &Arguments, disks: bool) -> Result<Report> {
    let kinds: Vec<Kind> = [Kind::QuoteOnly, Kind::All, Kind::MeasuredBoot, Kind::Ima]
        .into_iter()
        .cycle()
        .take(arguments.devices.into())
        .collect();
    eprintln!("seed {}: starting Keylime, broker, bridge and {} devices", arguments.seed, kinds.len());
    let mut rig = Rig::start(&kinds, arguments.interval, disks)?;
    let interval = cadence(&rig, ROUNDS)?.max(Duration::from_secs(arguments.interval.into()));
    eprintln!("an interval is {:.2} s", interval.as_secs_f64());
    let mut report = Report {
        seed: arguments.seed,
        short: arguments.short,
        interval,
        entries: Vec::new(),
        notes: Vec::new(),
        violations: Vec::new(),
        claims: Vec::new(),
    };
    let mut watchman = Watchman::new(&rig);
    let files = holdings::files(&rig)?;

    strikes(&mut rig, &mut watchman, &mut report, &plan::strikes(arguments.seed, arguments.kills, &kinds))?;
    other_faults(&mut rig, &mut watchman, &mut report, arguments, disks)?;
    if !arguments.short {
        without_tickets(&mut rig, &mut watchman, &mut report)?;
    }
    files_stay(&mut report, &files, &holdings::files(&rig)?);
    claims(&mut report, arguments, watchman.timeouts());
    Ok(report)
}

fn strikes(rig: &mut Rig, watchman: &mut Watchman, report: &mut Report, plan: &[Strike]) -> Result<()> {
    for (number, act) in [Act::Devices, Act::Servers, Act::Everything].into_iter().enumerate() {
        let mut lives = Lives::begin(rig)?;
        for planned in plan.iter().filter(|planned| planned.act == act) {
            one_strike(rig, watchman, report, planned)?;
            lives.look(rig)?;
        }
        live_on(report, &format!("act {}", number + 1), &lives);
    }
    Ok(())
}

fn one_strike(rig: &mut Rig, watchman: &mut Watchman, report: &mut Report, planned: &Strike) -> Result<()> {
    watchman.look()?;
    watchman.sessions();
    let struck = strike(rig, planned)?;
    let backs = recovered(rig, watchman, planned, &struck, report.interval);
    let mut entry = Entry {
        parts: planned.parts.clone(),
        fault: None,
        moment: planned.moment,
        hit: struck.hit,
        sessions: watchman.sessions(),
        backs: Vec::new(),
        bound: report.interval * 2 + RECONNECT,
    };
    entry.backs = unviolated(rig, report, &entry.name(), backs)?;
    record(report, entry);
    Ok(())
}

fn recovered(
    rig: &mut Rig,
    watchman: &mut Watchman,
    planned: &Strike,
    struck: &Struck,
    interval: Duration,
) -> Result<Vec<Back>> {
    let proofs = watchman.sessions_so_far()? + rig.members.len();
    let rebooted = planned.parts.contains(&Part::Swtpm).then_some(planned.victim);
    let backs = watchman.everybody_back(rig, struck.mark, struck.returned, rebooted)?;
    if planned.parts.contains(&Part::Verifier) {
        watchman.everybody_proven(proofs, interval * PROVEN_WITHIN)?;
    }
    Ok(backs)
}

/// Looks for what was left behind, too. What is violated is told at the end, and the run goes on where it can.
fn unviolated(rig: &Rig, report: &mut Report, after: &str, backs: Result<Vec<Back>>) -> Result<Vec<Back>> {
    let left = backs.is_ok().then(|| holdings::nothing_left_in_tpms(rig));
    let backs = match backs {
        Ok(backs) => backs,
        Err(error) => {
            eprintln!("after {after}: {error:#}");
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            report.violations.push(format!("after {after}: {first}"));
            heal(rig)?;
            Vec::new()
        }
    };
    if let Some(Err(error)) = left {
        eprintln!("after {after}: {error:#}");
        report.violations.push(format!("after {after}: {error:#}"));
    }
    ensure!(report.violations.len() < VIOLATIONS, "too much is wrong: {:?}", report.violations);
    Ok(backs)
}

/// So that one defect does not hide the next: every device is added again.
fn heal(rig: &Rig) -> Result<()> {
    rig.members.iter().try_for_each(|member| rig.world.keylime.update(member.device.id(), &member.policies))
}

fn record(report: &mut Report, entry: Entry) {
    let times: Vec<_> = entry
        .backs
        .iter()
        .map(|back| format!("{:.1}{}", back.after.as_secs_f64(), if back.apart.is_some() { "*" } else { "" }))
        .collect();
    let hit = if entry.moment.is_named() && !entry.hit { " (missed)" } else { "" };
    let kills = report.kill_count();
    eprintln!(
        "[{kills}] {}{hit}: back after {} s; {} sessions",
        entry.name(),
        times.join(" "),
        entry.sessions
    );
    report.entries.push(entry);
}

fn other_faults(
    rig: &mut Rig,
    watchman: &mut Watchman,
    report: &mut Report,
    arguments: &Arguments,
    disks: bool,
) -> Result<()> {
    let clocks = faults::faketime().is_some();
    if !disks {
        report.notes.push("left out: full disks, for which root mounts small file systems".to_owned());
    }
    if !clocks {
        report.notes.push("left out: jumps of the wall clock, for which libfaketime is needed".to_owned());
    }
    let mut lives = Lives::begin(rig)?;
    for (number, fault) in faults::all(disks, clocks).into_iter().take(arguments.faults).enumerate() {
        let suitable: Vec<usize> = (0..rig.members.len())
            .filter(|place| rig.members.get(*place).is_some_and(|member| faults::suits(&fault, member.kind)))
            .collect();
        let victim = *suitable.get(number % suitable.len().max(1)).context("no device for this fault")?;
        let mark = rig.world.observer()?.mark();
        watchman.look()?;
        watchman.sessions();
        let over = faults::befall(rig, &fault, victim)?;
        let backs = watchman.everybody_back(rig, mark, over, None);
        let backs = unviolated(rig, report, &fault.to_string(), backs)?;
        let silent = matches!(fault, Fault::Hangs(..) | Fault::Stalls(..));
        let bound = report.interval * 2 + RECONNECT + if silent { WATCHDOG } else { Duration::ZERO };
        record(
            report,
            Entry {
                parts: Vec::new(),
                fault: Some(fault.to_string()),
                moment: Moment::AnyTime,
                hit: false,
                sessions: watchman.sessions(),
                backs,
                bound,
            },
        );
        lives.look(rig)?;
        faults::undo(rig, &fault, victim)?;
    }
    live_on(report, "the other faults", &lives);
    Ok(())
}

/// Every device must prove itself anew, and the verifier allows few sessions: nobody is blocked, all come back.
fn without_tickets(rig: &mut Rig, watchman: &mut Watchman, report: &mut Report) -> Result<()> {
    rig.world.bridge.stop()?;
    rig.world.keylime.kill_verifier();
    rig.world.keylime.reconfigure(|settings| settings.sessions_per_ip = FEW_SESSIONS)?;
    rig.world.keylime.start_verifier()?;
    fs::remove_file(rig.bridge_dir.join("ticket.key"))?;
    rig.world
        .bridge
        .reconfigure(|bridge| bridge.set.push(format!("verifier.sessions_per_minute={FEW_SESSIONS}")))?;
    watchman.look()?;
    watchman.sessions();
    let (mark, start) = (rig.world.observer()?.mark(), Instant::now());
    rig.world.bridge.start()?;
    let backs = watchman.everybody_back(rig, mark, start, None)?;
    let longest = backs.iter().map(|back| back.after).max().unwrap_or_default();
    let (devices, sessions) = (backs.len(), watchman.sessions());
    report.notes.push(format!(
        "without tickets, with {FEW_SESSIONS} sessions a minute: {devices} devices back after {:.1} s, {sessions} sessions",
        longest.as_secs_f64()
    ));
    report.claims.push((
        "without tickets each device costs one session, and nobody is blocked".to_owned(),
        sessions == devices,
    ));
    Ok(())
}

fn live_on(report: &mut Report, phase: &str, lives: &Lives) {
    for Life { who, faults, before, after, .. } in lives.told() {
        report.measured(
            format!("{who} does not grow over {faults} faults of {phase}: {before} -> {after}"),
            after.stays(before, 0),
        );
    }
}

fn files_stay(report: &mut Report, before: &[Files], after: &[Files]) {
    let sum = |files: &[Files]| {
        (
            files.iter().map(|files| files.count).sum::<usize>(),
            files.iter().map(|files| files.bytes).sum::<u64>(),
        )
    };
    let ((count, bytes), (count_after, bytes_after)) = (sum(before), sum(after));
    report.claims.push((
        format!("no files are left behind: {count} -> {count_after} files, {bytes} -> {bytes_after} bytes"),
        count_after <= count && bytes_after <= bytes + BYTES_SLACK,
    ));
}

fn claims(report: &mut Report, arguments: &Arguments, timeouts: usize) {
    let (kills, named) = (report.kill_count(), report.at_named_points());
    let per_part: Vec<String> =
        PARTS.iter().map(|part| format!("{part} {}", report.kills_of(*part))).collect();
    let enough = PARTS.iter().all(|part| report.kills_of(*part) >= arguments.kills / 8);
    report.claims.push((
        format!("{kills} kills, of each part an eighth or more: {}", per_part.join(", ")),
        kills >= arguments.kills && enough,
    ));
    report.measured(format!("half of the kills or more at named points: {named}"), named * 2 >= kills);
    let bridge_alone = |entry: &&Entry| {
        entry.fault.is_none() && entry.moment != Moment::ProveToProof && entry.parts == [Part::Bridge]
    };
    let restarts: Vec<usize> =
        report.entries.iter().filter(bridge_alone).map(|entry| entry.sessions).collect();
    let sessions: usize = restarts.iter().sum();
    report.claims.push((
        format!("{} restarts of the bridge with its tickets cost {sessions} sessions", restarts.len()),
        sessions == 0,
    ));
    report.notes.push(format!("TIMEOUTs published while a device was away, gone by themselves: {timeouts}"));
    let late = report.late();
    let allowed = report.interval * 2 + RECONNECT;
    let claim = format!(
        "all were back within two intervals of {:.2} s and {} s to reconnect, {:.1} s in all ({} s more after silence): {} late",
        report.interval.as_secs_f64(),
        RECONNECT.as_secs(),
        allowed.as_secs_f64(),
        WATCHDOG.as_secs(),
        late.len()
    );
    report.measured(claim, late.is_empty());
    report.notes.extend(late.into_iter().map(|late| format!("late: {late}")));
    report.claims.push((
        "no false FAIL, no device lost, nothing left in a TPM, no lockout (checked after each fault)"
            .to_owned(),
        report.violations.is_empty(),
    ));
}
