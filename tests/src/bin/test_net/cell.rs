//! One cell of the matrix: a site, a way, what the device has to say, and what is to happen.

use crate::script::Script;
use anyhow::Result;
use keylime_mqtt_tests::device::DeviceSettings;
use keylime_mqtt_tests::ima::runtime_policy;
use keylime_mqtt_tests::netlab::{SiteSettings, Way};
use keylime_mqtt_tests::operator::Policies;
use keylime_mqtt_tests::programs;
use serde_json::json;

/// IMA entries of a machine that has run for long.
const LONG_LOG: usize = 20_000;

/// What a device attests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// A quote alone
    Quote,
    /// Measured boot, and a short IMA log
    Full,
    /// Twenty thousand IMA entries
    LongLog,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) path: String,
    pub(crate) link: &'static str,
    pub(crate) broker: &'static str,
    pub(crate) site: SiteSettings,
    pub(crate) way: Way,
    pub(crate) load: Load,
    pub(crate) script: Script,
    /// A port of the broker that the firewall must not let the device reach
    pub(crate) forbidden: u16,
}

impl Cell {
    pub(crate) fn title(&self) -> String {
        let load = match self.load {
            Load::Quote => "quote",
            Load::Full => "logs",
            Load::LongLog => "20 000 IMA entries",
        };
        format!("{} | {} | {} | {load}", self.path, self.link, self.broker)
    }

    pub(crate) fn device(&self) -> Result<DeviceSettings> {
        let settings = match self.load {
            Load::Quote => DeviceSettings::default(),
            Load::Full => DeviceSettings::full()?,
            Load::LongLog => DeviceSettings::with_ima(),
        };
        // the shipped ACL of the cloud knows the devices of its gateway by name
        let id = (self.script == Script::Failover).then(|| "device-a".to_owned());
        Ok(DeviceSettings { as_shipped: true, id, ..settings })
    }

    /// What ran before the agent started.
    pub(crate) fn programs(&self) -> Result<Vec<String>> {
        if self.load == Load::LongLog { programs::sample(LONG_LOG) } else { Ok(Vec::new()) }
    }

    pub(crate) fn policies(&self) -> Policies {
        match self.load {
            Load::Quote => Policies::quote_only(),
            Load::Full => Policies::full(),
            Load::LongLog => {
                // twenty thousand digests would make the policy the largest thing in the room
                let mut runtime = runtime_policy(&[]);
                if let Some(excludes) = runtime.get_mut("excludes") {
                    *excludes = json!(["boot_aggregate", "^/(usr|srv)/.*"]);
                }
                Policies { runtime: Some(runtime), ..Policies::default() }
            }
        }
    }
}
