//! All cells at once, from the first boot to the last verdict.

use crate::cell::Cell;
use crate::record::{self, Outcome};
use crate::script::{Script, Stage, Standing};
use anyhow::{Context, Result};
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::device::Device;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::netlab::{GATEWAY, Gateway, Listeners, NetWorld, Site};
use keylime_mqtt_tests::world::WorldSettings;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Keylime's, between attestations: longer than the NATs of cells remember.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks at all cells.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two lines of progress.
const SPEAK_EVERY: Duration = Duration::from_secs(30);

/// A cell that runs. Its parts end in this order.
pub(crate) struct Run {
    pub(crate) cell: Cell,
    pub(crate) device: Device,
    listeners: Listeners,
    pub(crate) gateway: Option<Gateway>,
    pub(crate) site: Site,
    pub(crate) began: Instant,
    enrolled: bool,
    pub(crate) passes: Vec<Instant>,
    pub(crate) others: Vec<(Instant, Verdict, Option<String>)>,
    pub(crate) stage: Stage,
    read: usize,
}

/// Runs the cells; one outcome each.
pub(crate) fn matrix(cells: Vec<Cell>) -> Result<Vec<Outcome>> {
    let started = Instant::now();
    let say = |what: &str| println!("[{:>4} s] {what}", started.elapsed().as_secs());
    say("starting Keylime, the bridge, and the internet: mosquitto, haproxy, squid");
    let keylime = KeylimeSettings { quote_interval: 60, ..KeylimeSettings::default() };
    let lab = NetWorld::start(&WorldSettings { keylime, as_shipped: true, ..WorldSettings::default() })?;
    say(&format!("{} cells, {INTERVAL:?} between attestations", cells.len()));
    let mut running = Vec::new();
    let mut outcomes = Vec::new();
    let mut coming = cells.into_iter().enumerate();
    let mut next = coming.next();
    let mut spoken = Instant::now();
    while next.is_some() || !running.is_empty() {
        // one begins at each look, so that they do not all compute at once
        if let Some((number, cell)) = next.take() {
            let title = cell.title();
            match Run::begin(&lab, number, cell.clone()) {
                Ok(run) => running.push(run),
                Err(error) => outcomes.push(Outcome::not_begun(&cell, &format!("{error:#}"))),
            }
            say(&format!("began: {title}"));
            next = coming.next();
        }
        let mut still = Vec::new();
        for mut run in running {
            match run.look(&lab) {
                Ok(Standing::Running) if run.began.elapsed() < run.cell.script.limit() => still.push(run),
                Ok(standing) => {
                    let outcome =
                        run.end(&lab, (standing != Standing::Done).then(|| "not in time".to_owned()))?;
                    say(&record::line(&outcome));
                    outcomes.push(outcome);
                }
                Err(error) => outcomes.push(run.end(&lab, Some(format!("{error:#}")))?),
            }
        }
        running = still;
        if spoken.elapsed() > SPEAK_EVERY {
            spoken = Instant::now();
            let titles: Vec<String> =
                running.iter().map(|run| format!("{} ({})", run.cell.title(), run.passes.len())).collect();
            say(&format!("running: {}", titles.join("; ")));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(outcomes)
}

impl Run {
    fn begin(lab: &NetWorld, number: usize, cell: Cell) -> Result<Self> {
        let site = lab.site(&cell.site)?;
        let settings = cell.device()?;
        let gateway = match cell.script {
            Script::Failover => Some(Gateway::start(&site, &lab.world.scratch, &lab.world.pki)?),
            _ => None,
        };
        let name = format!("cell{number:02}");
        let mut device = lab.device(&site, &name, &cell.way, settings)?;
        if gateway.is_some() {
            device.change_access(|access| {
                // the cloud's broker, as set by the way, is the second now
                let cloud = std::mem::replace(&mut access.host, GATEWAY.to_owned());
                write!(
                    access.more,
                    "fallback_return_seconds = 20\n[[broker.fallback]]\nhost = \"{cloud}\"\n"
                )
                .ok();
            })?;
        }
        let programs = cell.programs()?;
        if !programs.is_empty() {
            device.run_programs(&programs)?;
        }
        device.start_agent()?;
        let listeners = Listeners::watch(device.agent()?.pid(), site.device());
        Ok(Self {
            cell,
            device,
            listeners,
            gateway,
            site,
            began: Instant::now(),
            enrolled: false,
            passes: Vec::new(),
            others: Vec::new(),
            stage: Stage::default(),
            read: 0,
        })
    }

    /// Takes what the result topic said since the last look, and the next step.
    fn look(&mut self, lab: &NetWorld) -> Result<Standing> {
        if !self.enrolled && lab.world.keylime.has_activated(self.device.id()) {
            // an operator tries again when it registers anew at this moment
            self.enrolled = lab.world.keylime.add(self.device.id(), &self.cell.policies()).is_ok();
        }
        let observer = lab.world.observer()?;
        let (from, id) = (self.read, self.device.id().to_owned());
        self.read = observer.mark();
        let told = observer.collect_from(from, |seen| {
            let result = seen.result().filter(|result| result.agent_id.as_str() == id)?;
            (!seen.retained).then_some((seen.at, result.verdict, result.reason))
        });
        for (at, verdict, reason) in told {
            if verdict == Verdict::Pass {
                self.passes.push(at);
            } else {
                self.others.push((at, verdict, reason));
            }
        }
        let ran = self.device.agent()?.is_running();
        anyhow::ensure!(ran, "the agent ended: {}", record::last_line(&self.device.agent_log()));
        let script = self.cell.script;
        script.step(self)
    }

    /// What must hold of every cell, whatever its script.
    fn fault(&self, lab: &NetWorld) -> Result<Option<String>> {
        let (looks, found) = self.listeners.found();
        let (let_out, _, _) = self.site.firewall()?;
        let refused = matches!(self.cell.script, Script::Refused { .. });
        let gap = self.longest_gap();
        let allowed = self.cell.script.longest_gap(self);
        let failed = format!("for agent '{}' failed verification", self.device.id());
        let bad = |verdict: Verdict| self.others.iter().find(|(_, said, _)| *said == verdict);
        let bytes = |max: usize, text: &str| text.chars().take(max).collect::<String>();
        Ok(if looks == 0 || !found.is_empty() {
            Some(format!("the agent listens: {found:?} in {looks} looks"))
        } else if self.site.reaches(self.cell.forbidden) {
            Some(format!("the firewall lets the device out to port {}", self.cell.forbidden))
        } else if !self.cell.site.ipv6 && self.site.is_reached_by(&lab.internet) {
            Some("the site is reached from outside".to_owned())
        } else if refused && !self.passes.is_empty() {
            Some("it passed where nothing should get through".to_owned())
        } else if !refused && let_out == 0 {
            Some("nothing went out where it should".to_owned())
        } else if bad(Verdict::Fail).is_some() || lab.world.keylime.verifier_log().contains(&failed) {
            Some("a false FAIL".to_owned())
        } else if bad(Verdict::Timeout).is_some() && !self.cell.script.may_time_out() {
            Some("a false TIMEOUT".to_owned())
        } else if gap > allowed {
            Some(format!("{} s without a PASS, of {} s", gap.as_secs(), allowed.as_secs()))
        } else if self.device.agent_log().contains(" ERROR ") {
            let log = self.device.agent_log();
            let line = log.lines().find(|line| line.contains(" ERROR ")).unwrap_or_default();
            Some(format!("the agent logged: {}", bytes(120, line)))
        } else {
            None
        })
    }

    /// Between one PASS and the next.
    pub(crate) fn longest_gap(&self) -> Duration {
        let pairs = self.passes.iter().zip(self.passes.iter().skip(1));
        pairs.map(|(earlier, later)| later.duration_since(*earlier)).max().unwrap_or_default()
    }

    fn end(self, lab: &NetWorld, fault: Option<String>) -> Result<Outcome> {
        let fault = match fault {
            Some(fault) => Some(fault),
            None => self.fault(lab).context("the cell cannot be judged")?,
        };
        if fault.is_some() {
            println!("--- the agent of {}\n{}", self.cell.title(), record::tail(&self.device.agent_log()));
        }
        Ok(Outcome::of(&self, fault))
    }
}
