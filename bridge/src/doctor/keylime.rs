//! Keylime as the bridge sees it: there, trusted, of the right version and mode

use crate::config::Checked;
use crate::keylime::VerifierMode;
use keylime_mqtt_broker_config::{Report, Step};

/// The registrar's API that the bridge uses
const REGISTRAR_API: &str = "2.6";

pub(super) async fn examine(checked: &Checked, report: &mut Report) {
    let config = &checked.config;
    let registrar = match checked.registrar.versions().await {
        Ok(versions) if versions.iter().any(|version| version == REGISTRAR_API) => {
            Step::ok("registrar", format!("answers, and has API {REGISTRAR_API}"))
        }
        Ok(versions) => Step::failed(
            "registrar",
            format!("answers, but without API {REGISTRAR_API}: it has {}", versions.join(", ")),
            "upgrade Keylime to 7.14 or newer; or is this another service's port?",
        ),
        Err(unavailable) => Step::failed(
            "registrar",
            format!("{unavailable}"),
            "check [registrar] url and ca_file, whether keylime_registrar runs, and the firewall between (its TLS port is 8891 by default)",
        ),
    };
    report.add(registrar.of(config.registrar.url.as_str()));
    let verifier = match checked.verifier.mode().await {
        Ok(VerifierMode::Push) => Step::ok("verifier", "answers, in push mode"),
        Ok(VerifierMode::Pull) => Step::failed(
            "verifier",
            "answers, in pull mode: it would call the devices, which cannot be called",
            "set mode = push in verifier.conf and restart keylime_verifier",
        ),
        Err(unavailable) => Step::failed(
            "verifier",
            format!("{unavailable}"),
            "check [verifier] url and ca_file, whether keylime_verifier runs, and the firewall between",
        ),
    };
    report.add(verifier.of(config.verifier.url.as_str()));
}
