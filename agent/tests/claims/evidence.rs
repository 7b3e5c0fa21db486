//! What the device makes for the exchange, on a real software TPM with recorded logs.

use std::fs;

use crate::device::{self, TestDevice};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keylime_mqtt_agent::evidence::EvidenceError;
use keylime_mqtt_schemas::compact::{unpack_ima, unpack_uefi};
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::{
    AkName, Challenge, Digest, LogKind, Need, Nonce, NotYet, NotYetReason, PcrMask, Prove, Quote, Ready,
    Signed, State,
};
use keylime_mqtt_schemas::statement::{StatedLines, boot_statement, evidence_statement};
use ring::hmac;

fn challenge(ready: &Ready, nonce: u8) -> Challenge {
    Challenge {
        nonce: Nonce::from([nonce; 16]),
        boot: ready.boot.tag(),
        pcrs: PcrMask::try_from(0x401).unwrap(),
        good_for: 60,
        silence: 60,
        ima_offset: None,
        held: None,
        ticket: None,
        full: true,
        reference: false,
    }
}

fn full(quote: &Quote) -> &Signed {
    match quote {
        Quote::Full(signed) => signed,
        Quote::Brief(_) => panic!("not the full form"),
    }
}

/// extraData of a TPMS_ATTEST, after magic, type and the signer's name.
fn extra_data(signed: &Signed) -> &[u8] {
    let attest = signed.attest.as_slice();
    let name = 8 + usize::from(u16::from_be_bytes([attest[6], attest[7]]));
    let size = usize::from(u16::from_be_bytes([attest[name], attest[name + 1]]));
    &attest[name + 2..name + 2 + size]
}

/// clock and `safe` of its TPMS_CLOCK_INFO, after extraData.
fn clock(signed: &Signed) -> (u64, bool) {
    let attest = signed.attest.as_slice();
    let start = extra_data(signed).as_ptr_range().end as usize - attest.as_ptr() as usize;
    (u64::from_be_bytes(attest[start..start + 8].try_into().unwrap()), attest[start + 16] == 1)
}

#[tokio::test]
async fn ready_describes_this_boot_and_is_bound_to_it_by_a_statement() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    assert_eq!(ready.boot_time, 1_790_000_000);
    assert_eq!(ready.ima_entries, Some(390));
    assert_eq!(ready.uefi.unwrap().digest, Digest::of(&[device::UEFI]));
    assert!(!ready.ima_sha256);
    assert_eq!(extra_data(&ready.statement), boot_statement(&test.id, &(&ready).into()).as_bytes());
    assert_eq!(AkName::of_public(ready.ak_public.as_slice()).unwrap(), AkName::from(test.identity.ak_name));
    let again = test.describe().await;
    assert_eq!(again, ready, "one statement serves the whole boot");
}

#[tokio::test]
async fn a_tpm_reset_is_another_boot_with_a_later_time() {
    let mut test = TestDevice::with_logs().await;
    let before = test.describe().await;
    test.reboot_tpm(true).await;
    let refused = test.collect(&challenge(&before, 1)).await;
    assert!(matches!(refused, Err(EvidenceError::Rebooted)), "{refused:?}");
    let work = Work::Collect(challenge(&before, 1));
    assert!(matches!(test.device.excuse(&work, &EvidenceError::Rebooted).await, Done::Rebooted));
    let after = test.describe().await;
    assert_ne!(after.boot, before.boot);
    assert!(after.boot_time > before.boot_time);
    // The kernel's boot without a TPM reset, as kexec does it.
    fs::write(test.path("boot_id"), "another boot").unwrap();
    assert_ne!(test.describe().await.boot, after.boot);
}

#[tokio::test]
async fn evidence_holds_what_the_challenge_asked_for_and_nothing_else() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    let plain = test.collect(&challenge(&ready, 1)).await.unwrap();
    assert_eq!(plain.ima, None);
    assert_eq!(plain.tag, Nonce::from([1; 16]).tag());
    assert_eq!(extra_data(full(&plain.quote)), [1; 16]);
    let values = plain.pcrs.unwrap();
    assert_eq!(values.mask(), challenge(&ready, 1).pcrs);
    assert!(full(&plain.quote).attest.as_slice().ends_with(values.digest().as_bytes()));

    let since = |offset, nonce| Challenge { ima_offset: Some(offset), ..challenge(&ready, nonce) };
    let with_lines = test.collect(&since(388, 2)).await.unwrap();
    let last_two: Vec<u8> =
        device::IMA.split_inclusive(|byte| *byte == b'\n').skip(388).flatten().copied().collect();
    let lines = |evidence: keylime_mqtt_schemas::messages::Evidence| {
        let segment = evidence.ima.unwrap();
        (segment.offset, unpack_ima(segment.packed.as_slice(), 1 << 20, None).unwrap())
    };
    assert_eq!(lines(with_lines), (388, last_two));

    // What came into the log after the quote is not covered by it, and waits until it was announced.
    test.append_ima("10 aa ima-ng sha256:bb /new\n");
    assert_eq!(test.collect(&since(390, 3)).await.unwrap().ima, None);
    assert_eq!(test.describe().await.ima_entries, Some(391));
    let new = test.collect(&since(390, 3)).await.unwrap();
    assert_eq!(lines(new), (390, b"10 aa ima-ng sha256:bb /new\n".to_vec()));
    // And there is nothing where there is nothing.
    assert_eq!(test.collect(&since(391, 4)).await.unwrap().ima, None);
    let beyond = test.collect(&since(392, 5)).await;
    assert!(matches!(beyond, Err(EvidenceError::Log(_))), "{beyond:?}");
}

