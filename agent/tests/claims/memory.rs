//! What the agent holds of a long log: nothing.

use std::fs;

use keylime_mqtt_schemas::compact::unpack_ima;
use keylime_mqtt_schemas::messages::{Challenge, LogKind, Need, NotYetReason, Question, Up};

use crate::bridge::{Bridge, Site};
use crate::kernel::Kernel;
use crate::run::{challenge, enrol};
use crate::shared_tpm::SharedTpm;
use crate::swtpm::Swtpm;

/// Lines of 120 kB.
const LINES: u64 = 100;
/// May come on top for packing, the longest answer and what malloc keeps; the log has three times as much.
const MORE_KB: u64 = 4 * 1024;

/// Highest resident memory so far, in kB.
fn peak(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What the device says next; but that it is here, which it repeats while nobody asks it anything.
async fn answer(bridge: &mut Bridge) -> Up {
    loop {
        match bridge.hear().await {
            Up::Ready(_) => (),
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_twelve_megabytes_is_sent_and_attested_and_never_held() {
    let (site, swtpm) = (Site::new(), Swtpm::bare());
    let tpm = SharedTpm::before(swtpm.port());
    fs::write(site.path("ima"), b"").unwrap();
    let mut kernel = Kernel::new(&site.path("ima"), tpm.clone());
    kernel.measure(b"boot_aggregate");
    site.configure(&tpm.tcti(), &format!("ima_log = '{}'", site.path("ima").display()));
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let ready = enrol(&site, &mut bridge).await;
    let before = peak(agent.pid());

    let text: Vec<u8> =
        (0..60_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for number in 0..LINES {
        kernel.measure_buffer(&format!("buffer-{number}"), &text);
    }
    assert!(fs::metadata(site.path("ima")).unwrap().len() > LINES * 120_000);
    // All at once is more than evidence carries.
    let since = |offset, nonce| {
        Question::Challenge(Challenge { ima_offset: Some(offset), ..challenge(&ready, nonce) })
    };
    bridge.say(since(0, 1));
    let Up::NotYet(not_yet) = answer(&mut bridge).await else { panic!("evidence of 12 MB") };
    assert_eq!(not_yet.reason, NotYetReason::Log);
    let mut offset = 0;
    while offset <= LINES {
        let boot = ready.boot.tag();
        bridge.say(Question::Need(Need {
            log: LogKind::Ima,
            boot,
            offset,
            upto: offset + 1,
            reference: false,
        }));
        let Up::Blob(blob) = answer(&mut bridge).await else { panic!("no part") };
        let lines = unpack_ima(blob.part.as_slice(), 1 << 20, None).unwrap();
        assert_eq!((blob.offset, lines.last()), (offset, Some(&b'\n')));
        offset += 1;
    }
    bridge.say(since(offset, 2));
    let Up::Evidence(evidence) = answer(&mut bridge).await else { panic!("no evidence") };
    assert_eq!(evidence.ima, None);
    let after = peak(agent.pid());
    assert!(after < before + MORE_KB, "{before} kB before, {after} kB after");
}
