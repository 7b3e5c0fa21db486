//! `doctor`: walks the way of the data from the broker to Keylime and says of each step whether it works and, where not, what to do
//!
//! ```text
//! configuration, files, status -> clock, certificates -> name, proxy, TCP, TLS -> login, topics -> registrar, verifier -> verifier.conf
//! ```
//!
//! It may run beside a bridge, and asks Keylime for nothing but its version.

mod broker;
mod keylime;
mod verifier_conf;

use crate::admission::AdmissionList;
use crate::config::{Checked, Config, ConfigError};
use crate::status_socket::{StatusError, ask};
use keylime_mqtt_broker_config::{Report, Step};
use std::path::{Path, PathBuf};

/// The name in the report
pub const PROGRAM: &str = "keylime-mqtt-bridge doctor";

/// What an operator asks for
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Log in at the broker although a bridge runs here
    pub login_too: bool,
    /// Keylime's verifier.conf
    pub verifier_conf: Option<PathBuf>,
    /// Devices of the fleet; else as many as the admission list has
    pub devices: Option<u64>,
    /// Longest sleep of a device, seconds
    pub sleep: Option<u64>,
    /// Longest time that an attestation takes over the slowest link, seconds
    pub answer: Option<u64>,
}

/// Walks; false when the configuration is wrong
pub async fn examine(config: Config, wishes: &Wishes, report: &mut Report) -> bool {
    let list_file = config.admission.list_file.clone();
    let listed = list_file.as_deref().and_then(|file| AdmissionList::open(file).ok()).map(|list| list.len());
    let status_socket = config.status_socket.clone();
    let sessions_per_minute = config.verifier.sessions_per_minute;
    let replicas = config.verifier.replicas;
    let checked = config.check();
    let is_configured = checked.is_ok();
    report.add(match &checked {
        Ok(_) => Step::ok("configuration", "read, and so are the files that it names"),
        Err(error) => Step::error("configuration", error),
    });
    match &checked {
        // boxed: it holds a connection and the clients' requests
        Ok(checked) => Box::pin(along_the_way(checked, &status_socket, listed, wishes, report)).await,
        Err(error) => {
            if !matches!(error, ConfigError::Tickets(_) | ConfigError::Admission(_)) {
                report.add(Step::not_checked("admission", "it waits for the configuration"));
            }
            for step in ["broker", "registrar", "verifier"] {
                report.add(Step::not_checked(step, "it waits for the configuration"));
            }
        }
    }
    let devices = wishes.devices.or_else(|| listed.filter(|n| *n > 0).and_then(|n| u64::try_from(n).ok()));
    let fleet = verifier_conf::Fleet {
        devices,
        sleep: wishes.sleep,
        answer: wishes.answer,
        sessions_per_minute,
        replicas,
    };
    verifier_conf::examine(wishes.verifier_conf.as_deref(), &fleet, report);
    is_configured
}

async fn along_the_way(
    checked: &Checked,
    status_socket: &Path,
    listed: Option<usize>,
    wishes: &Wishes,
    report: &mut Report,
) {
    let ticket_keys = checked.config.ticket_key_file.display().to_string();
    report.add(Step::ok("ticket-keys", "there, and readable by their owner alone").of(ticket_keys));
    report.add(admission(checked, listed));
    let is_running = status(status_socket, report);
    // its common name is in the step
    drop(checked.broker.check_certificates(report));
    let open = checked.broker.check_ways(report).await;
    broker::examine(checked, &open, is_running, wishes, report).await;
    keylime::examine(checked, report).await;
}

fn admission(checked: &Checked, listed: Option<usize>) -> Step {
    let settings = &checked.config.admission;
    let list = listed.map(|lines| format!("{lines} lines in list_file"));
    let makers = settings.ek_ca_dir.as_ref().map(|dir| format!("TPM makers of {}", dir.display()));
    let says: Vec<String> = makers.into_iter().chain(list).collect();
    if settings.ek_ca_dir.is_none() && listed == Some(0) {
        let remedy = "add the lines that keylime-mqtt-agent show-identity prints, or name ek_ca_dir";
        return Step::finding(
            "admission",
            "the list is empty and there is no ek_ca_dir: no device is let in",
            remedy,
        );
    }
    if settings.danger_any_id_of_trusted_ca {
        let says = format!("{}, and any TPM of these makers may take any id", says.join(", "));
        return Step::finding("admission", says, "unless that is meant, remove danger_any_id_of_trusted_ca");
    }
    Step::ok("admission", says.join(", "))
}

/// Whether a bridge runs here
fn status(socket: &Path, report: &mut Report) -> bool {
    let of = socket.display().to_string();
    let (step, is_running) = match ask(socket) {
        Ok(snapshot) => {
            let says = format!(
                "a bridge runs: {} devices, {} of them waiting",
                snapshot.devices,
                snapshot.waiting.len()
            );
            (Step::ok("status", says), true)
        }
        Err(StatusError::Silent { .. }) if socket.parent().is_some_and(Path::is_dir) => {
            (Step::not_checked("status", "no bridge runs here"), false)
        }
        Err(StatusError::Silent { .. }) => {
            let remedy = "make it and give it to the bridge's user, or set status_socket";
            (Step::failed("status", "its directory is not there, so a bridge cannot start", remedy), false)
        }
        Err(error) => (Step::error("status", &error), true),
    };
    report.add(step.of(of));
    is_running
}