#[tokio::test]
async fn after_a_power_cut_there_is_no_evidence_until_the_clock_is_safe_and_above_the_last_one() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    let before = test.collect(&challenge(&ready, 1)).await.unwrap();
    test.reboot_tpm(false).await;
    let ready = test.describe().await;
    let work = Work::Collect(challenge(&ready, 2));
    let error = test.device.work(&work).await.unwrap_err();
    assert!(matches!(error, EvidenceError::Clock(_)), "{error}");
    let excuse = test.device.excuse(&work, &error).await;
    let tag = Nonce::from([2; 16]).tag();
    assert!(
        matches!(
            excuse,
            Done::NotYet(NotYet { tag: named, reason: NotYetReason::ClockNotSafe | NotYetReason::ClockBehind, seconds: 1.. })
                if named == tag
        ),
        "{excuse:?}"
    );
    // It passes by itself, and then the clock is above everything shown before.
    let shown = loop {
        match test.collect(&challenge(&ready, 2)).await {
            Ok(evidence) => break evidence,
            Err(EvidenceError::Clock(_)) => (),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(extra_data(full(&shown.quote)), [2; 16]);
    let ((last, _), (now, safe)) = (clock(full(&before.quote)), clock(full(&shown.quote)));
    assert!(safe && now > last, "{last} {now}");
}

#[tokio::test]
async fn the_last_clock_shown_is_kept_over_a_restart_of_the_agent() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    test.collect(&challenge(&ready, 1)).await.unwrap();
    // As if the TPM had gone back below what was shown.
    let path = test.path("state/state.json");
    let state = fs::read_to_string(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let shown = state["last_quote"]["clock_ms"].as_u64().unwrap();
    state["last_quote"]["clock_ms"] = (shown + 3_600_000).into();
    fs::write(&path, state.to_string()).unwrap();
    let mut test = test.restart().await;
    let ready = test.describe().await;
    let work = Work::Collect(challenge(&ready, 2));
    let error = test.device.work(&work).await.unwrap_err();
    assert!(matches!(error, EvidenceError::Clock(NotYetReason::ClockBehind)), "{error}");
    let excuse = test.device.excuse(&work, &error).await;
    assert!(matches!(excuse, Done::NotYet(NotYet { seconds: 3000..=3600, .. })), "{excuse:?}");
}

#[tokio::test]
async fn the_activation_answers_with_what_the_registrar_computes() {
    let mut test = TestDevice::with_logs().await;
    test.tpm.clone().close().await.unwrap();
    let credential = [0x5A; 32];
    fs::write(test.swtpm.path().join("credential"), credential).unwrap();
    test.swtpm.tool("tpm2_readpublic", &["-Q", "-c", "0x81010001", "-f", "pem", "-o", "ek.pem"]);
    let name = hex::encode(test.identity.ak_name);
    let make =
        ["-Q", "-T", "none", "-G", "rsa", "-u", "ek.pem", "-s", "credential", "-n", &name, "-o", "blob"];
    test.swtpm.tool("tpm2_makecredential", &make);
    let blob = fs::read(test.swtpm.path().join("blob")).unwrap();
    let Done::Activated(activation) = test.device.work(&Work::Activate { blob: blob.clone() }).await.unwrap()
    else {
        panic!("not activated");
    };
    assert_eq!(activation.credential, Digest::of(&[&blob]));
    // keylime, registrar_agent.py: hmac(key = base64 text of the credential, agent id), SHA-384.
    let key = hmac::Key::new(hmac::HMAC_SHA384, STANDARD.encode(credential).as_bytes());
    hmac::verify(&key, test.id.as_str().as_bytes(), activation.auth_tag.as_bytes()).unwrap();
}

#[tokio::test]
async fn logs_go_up_in_parts_that_add_up() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    for (log, whole) in [(LogKind::Uefi, device::UEFI), (LogKind::Ima, device::IMA)] {
        let (mut gathered, mut offset, mut said) = (Vec::new(), 0, None);
        loop {
            let need = Need { log, boot: ready.boot.tag(), offset, upto: u64::MAX, reference: false };
            let Done::Read { blob, next } = test.device.work(&Work::Read(need)).await.unwrap() else {
                panic!("no part")
            };
            assert_eq!((blob.log, blob.boot, blob.offset), (log, ready.boot.tag(), offset));
            if blob.part.as_slice().is_empty() {
                assert_eq!(next, offset, "the end");
                break;
            }
            gathered.extend(match log {
                LogKind::Uefi => blob.part.into_vec(),
                LogKind::Ima => unpack_ima(blob.part.as_slice(), 1 << 20, None).unwrap(),
            });
            said = blob.total;
            offset = next;
        }
        let gathered = match log {
            LogKind::Uefi => {
                assert_eq!(said, u32::try_from(gathered.len()).ok());
                unpack_uefi(&gathered, whole.len(), None).unwrap()
            }
            LogKind::Ima => gathered,
        };
        assert_eq!(gathered, whole);
    }
    for (log, expected) in [(LogKind::Uefi, 5), (LogKind::Ima, 5)] {
        let need = Need { log, boot: ready.boot.tag(), offset: 3, upto: expected, reference: false };
        let Done::Read { blob, next } = test.device.work(&Work::Read(need)).await.unwrap() else {
            panic!("no part")
        };
        assert_eq!(next, expected, "no further than wanted");
        if log == LogKind::Ima {
            let two: Vec<u8> = device::IMA
                .split_inclusive(|byte| *byte == b'\n')
                .skip(3)
                .take(2)
                .flatten()
                .copied()
                .collect();
            assert_eq!(unpack_ima(blob.part.as_slice(), 1 << 20, None).unwrap(), two);
        }
    }
    let other = Need { log: LogKind::Uefi, boot: [0; 4].into(), offset: 0, upto: 10, reference: false };
    assert!(matches!(test.device.work(&Work::Read(other)).await, Err(EvidenceError::Rebooted)));
}

