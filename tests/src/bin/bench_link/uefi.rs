//! A UEFI log as large as those of real machines, for a machine that has none to lend.
//!
//! The recorded log of the harness (a real boot of 14 kB) with what larger machines have more of: a full list of
//! revoked hashes (dbx, which does not compress), more certificates in db and KEK, and the commands of a longer
//! GRUB script. Lengths are those that make 41 kB, about 24 kB when compressed: as the log of Keylime's own tests.
//! `BENCH_UEFI_LOG` names a real one to use instead, `BENCH_UEFI_GOLDEN` that of a similar machine.

use anyhow::{Context, Result};
use keylime_mqtt_tests::measured_boot::UefiLog;
use keylime_mqtt_tests::tpm::Bank;
use std::fs;

/// Hashes in dbx in a recent revocation list.
const REVOKED: usize = 355;
/// Further certificates' bytes that nothing compresses: keys and signatures, 512 bytes each.
const CERTIFICATES: usize = 5;
/// Commands of a GRUB script.
const COMMANDS: usize = 62;

const EV_IPL: u32 = 0xd;
const EV_EFI_VARIABLE_AUTHORITY: u32 = 0x8000_00e0;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
/// EFI_IMAGE_SECURITY_DATABASE_GUID, where db and dbx are.
const SECURITY_DATABASE: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// EFI_CERT_SHA256_GUID (UEFI 2.10, 32.4.1).
const CERT_SHA256: [u8; 16] =
    [0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28];
/// Microsoft's owner GUID, with which nearly all entries of dbx begin.
const OWNER: [u8; 16] =
    [0xbd, 0x9a, 0xfa, 0x77, 0x59, 0x03, 0x32, 0x4d, 0xbd, 0x60, 0x28, 0xf4, 0xe7, 0x8f, 0x78, 0x4b];

/// The log of the device that is measured.
pub(crate) fn device() -> Result<UefiLog> {
    match std::env::var_os("BENCH_UEFI_LOG") {
        Some(file) => read(&file),
        None => generated(1),
    }
}

/// The log of a machine of the same make: what a reference is made from.
pub(crate) fn golden() -> Result<UefiLog> {
    match (std::env::var_os("BENCH_UEFI_GOLDEN"), std::env::var_os("BENCH_UEFI_LOG")) {
        (Some(file), _) | (None, Some(file)) => read(&file),
        (None, None) => generated(2),
    }
}

fn read(file: &std::ffi::OsStr) -> Result<UefiLog> {
    UefiLog::from_bytes(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?)
}

/// What machines of one make share, followed by what differs by machine: disks and their identifiers.
fn generated(machine: u8) -> Result<UefiLog> {
    let mut log = UefiLog::secure_boot()?.bytes().to_vec();
    let mut list = CERT_SHA256.to_vec();
    let entries = 28 + REVOKED * 48;
    for number in [entries, 0, 48] {
        list.extend_from_slice(&u32::try_from(number)?.to_le_bytes());
    }
    for revoked in 0..REVOKED {
        list.extend_from_slice(&OWNER);
        list.extend_from_slice(&random("dbx", revoked));
    }
    event(&mut log, 7, EV_EFI_VARIABLE_DRIVER_CONFIG, &variable("dbx", &list)?)?;
    for certificate in 0..CERTIFICATES {
        let issuer =
            format!("0\u{1}US Washington Redmond Microsoft Corporation UEFI CA 2023 number {certificate}");
        let key = (0..16).flat_map(|part| random("certificate", certificate * 16 + part));
        let der: Vec<u8> = issuer.bytes().chain(key).collect();
        event(&mut log, 7, EV_EFI_VARIABLE_AUTHORITY, &variable("db", &[&OWNER[..], &der].concat())?)?;
    }
    let disk = hex::encode(random("disk", machine.into()));
    let disk = disk.get(..36).context("a short digest")?;
    for command in 0..COMMANDS {
        let word = hex::encode(random("command", command));
        let word = word.get(..12 + command % 20).context("a short digest")?;
        let text = match command % 4 {
            0 => format!("grub_cmd: search --no-floppy --fs-uuid --set=root {disk}\0"),
            1 => format!("grub_cmd: [ -f (hd0,gpt2)/grub2/{word}.cfg ]\0"),
            2 => format!("grub_cmd: insmod {word}\0"),
            _ => format!("grub_cmd: set {word}=(hd0,gpt2)/grub2\0"),
        };
        event(&mut log, 8, EV_IPL, text.as_bytes())?;
    }
    UefiLog::from_bytes(log)
}

/// TCG_PCR_EVENT2 in the one bank of the recorded log, which is SHA-256.
fn event(log: &mut Vec<u8>, pcr: u32, kind: u32, data: &[u8]) -> Result<()> {
    for number in [pcr, kind, 1] {
        log.extend_from_slice(&number.to_le_bytes());
    }
    log.extend_from_slice(&Bank::Sha256.id().to_le_bytes());
    log.extend(Bank::Sha256.digest(data));
    log.extend_from_slice(&u32::try_from(data.len())?.to_le_bytes());
    log.extend_from_slice(data);
    Ok(())
}

/// UEFI_VARIABLE_DATA.
fn variable(name: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut event = SECURITY_DATABASE.to_vec();
    for length in [name.len(), data.len()] {
        event.extend_from_slice(&u64::try_from(length)?.to_le_bytes());
    }
    event.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    event.extend_from_slice(data);
    Ok(event)
}

/// 32 bytes that nothing compresses and that are the same each time.
fn random(what: &str, number: usize) -> Vec<u8> {
    Bank::Sha256.digest(format!("{what} {number}").as_bytes())
}
