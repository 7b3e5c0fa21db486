//! Keylime's verifier.conf against the fleet: the settings that make devices time out, or the bridge wait
//!
//! Names and defaults are those of Keylime 7.14.3 (`keylime/web/verifier/session_controller.py`, `keylime/verification/tpm_engine.py`,
//! `keylime/push_agent_monitor.py`). Keylime also reads `KEYLIME_VERIFIER_...` from its environment, which is not seen here.

use ini::{Ini, ParseOption, Properties};
use keylime_mqtt_broker_config::{Report, Step};
use std::fs;
use std::path::Path;
use std::str::FromStr;

/// The only section that matters
const SECTION: &str = "verifier";
/// Largest file read; Keylime's has about 10 kB
const LARGEST: u64 = 1024 * 1024;
/// Keylime's TIMEOUT comes after so many intervals (`push_agent_monitor.py`)
const TIMEOUT_INTERVALS: u64 = 5;
/// Attestations that one worker judges in a second: Keylime takes up to 0.17 s of CPU for one with logs
const PER_WORKER: f64 = 6.0;
/// Of the limit on sessions, what the bridge uses at most
const SHARE_OF_SESSIONS: f64 = 0.8;

/// What the settings have to fit
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    pub(super) devices: Option<u64>,
    pub(super) sleep: Option<u64>,
    pub(super) answer: Option<u64>,
    /// As the bridge is told
    pub(super) sessions_per_minute: u32,
    pub(super) replicas: u32,
}

/// The steps, in order
const STEPS: [&str; 6] = [
    "conf-mode",
    "conf-session-limit",
    "conf-quote-interval",
    "conf-session-lifetime",
    "conf-auto-recover",
    "conf-max-workers",
];

pub(super) fn examine(file: Option<&Path>, fleet: &Fleet, report: &mut Report) {
    let Some(file) = file else {
        for step in STEPS {
            report.add(Step::not_checked(step, "give Keylime's file with --verifier-conf"));
        }
        return;
    };
    match Settings::read(file) {
        Ok(settings) => settings.steps(fleet).into_iter().for_each(|step| report.add(step)),
        Err(problem) => {
            let step = Step::failed(
                "verifier-conf",
                problem,
                "name Keylime's verifier.conf, such as /etc/keylime/verifier.conf",
            );
            report.add(step.of(file.display().to_string()));
            for step in STEPS {
                report.add(Step::not_checked(step, "it waits for verifier-conf"));
            }
        }
    }
}

/// Of the file, with Keylime's own defaults
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    mode: String,
    sessions: u64,
    window: u64,
    quote_interval: f64,
    session_lifetime: i64,
    auto_recover: bool,
    max_workers: u64,
}

impl Settings {
    fn read(file: &Path) -> Result<Self, String> {
        let size = fs::metadata(file).map_err(|error| format!("cannot be read ({error})"))?.len();
        if size > LARGEST {
            return Err(format!("has {size} bytes, more than such a file"));
        }
        let text = fs::read_to_string(file).map_err(|error| format!("cannot be read ({error})"))?;
        Self::parse(&text)
    }

