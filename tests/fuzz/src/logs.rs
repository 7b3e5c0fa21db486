//! Measurement logs: as the agent reads them from files, and as the bridge follows them.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use keylime_mqtt_agent::logs::ima::ImaLog;
use keylime_mqtt_agent::logs::uefi::UefiLog;
use keylime_mqtt_bridge::restore::{Replayed, UefiReplay};
use keylime_mqtt_schemas::compact::unpack_uefi;
use keylime_mqtt_schemas::ima::{ImaReplay, ImaState, extend_by, follows_from_pcr, replay_ima};
use keylime_mqtt_schemas::messages::{BootMarker, PcrMask, PcrValues};
use tempfile::TempDir;

use crate::bytes::Bytes;

thread_local! {
    static DIRECTORY: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// A file of this thread's own, in memory where the system has room for that.
fn file(name: &str) -> PathBuf {
    DIRECTORY.with_borrow_mut(|directory| {
        let directory = directory.get_or_insert_with(|| {
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
        });
        directory.path().join(name)
    })
}

/// Lines followed to the end lead where following them one by one leads.
pub(crate) fn ima_replay(text: &[u8]) {
    let follows = [false, true].map(|sha256| follows_from_pcr(text, sha256));
    assert!(text.is_empty() || follows != [true, true], "one line has template hashes of two sizes");
    let mut stepwise = ImaState::BOOT;
    let followed =
        text.split_inclusive(|byte| *byte == b'\n').all(|line| extend_by(&mut stepwise, line).is_ok());
    match replay_ima(ImaState::BOOT, text, &[0xAA; 32]) {
        ImaReplay::Explained { .. } => panic!("a value that no log can lead to"),
        ImaReplay::Differs { at } => assert!(followed && at == stepwise),
        ImaReplay::Stopped { at, .. } => assert!(!followed && at == stepwise),
    }
    match replay_ima(ImaState::BOOT, text, &stepwise.pcr10) {
        ImaReplay::Explained { covered, .. } => assert!(covered <= text.len()),
        ImaReplay::Differs { .. } => panic!("followed to {stepwise:?} and not explained by it"),
        ImaReplay::Stopped { .. } => assert!(!followed),
    }
}

pub(crate) fn uefi_replay(log: &[u8]) {
    let replayed = Replayed::of(log);
    let values = PcrValues::new(PcrMask::ALL, vec![[0xAA; 32]; 24]).expect("one value each");
    let explained = replayed.explains(&values);
    // PCR 0 to 7 are always compared
    assert!(!matches!(explained, UefiReplay::Explained | UefiReplay::NotQuoted), "{explained:?}");
    replayed.explains(&PcrValues::default());
}

/// A log that grows, is cut or replaced, read as it goes: what is handed out are whole lines that were in the file.
pub(crate) fn ima_log(input: &[u8]) {
    let mut bytes = Bytes(input);
    let path = file("ima");
    let mut content = Vec::new();
    fs::write(&path, &content).expect("a file");
    let mut log = ImaLog::new(&path);
    while !bytes.is_empty() {
        match bytes.byte() % 4 {
            0 => content.truncate(bytes.u16().into()),
            1 => content = bytes.piece().to_vec(),
            _ => content.extend_from_slice(bytes.piece()),
        }
        fs::write(&path, &content).expect("a file");
        if log.refresh().is_err() {
            continue;
        }
        let from = u64::from(bytes.byte()) % (log.entries() + 1);
        // a file replaced under the same tail is told only when a line is missed
        if let Ok(lines) = log.lines(from, u64::MAX, bytes.u16().into()) {
            assert!(lines.end <= log.entries());
            let count = lines.bytes.split_inclusive(|byte| *byte == b'\n').count();
            assert_eq!(count as u64, lines.end - from);
            assert!(lines.bytes.is_empty() || lines.bytes.ends_with(b"\n"));
        }
    }
}

pub(crate) fn uefi_log(content: &[u8]) {
    let path = file("uefi");
    fs::write(&path, content).expect("a file");
    let mut log = UefiLog::new(&path);
    let boot = BootMarker::from([1; 16]);
    let Ok(summary) = log.summary(boot) else { return };
    assert_eq!(usize::try_from(summary.size), Ok(content.len()));
    let packed = log.packed(boot, None).expect("the same file");
    assert_eq!(unpack_uefi(packed, content.len(), None).as_deref(), Ok(content));
}
