//! The harness's own parts hold what scenarios build on.

use anyhow::{Context, Result, ensure};
use keylime_mqtt_tests::ima::{self, ImaLog};
use keylime_mqtt_tests::keylime::Keylime;
use keylime_mqtt_tests::keylime_config::KeylimeSettings;
use keylime_mqtt_tests::measured_boot::UefiLog;
use keylime_mqtt_tests::process::{Process, group_members};
use keylime_mqtt_tests::scratch::Scratch;
use keylime_mqtt_tests::swtpm::{EkCa, Swtpm};
use keylime_mqtt_tests::tpm::Bank;
use std::process::{Command, Stdio};
use std::time::Duration;

struct Device {
    swtpm: Swtpm,
    ca: EkCa,
    scratch: Scratch,
}

fn device() -> Result<Device> {
    let scratch = Scratch::new()?;
    let ca = EkCa::found(&scratch.subdir("maker")?)?;
    let swtpm = Swtpm::manufacture(&ca, &scratch.path().join("tpm"), &scratch.log("swtpm"))?;
    Ok(Device { swtpm, ca, scratch })
}

/// PCR values as tpm2-tools reads them, through the same multiplexer.
fn pcrs_by_tpm2_tools(swtpm: &Swtpm, pcrs: &[u32]) -> Result<Vec<Vec<u8>>> {
    let list: Vec<String> = pcrs.iter().map(u32::to_string).collect();
    let output = Command::new("tpm2_pcrread")
        .arg(format!("sha256:{}", list.join(",")))
        .args(["-o", "/dev/stdout"])
        .env("TPM2TOOLS_TCTI", swtpm.tcti())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "tpm2_pcrread failed");
    let values = output.stdout.len().checked_sub(32 * pcrs.len()).context("short output")?;
    Ok(output.stdout.split_at(values).1.chunks(32).map(<[u8]>::to_vec).collect())
}

#[test]
fn a_replayed_uefi_log_equals_the_pcrs_that_tpm2_tools_reads() -> Result<()> {
    for log in [UefiLog::secure_boot()?, UefiLog::direct_boot()?] {
        let device = device()?;
        log.replay(&mut device.swtpm.connect()?)?;
        let pcrs: Vec<u32> = (0..8).collect();
        let read = pcrs_by_tpm2_tools(&device.swtpm, &pcrs)?;
        assert_eq!(read, log.pcrs(Bank::Sha256)?[..8]);
        assert_ne!(read, log.with_changed_measurement()?.pcrs(Bank::Sha256)?[..8]);
    }
    Ok(())
}

#[test]
fn the_ima_log_equals_pcr_10_also_after_entries_while_another_client_is_connected() -> Result<()> {
    let device = device()?;
    let mut tpm = device.swtpm.connect()?;
    UefiLog::direct_boot()?.replay(&mut tpm)?;
    let mut log = ImaLog::boot(&device.scratch.path().join("ima"), &mut tpm)?;
    log.run(&mut tpm, "/usr/bin/first")?;
    assert_eq!(pcrs_by_tpm2_tools(&device.swtpm, &[10])?[0], ima::replay(&log.text()?)?);
    log.run(&mut tpm, "/usr/bin/second with a space")?;
    assert_eq!(pcrs_by_tpm2_tools(&device.swtpm, &[10])?[0], ima::replay(&log.text()?)?);
    assert_eq!(log.entries(), 3);
    Ok(())
}

#[test]
fn an_ek_certificate_chains_to_its_own_ca_and_to_no_other() -> Result<()> {
    let (one, other) = (device()?, device()?);
    let leaf = one.scratch.path().join("ek.der");
    std::fs::write(&leaf, one.swtpm.ek_certificate()?)?;
    let verify = |ca: &EkCa| -> Result<bool> {
        let output = Command::new("openssl")
            .args(["verify", "-ignore_critical", "-CAfile"])
            .arg(ca.bundle()?)
            .arg(&leaf)
            .output()?;
        Ok(output.status.success())
    };
    assert!(verify(&one.ca)?);
    assert!(!verify(&other.ca)?);
    Ok(())
}

#[test]
fn a_reset_zeroes_the_pcrs_and_the_tpm_keeps_its_address() -> Result<()> {
    let mut device = device()?;
    let port = device.swtpm.port();
    let mut held = device.swtpm.connect()?;
    for orderly in [true, false] {
        device.swtpm.connect()?.extend(7, &[(Bank::Sha256, vec![1; 32])])?;
        if orderly {
            device.swtpm.power_off()?;
        } else {
            device.swtpm.cut_power();
        }
        assert!(held.read(7, Bank::Sha256).is_err(), "a connection outlived the TPM behind it");
        device.swtpm.power_on()?;
        held = device.swtpm.connect()?;
        assert_eq!(held.read(7, Bank::Sha256)?, vec![0; 32]);
        assert_eq!(device.swtpm.port(), port);
    }
    Ok(())
}

#[test]
fn a_dropped_part_takes_its_children_along() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & trap '' TERM; sleep 1000 & wait; sleep 1000"]);
    let process = Process::spawn("shell", &mut shell, &scratch.log("shell"))?;
    let group = process.pid();
    while group_members(group).len() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(process);
    assert_eq!(group_members(group), Vec::<u32>::new());
    Ok(())
}

#[test]
fn keylime_serves_its_operator_and_ends_with_all_its_workers() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut keylime = Keylime::start(&scratch, KeylimeSettings::default())?;
    let groups = [keylime.verifier()?.pid(), keylime.registrar()?.pid()];
    assert!(keylime.tenant(&["-c", "cvlist", "--push-model"])?.contains("\"uuids\": []"));
    assert!(!keylime.registered("nobody")?);
    assert!(keylime.cvstatus("nobody")?.is_none());
    keylime.kill_verifier();
    keylime.start_verifier()?;
    assert!(group_members(groups[0]).is_empty(), "workers outlived the verifier");
    keylime.stop_verifier()?;
    drop(keylime);
    assert!(group_members(groups[1]).is_empty(), "workers outlived the registrar");
    Ok(())
}
