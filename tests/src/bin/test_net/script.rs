//! What is to happen in a cell, step by step, and what must come of it.

use crate::run::{INTERVAL, Run};
use anyhow::Result;
use keylime_mqtt_tests::netlab::LinkProfile;
use std::time::{Duration, Instant};

/// The course of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// It passes so many times.
    Passes { times: usize },
    /// After the first PASS it is watched for so long, and passes all the time.
    Watched { intervals: u32 },
    /// After the first PASS nothing gets through for so long; then it passes again.
    Cut { intervals: u32 },
    /// It passes by the first broker, by the second when the first is away, and by the first again.
    Failover,
    /// It does not get through, and the agent says why in these words.
    Refused { reason: &'static str },
}

/// A step that was taken and waits for its effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Begun,
    /// The link was cut, or the first broker killed, at this time.
    Broken(Instant),
    /// It is whole again since.
    Mended(Instant),
}

/// How a cell stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    Done,
}

impl Script {
    /// Looks at the cell and takes the next step if it is time.
    pub(crate) fn step(self, run: &mut Run) -> Result<Standing> {
        let (passes, now) = (run.passes.clone(), Instant::now());
        let since = |at: Instant| passes.iter().filter(|pass| **pass > at).count();
        let done = match (self, run.stage) {
            (Self::Passes { times }, _) => passes.len() >= times,
            (Self::Watched { intervals }, _) => passes
                .first()
                .is_some_and(|first| now > *first + INTERVAL * intervals + Duration::from_secs(5)),
            (Self::Cut { .. }, Stage::Begun) => {
                if !passes.is_empty() {
                    run.site.set_link(LinkProfile { cut: true, ..run.cell.site.link });
                    run.stage = Stage::Broken(now);
                }
                false
            }
            (Self::Cut { intervals }, Stage::Broken(at)) => {
                if now > at + INTERVAL * intervals {
                    run.site.set_link(run.cell.site.link);
                    run.stage = Stage::Mended(now);
                }
                false
            }
            (Self::Failover, Stage::Begun) => {
                if passes.len() >= 2 {
                    run.gateway.iter_mut().for_each(keylime_mqtt_tests::netlab::Gateway::kill);
                    run.stage = Stage::Broken(now);
                }
                false
            }
            (Self::Failover, Stage::Broken(at)) => {
                if since(at) >= 2 {
                    if let Some(gateway) = &mut run.gateway {
                        gateway.power_on()?;
                    }
                    run.stage = Stage::Mended(now);
                }
                false
            }
            (Self::Failover, Stage::Mended(at)) => {
                since(at) >= 3 && run.device.agent_log().contains("the connection moves there")
            }
            (Self::Cut { .. }, Stage::Mended(at)) => since(at) >= 2,
            (Self::Refused { reason }, _) => run.device.agent_log().contains(reason),
        };
        Ok(if done { Standing::Done } else { Standing::Running })
    }

    /// How long a cell may go without a PASS: an interval, two more to resume, and what the link itself takes away.
    pub(crate) fn longest_gap(self, run: &Run) -> Duration {
        let down = run.cell.site.link.outage.map_or(Duration::ZERO, |outage| outage.down);
        let cut =
            if let Self::Cut { intervals } = self { INTERVAL * (intervals + 1) } else { Duration::ZERO };
        INTERVAL * 2 + down + cut
    }

    /// Whether Keylime may rightly say TIMEOUT.
    pub(crate) fn may_time_out(self) -> bool {
        matches!(self, Self::Cut { intervals } if intervals >= 5)
    }

    /// How long the cell may take in all.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Self::Refused { .. } => INTERVAL * 4,
            // a megabyte at some 1 kB/s, which is what TCP gets through the worst link
            _ => Duration::from_secs(40 * 60),
        }
    }
}
