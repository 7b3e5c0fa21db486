//! The device's own parts: state, TPM, logs.

use std::path::Path;

use keylime_mqtt_broker_config::{Report, Step};
use keylime_mqtt_schemas::compact::{UefiShape, shape_of_uefi};
use keylime_mqtt_schemas::ima::{ImaState, extend_by};
use keylime_mqtt_schemas::messages::AkName;

use crate::config::Config;
use crate::logs::LogError;
use crate::logs::ima::ImaLog;
use crate::logs::uefi::UefiLog;
use crate::store::{State, Store};
use crate::tpm::{Health, SavedAk, Tpm, TpmSettings};

/// What later steps need.
pub(super) struct Found {
    /// Keylime's `hash_ek`.
    pub(super) ek_hash: Option<String>,
}

pub(super) async fn examine(config: &Config, is_running: bool, report: &mut Report) -> Found {
    let state = match Store::peek(&config.state_dir) {
        Ok(store) => Some(store.state().clone()),
        Err(error) => {
            report.add(Step::error("state", &error));
            None
        }
    };
    if let Some(state) = &state {
        let running = if is_running { "an agent runs with it" } else { "no agent runs with it" };
        let says = format!("{}; {}; {running}", config.state_dir.display(), kept(state));
        report.add(Step::ok("state", says));
    }
    let settings = config.tpm();
    let health = match Tpm::health(settings.clone()).await {
        Ok(health) => Some(health),
        Err(error) => {
            report.add(Step::error("tpm", &error).of(&settings.tcti));
            None
        }
    };
    match &health {
        Some(health) => {
            tpm(health, &settings, report);
            let saved = state.and_then(|state| state.ak);
            attestation_key(&settings, saved, is_running, report).await;
        }
        None => {
            for step in ["lockout", "slots", "ak", "tpm-clock"] {
                report.add(Step::not_checked(step, "it waits for tpm"));
            }
        }
    }
    report.add(match &config.ima_log {
        Some(path) => ima(path, health.as_ref().map(|health| &health.pcr10)),
        None => {
            Step::not_checked("ima-log", "there is none in the configuration: the device attests without")
        }
    });
    report.add(match &config.uefi_log {
        Some(path) => uefi(path),
        None => {
            Step::not_checked("uefi-log", "there is none in the configuration: the device attests without")
        }
    });
    if let Err(error) = config.boot().check() {
        report.add(Step::error("boot", &error));
    }
    Found { ek_hash: health.map(|health| health.ek_hash) }
}

fn kept(state: &State) -> &'static str {
    match (&state.ak, &state.enrolled) {
        (None, _) => "no AK yet, the first run makes one",
        (Some(ak), Some(enrolled)) if AkName::of_public(&ak.public) == Some(*enrolled) => {
            "an AK that the registrar has accepted"
        }
        (Some(_), _) => "an AK that the registrar has not accepted yet",
    }
}

fn tpm(health: &Health, settings: &TpmSettings, report: &mut Report) {
    let certificate =
        if health.ek_certificate { "with an EK certificate" } else { "without an EK certificate" };
    let managed = if has_resource_manager(&settings.tcti) { "a" } else { "no" };
    report.add(
        Step::ok("tpm", format!("EK hash {}, {certificate}; {managed} resource manager", health.ek_hash))
            .of(&settings.tcti),
    );
    let Health { lockout_counter, lockout_at, lockout_interval, free_slots, loaded, .. } = health;
    let counted =
        format!("{lockout_counter} of {lockout_at} failures, one is forgiven every {lockout_interval} s");
    report.add(if health.in_lockout {
        Step::finding(
            "lockout",
            format!("the TPM is in lockout: {counted}. This agent's AK is exempt, other users of the TPM are not"),
            "find out who fails to authorize (an unorderly power cut counts too), then run tpm2_dictionarylockout --clear-lockout",
        )
    } else {
        Step::ok("lockout", counted)
    });
    report.add(if *free_slots == 0 {
        Step::finding(
            "slots",
            format!("no slot for a key is free, {loaded} keys are loaded"),
            "use a resource manager (tpm.tcti = \"device:/dev/tpmrm0\"), or flush what other programs left (tpm2_flushcontext -t)",
        )
    } else {
        Step::ok("slots", format!("{free_slots} free, {loaded} keys loaded"))
    });
}

/// The kernel's, or tpm2-abrmd: what one program loads no other sees.
fn has_resource_manager(tcti: &str) -> bool {
    tcti.contains("tpmrm") || tcti.starts_with("tabrmd")
}