    /// As Python's configparser reads it
    fn parse(text: &str) -> Result<Self, String> {
        let option = ParseOption {
            enabled_quote: false,
            enabled_escape: false,
            enabled_indented_mutiline_value: true,
            ..ParseOption::default()
        };
        let ini =
            Ini::load_from_str_opt(text, option).map_err(|error| format!("is not an INI file ({error})"))?;
        let section = ini.section(Some(SECTION)).ok_or_else(|| format!("has no section [{SECTION}]"))?;
        Ok(Self {
            mode: value(section, "mode").unwrap_or("pull").to_ascii_lowercase(),
            sessions: number(section, "session_create_rate_limit_per_ip", 50)?,
            window: number::<u64>(section, "session_create_rate_limit_window_ip", 60)?.max(1),
            quote_interval: number(section, "quote_interval", 2.0)?,
            session_lifetime: number(section, "session_lifetime", 180)?,
            auto_recover: value(section, "auto_recover_attestation_failures").is_some_and(|value| {
                matches!(value.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1")
            }),
            max_workers: number::<u64>(section, "max_workers", 16)?.max(1),
        })
    }

    fn steps(&self, fleet: &Fleet) -> Vec<Step> {
        vec![
            self.mode(),
            self.session_limit(fleet),
            self.quote_interval(fleet),
            self.session_lifetime(fleet),
            self.auto_recover(),
            self.max_workers(),
        ]
    }

    fn mode(&self) -> Step {
        if self.mode == "push" {
            return Step::ok("conf-mode", "push");
        }
        let says = format!("{}: the verifier would call the devices", self.mode.escape_debug());
        Step::failed("conf-mode", says, "set mode = push")
    }

    /// Sessions that Keylime lets one address open in a minute
    #[expect(clippy::cast_precision_loss, reason = "no limit is near 2^53")]
    fn per_minute(&self) -> f64 {
        self.sessions as f64 * 60.0 / self.window as f64
    }

    /// How many sessions the bridge opens in a minute at most
    fn bridge_per_minute(&self, fleet: &Fleet) -> f64 {
        f64::from(fleet.sessions_per_minute).min(self.per_minute()) * SHARE_OF_SESSIONS
            / f64::from(fleet.replicas.max(1))
    }

    #[expect(clippy::cast_precision_loss, reason = "no fleet is near 2^53")]
    fn session_limit(&self, fleet: &Fleet) -> Step {
        let step = "conf-session-limit";
        let told = f64::from(fleet.sessions_per_minute);
        let says =
            format!("{:.0} a minute from one address, and the bridge is told {told:.0}", self.per_minute());
        if told > self.per_minute() {
            let remedy = format!(
                "set [verifier] sessions_per_minute = {:.0} at the bridge, or raise session_create_rate_limit_per_ip: Keylime blocks who exceeds it for up to an hour",
                self.per_minute().floor()
            );
            return Step::failed(step, says, remedy);
        }
        let Some(devices) = fleet.devices else {
            return Step::not_checked(step, format!("{says}; whether that is enough waits for --devices"));
        };
        let minutes = devices as f64 / self.bridge_per_minute(fleet).max(1.0);
        let says = format!(
            "{says}: {devices} devices that start at once have their sessions within {minutes:.1} minutes"
        );
        let patience = self.quote_interval * TIMEOUT_INTERVALS as f64 / 60.0;
        if minutes > patience {
            let remedy = format!(
                "raise session_create_rate_limit_per_ip (and the bridge's sessions_per_minute with it): TIMEOUT comes after {patience:.1} minutes"
            );
            return Step::finding(step, says, remedy);
        }
        Step::ok(step, says)
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds and fleets are far below 2^53")]
    fn quote_interval(&self, fleet: &Fleet) -> Step {
        let step = "conf-quote-interval";
        let timeout = self.quote_interval * TIMEOUT_INTERVALS as f64;
        let says = format!("{} s, so TIMEOUT comes after {timeout} s", self.quote_interval);
        if let Some(sleep) = fleet.sleep.filter(|sleep| *sleep as f64 >= timeout) {
            let remedy = format!(
                "set quote_interval above {}, or let devices wake more often",
                sleep / TIMEOUT_INTERVALS
            );
            return Step::failed(
                step,
                format!("{says}; a device that sleeps {sleep} s has timed out by then"),
                remedy,
            );
        }
        if let Some(answer) = fleet.answer.filter(|answer| *answer as f64 + self.quote_interval >= timeout) {
            let remedy = format!("set quote_interval above {}", answer / (TIMEOUT_INTERVALS - 1));
            return Step::failed(
                step,
                format!("{says}; an attestation that takes {answer} s comes too late"),
                remedy,
            );
        }
        if let Some(devices) = fleet.devices {
            let rate = devices as f64 / self.quote_interval.max(0.001);
            let most = self.max_workers as f64 * PER_WORKER;
            if rate > most {
                let least = (devices as f64 / most).ceil();
                let says = format!(
                    "{says}; {devices} devices make {rate:.1} attestations a second, {most:.0} are about what {} workers judge",
                    self.max_workers
                );
                return Step::finding(
                    step,
                    says,
                    format!("set quote_interval to {least} or more, or have more verifiers"),
                );
            }
            return Step::ok(step, format!("{says}; {devices} devices make {rate:.1} attestations a second"));
        }
        if self.quote_interval < 10.0 {
            return Step::finding(step, says, "that is for data centres: set quote_interval to 60 or more");
        }
        Step::not_checked(
            step,
            format!("{says}; whether that fits the fleet waits for --devices, --sleep and --answer"),
        )
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds and fleets are far below 2^53")]
    fn session_lifetime(&self, fleet: &Fleet) -> Step {
        let step = "conf-session-lifetime";
        let says = format!("{} s", self.session_lifetime);
        if self.session_lifetime as f64 > 2.0 * self.quote_interval {
            return Step::ok(
                step,
                format!("{says}, above twice quote_interval: a PASS comes in time to extend it"),
            );
        }
        let least = (2.0 * self.quote_interval).ceil();
        let remedy = format!("set session_lifetime above {least}");
        let runs_out = format!(
            "{says}, which runs out between attestations: each costs a session and a round trip more"
        );
        let needed = fleet.devices.map(|devices| devices as f64 * 60.0 / self.quote_interval.max(0.001));
        match needed {
            Some(needed) if needed > self.bridge_per_minute(fleet) => {
                let says = format!(
                    "{runs_out}, {needed:.0} a minute, and the bridge may open {:.0}",
                    self.bridge_per_minute(fleet)
                );
                Step::failed(step, says, remedy)
            }
            _ => Step::finding(step, runs_out, remedy),
        }
    }

    fn auto_recover(&self) -> Step {
        if self.auto_recover {
            let says = "auto_recover_attestation_failures = True: a later PASS hides a FAIL";
            return Step::finding("conf-auto-recover", says, "set it to False, unless that is meant");
        }
        Step::ok("conf-auto-recover", "off: a FAIL stays until an operator acts")
    }

    fn max_workers(&self) -> Step {
        let says = match self.max_workers {
            1 => "1".to_owned(),
            workers => format!(
                "up to {workers}, whose TIMEOUT timers each know only their own connections; the bridge keeps a device on one"
            ),
        };
        Step::ok("conf-max-workers", says)
    }
}

fn value<'a>(section: &'a Properties, key: &str) -> Option<&'a str> {
    section.get(key).map(str::trim).filter(|value| !value.is_empty())
}

fn number<T: FromStr>(section: &Properties, key: &str, default: T) -> Result<T, String> {
    let Some(value) = value(section, key) else { return Ok(default) };
    value.parse().map_err(|_| format!("has {key} = {value:?}, which is not such a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keylime_mqtt_broker_config::State;

    const GOOD: &str = "# Keylime's\n[verifier]\nversion = 2.6\nip = \"127.0.0.1\"\nmode = push\nquote_interval = 60\n\
        session_lifetime = 180\nsession_create_rate_limit_per_ip = 1000\nmax_workers = 4\n\
        severity_policy = [{\"event_id\": \".*\", \"severity_label\": \"emergency\"}]\n\n[revocations]\nmode = pull\n";
    const FLEET: Fleet = Fleet {
        devices: Some(1000),
        sleep: Some(200),
        answer: Some(30),
        sessions_per_minute: 1000,
        replicas: 1,
    };

    fn changed(setting: &str, value: &str) -> Vec<Step> {
        let line = |line: &str| match line.split_once(" = ") {
            Some((key, _)) if key == setting => format!("{setting} = {value}\n"),
            _ => format!("{line}\n"),
        };
        let text: String = GOOD.split("\n\n").next().unwrap().lines().map(line).collect();
        let text = if text.contains(setting) { text } else { format!("{text}{setting} = {value}\n") };
        Settings::parse(&text).unwrap().steps(&FLEET)
    }

    #[track_caller]
    fn assert_step(steps: &[Step], name: &str, state: State, words: &[&str]) {
        let step = steps.iter().find(|step| step.step == name).unwrap();
        assert_eq!(step.state, state, "{step}");
        for word in words {
            assert!(step.to_string().contains(word), "{word:?} is not in {step}");
        }
    }

    #[test]
    fn settings_that_fit_the_fleet_are_well() {
        let steps = Settings::parse(GOOD).unwrap().steps(&FLEET);
        assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), STEPS);
        assert!(steps.iter().all(|step| step.state == State::Ok), "{steps:?}");
    }

    #[test]
    fn each_setting_that_does_not_fit_is_named_with_what_to_set() {
        let cases: [(&str, &str, &str, State, &[&str]); 8] = [
            ("mode", "pull", "conf-mode", State::Failed, &["mode = push"]),
            (
                "session_create_rate_limit_per_ip",
                "50",
                "conf-session-limit",
                State::Failed,
                &["50 a minute", "sessions_per_minute = 50"],
            ),
            (
                "quote_interval",
                "2",
                "conf-quote-interval",
                State::Failed,
                &["TIMEOUT comes after 10 s", "sleeps 200 s", "above 40"],
            ),
            (
                "quote_interval",
                "41",
                "conf-quote-interval",
                State::Finding,
                &["24.4 attestations a second", "42"],
            ),
            (
                "session_lifetime",
                "90",
                "conf-session-lifetime",
                State::Failed,
                &["1000 a minute", "may open 800", "above 120"],
            ),
            ("session_lifetime", "-1", "conf-session-lifetime", State::Failed, &["-1 s"]),
            (
                "auto_recover_attestation_failures",
                "True",
                "conf-auto-recover",
                State::Finding,
                &["hides a FAIL"],
            ),
            ("max_workers", "1", "conf-quote-interval", State::Finding, &["1 workers"]),
        ];
        for (setting, value, name, state, words) in cases {
            assert_step(&changed(setting, value), name, state, words);
        }
    }

    #[test]
    fn what_depends_on_a_fleet_that_is_not_known_is_said_to_be_not_checked() {
        let fleet = Fleet { devices: None, sleep: None, answer: None, ..FLEET };
        let steps = Settings::parse(GOOD).unwrap().steps(&fleet);
        assert_step(&steps, "conf-session-limit", State::NotChecked, &["--devices"]);
        assert_step(&steps, "conf-quote-interval", State::NotChecked, &["--devices"]);
        let slow = Fleet { answer: Some(240), sleep: None, devices: None, ..FLEET };
        let steps = Settings::parse(GOOD).unwrap().steps(&slow);
        assert_step(&steps, "conf-quote-interval", State::Failed, &["takes 240 s", "above 60"]);
    }

    #[test]
    fn keylimes_defaults_stand_in_and_what_is_no_verifier_conf_is_refused() {
        let defaults = Settings::parse("[verifier]\n").unwrap();
        assert_eq!((defaults.sessions, defaults.quote_interval, defaults.mode.as_str()), (50, 2.0, "pull"));
        assert!(Settings::parse("[tenant]\nmode = push\n").unwrap_err().contains("[verifier]"));
        assert!(
            Settings::parse("[verifier]\nquote_interval = soon\n").unwrap_err().contains("quote_interval")
        );
        assert!(Settings::read(Path::new("/nonexistent")).unwrap_err().contains("cannot be read"));
    }
}
