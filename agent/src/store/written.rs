//! The state's form on disk: text that an operator can look at.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keylime_mqtt_schemas::messages::AkName;
use serde::{Deserialize, Serialize};

use super::State;
use crate::logs::boot::BootRecord;
use crate::tpm::{Clock, SavedAk};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    version: u8,
    ak_public: Option<String>,
    ak_private: Option<String>,
    enrolled_ak: Option<String>,
    boot_marker: Option<String>,
    boot_time: Option<u64>,
    last_quote: Option<WrittenClock>,
    ticket: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenClock {
    clock_ms: u64,
    reset_count: u32,
    restart_count: u32,
}

/// The only form there has been.
const VERSION: u8 = 1;

impl From<&State> for Written {
    fn from(state: &State) -> Self {
        Self {
            version: VERSION,
            ak_public: state.ak.as_ref().map(|ak| STANDARD.encode(&ak.public)),
            ak_private: state.ak.as_ref().map(|ak| STANDARD.encode(&ak.private)),
            enrolled_ak: state.enrolled.map(|name| hex::encode(name.as_bytes())),
            boot_marker: state.boot.map(|boot| hex::encode(boot.marker.as_bytes())),
            boot_time: state.boot.map(|boot| boot.time),
            last_quote: state.last_quote.map(|clock| WrittenClock {
                clock_ms: clock.clock_ms,
                reset_count: clock.reset_count,
                restart_count: clock.restart_count,
            }),
            ticket: state.ticket.as_ref().map(|ticket| STANDARD.encode(ticket.as_slice())),
        }
    }
}

impl TryFrom<Written> for State {
    /// The field at fault.
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if written.version != VERSION {
            return Err("version");
        }
        let bytes = |text: String, field| STANDARD.decode(text).map_err(|_| field);
        let ak = match (written.ak_public, written.ak_private) {
            (Some(public), Some(private)) => {
                Some(SavedAk { public: bytes(public, "ak_public")?, private: bytes(private, "ak_private")? })
            }
            (None, None) => None,
            _ => return Err("ak_public or ak_private"),
        };
        let boot = match (written.boot_marker, written.boot_time) {
            (Some(marker), Some(time)) => {
                Some(BootRecord { marker: exact(&marker).ok_or("boot_marker")?.into(), time })
            }
            (None, None) => None,
            _ => return Err("boot_marker or boot_time"),
        };
        Ok(Self {
            ak,
            enrolled: written
                .enrolled_ak
                .map(|name| exact::<34>(&name).map(AkName::from).ok_or("enrolled_ak"))
                .transpose()?,
            boot,
            // Only safe clocks are ever quoted.
            last_quote: written.last_quote.map(|clock| Clock {
                clock_ms: clock.clock_ms,
                reset_count: clock.reset_count,
                restart_count: clock.restart_count,
                safe: true,
            }),
            ticket: written
                .ticket
                .map(|text| bytes(text, "ticket")?.try_into().map_err(|_| "ticket"))
                .transpose()?,
        })
    }
}

fn exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::decode(text).ok()?.try_into().ok()
}