#[tokio::test]
async fn a_statement_binds_evidence_and_lines_to_the_nonce() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    test.collect(&challenge(&ready, 1)).await.unwrap();
    let (nonce, evidence) = (Nonce::from([7; 16]), Digest::of(&[b"evidence as sent"]));
    let lines: Vec<u8> =
        device::IMA.split_inclusive(|byte| *byte == b'\n').skip(5).take(10).flatten().copied().collect();
    let asked = StatedLines { from: 5, digest: Digest::of(&[&lines]) };
    let no_lines = StatedLines { from: 15, digest: Digest::of(&[]) };
    // what it was not asked for in both questions it does not say to be absent
    for (ima_from, ima_end, stated) in [
        (Some(5), Some(15), Some(asked)),
        (Some(15), Some(15), Some(no_lines)),
        (Some(5), None, None),
        (None, Some(15), None),
        (None, None, None),
    ] {
        let work = Work::State { state: State { tag: nonce.tag(), ima_from }, nonce, evidence, ima_end };
        let Done::Stated(statement) = test.device.work(&work).await.unwrap() else {
            panic!("nothing stated")
        };
        assert_eq!(statement.tag, nonce.tag());
        assert_eq!(
            extra_data(&statement.signed),
            evidence_statement(&test.id, &nonce, &ready.boot, &evidence, stated.as_ref()).as_bytes()
        );
    }
}

#[tokio::test]
async fn a_device_without_logs_attests_by_quote_alone() {
    let mut test = TestDevice::bare().await;
    let ready = test.describe().await;
    assert_eq!((ready.ima_entries, ready.uefi), (None, None));
    let Done::Introduced(enrol) = test.device.work(&Work::Introduce).await.unwrap() else {
        panic!("no introduction")
    };
    assert_eq!(enrol.ek_certificate, None);
    test.collect(&challenge(&ready, 1)).await.unwrap();
}

#[tokio::test]
async fn a_missing_log_or_a_hanging_tpm_is_a_reason_not_a_silence() {
    let mut test = TestDevice::with_logs().await;
    let ready = test.describe().await;
    fs::remove_file(test.path("ima")).unwrap();
    let work = Work::Collect(Challenge { ima_offset: Some(0), ..challenge(&ready, 1) });
    let error = test.device.work(&work).await.unwrap_err();
    let excuse = test.device.excuse(&work, &error).await;
    assert!(matches!(excuse, Done::NotYet(NotYet { reason: NotYetReason::Log, .. })), "{excuse:?}");

    test.swtpm.hang();
    let work = Work::Prove(Prove { nonce: Nonce::from([1; 16]) });
    let error = test.device.work(&work).await.unwrap_err();
    let excuse = test.device.excuse(&work, &error).await;
    assert!(matches!(excuse, Done::NotYet(NotYet { reason: NotYetReason::Tpm, .. })), "{excuse:?}");
    test.swtpm.resume();
}

#[tokio::test]
async fn enrolment_is_remembered_for_the_ak_it_was_for() {
    let mut test = TestDevice::with_logs().await;
    assert!(!test.device.is_enrolled());
    test.device.remember_enrolled().unwrap();
    test.device.remember_ticket(vec![9; 100].try_into().unwrap()).unwrap();
    let mut test = test.restart().await;
    assert!(test.device.is_enrolled());
    assert_eq!(test.describe().await.ticket.unwrap().as_slice(), [9; 100]);
    test.tpm.clone().close().await.unwrap();
    test.swtpm.tool("tpm2_clear", &["-c", "p"]);
    let mut test = test.restart().await;
    assert!(!test.device.is_enrolled(), "a new AK is not enrolled");
    assert_eq!(test.describe().await.ticket, None);
}