/// Steps `ak` and `tpm-clock`. The clock is what the AK signs, so without one nothing is known of it.
async fn attestation_key(
    settings: &TpmSettings,
    saved: Option<SavedAk>,
    is_running: bool,
    report: &mut Report,
) {
    let why = match &saved {
        None => Some("there is no AK yet: show-identity or the first run makes one"),
        // to load it here would mean to flush the agent's
        Some(_) if is_running && !has_resource_manager(&settings.tcti) => Some(
            "an agent uses the AK, and there is no resource manager between; see its log, or stop it first",
        ),
        Some(_) => None,
    };
    let (Some(saved), None) = (saved, why) else {
        let why = why.unwrap_or_default();
        report.add(Step::not_checked("ak", why));
        report.add(Step::not_checked("tpm-clock", why));
        return;
    };
    let looked = async {
        let tpm = Tpm::start(settings.clone(), Some(saved.clone())).await?;
        let identity = tpm.identity().await?;
        let clock = tpm.clock().await?;
        tpm.close().await?;
        Ok::<_, crate::tpm::TpmError>((identity, clock))
    };
    let (identity, clock) = match looked.await {
        Ok(looked) => looked,
        Err(error) => {
            report.add(Step::error("ak", &error));
            report.add(Step::not_checked("tpm-clock", "it waits for ak"));
            return;
        }
    };
    report.add(if identity.saved_ak == saved {
        Step::ok("ak", format!("loads and signs; name {}", hex::encode(identity.ak_name)))
    } else {
        Step::finding(
            "ak",
            "the TPM does not know the AK that was kept: it was cleared or replaced, and the next run makes a new one",
            "the registrar refuses another AK for a known id: remove the device with keylime_tenant -c delete and -c regdelete, then add it again",
        )
    });
    report.add(if clock.safe {
        Step::ok("tpm-clock", format!("safe, after {} resets", clock.reset_count))
    } else {
        Step::finding(
            "tpm-clock",
            "not safe, as after a power cut: Keylime would fail such a quote for good, so the agent waits",
            "nothing: it goes on by itself, within about an hour of the TPM being on",
        )
    });
}

fn ima(path: &Path, pcr10: Option<&[u8; 32]>) -> Step {
    let read = || -> Result<(u64, ImaState, Option<u64>), LogError> {
        let mut log = ImaLog::new(path);
        log.refresh()?;
        let mut at = ImaState::BOOT;
        let mut found = None;
        log.visit(0, log.entries(), |line| {
            if extend_by(&mut at, line).is_err() {
                return false;
            }
            found = Some(at.entries).filter(|_| pcr10 == Some(&at.pcr10));
            found.is_none()
        })?;
        Ok((log.entries(), at, found))
    };
    let step = match read() {
        Err(error) => Step::error("ima-log", &error),
        Ok((entries, ..)) if pcr10.is_none() => Step::not_checked(
            "ima-log",
            format!("{entries} lines; whether they lead to PCR 10 waits for tpm"),
        ),
        Ok((0, ..)) => Step::failed(
            "ima-log",
            "it is empty",
            "boot the kernel with an IMA policy (ima_policy=tcb), or leave ima_log out",
        ),
        Ok((_, _, Some(at))) => Step::ok("ima-log", format!("line {at} leads to PCR 10")),
        Ok((entries, at, None)) if at.entries < entries => Step::finding(
            "ima-log",
            format!(
                "line {} cannot be followed: its template is not known here or its form is wrong",
                at.entries + 1
            ),
            "is it the kernel's ascii_runtime_measurements? With a template of your own the verifier has the last word",
        ),
        Ok((entries, ..)) => Step::failed(
            "ima-log",
            format!("its {entries} lines do not lead to PCR 10 of this TPM: Keylime would fail this device"),
            "does the log belong to this boot and to this TPM (a container, another tcti)? Is there something that extends PCR 10 beside IMA? Was there a kexec?",
        ),
    };
    step.of(path.display().to_string())
}

fn uefi(path: &Path) -> Step {
    let step = match UefiLog::bytes(path) {
        Err(error) => Step::error("uefi-log", &error),
        Ok(bytes) => match shape_of_uefi(&bytes) {
            Some(UefiShape { events, left: 0 }) if events > 0 => {
                Step::ok("uefi-log", format!("{events} events in {} bytes", bytes.len()))
            }
            Some(UefiShape { events, left }) => Step::failed(
                "uefi-log",
                format!("only its first {events} events can be read, {left} bytes behind them cannot"),
                "name the kernel's binary_bios_measurements of this boot",
            ),
            None => Step::failed(
                "uefi-log",
                "it is not a log of the form that TPM 2.0 firmware writes (crypto agile)",
                "name the kernel's binary_bios_measurements; firmware that logs in SHA-1's form alone has none for TPM 2.0",
            ),
        },
    };
    step.of(path.display().to_string())
}
