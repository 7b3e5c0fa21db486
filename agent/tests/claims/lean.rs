//! What an attestation costs: TPM commands, bytes, tries; and that what was left out can be put back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use keylime_mqtt_agent::evidence::EvidenceError;
use keylime_mqtt_agent::tpm::TpmError;
use keylime_mqtt_schemas::compact::{Reference, ReferenceBuilder};
use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::{Challenge, Evidence, PcrTag, Quote};

use crate::device::TestDevice;
use crate::holder::{Believed, Holder};
use crate::kernel::Kernel;
use crate::shared_tpm::{PCR_READ, QUOTE, SharedTpm};

/// What Keylime asks for with an IMA and a measured-boot policy: PCR 0 to 15.
const PCRS: u32 = 0xFFFF;
/// All there is to a brief evidence besides signature and clock: tag, heads.
const STEADY: usize = 300;

struct Measured {
    device: TestDevice,
    tpm: SharedTpm,
    kernel: Kernel,
    bridge: Holder,
}

impl Measured {
    /// A device that booted, and a bridge that heard `Ready`.
    async fn with_ima() -> Self {
        let (mut device, tpm) = TestDevice::shared(true).await;
        let mut kernel = Kernel::new(&device.path("ima"), tpm.clone());
        kernel.measure(b"boot_aggregate");
        let bridge = Holder::of(device.describe().await, true);
        tpm.commands();
        Self { device, tpm, kernel, bridge }
    }

    async fn collect(&mut self, challenge: &Challenge) -> (Evidence, Option<u64>) {
        match self.device.device.work(&Work::Collect(challenge.clone())).await.unwrap() {
            Done::Collected { evidence, ima_end } => (evidence, ima_end),
            other => panic!("{other:?}"),
        }
    }

    /// One attestation, believed.
    async fn attest(&mut self) -> Believed {
        let challenge = self.bridge.challenge(PCRS);
        let (evidence, end) = self.collect(&challenge).await;
        assert!(matches!(evidence.quote, Quote::Brief(_)));
        let believed = self.bridge.believe(&challenge, &evidence).expect("what was left out can be put back");
        assert_eq!(end, self.bridge.ima.map(|ima| ima.entries));
        believed
    }

    /// Quotes and PCR_Reads since the last call; there is nothing else.
    fn commands(&self) -> (u32, u32) {
        let mut commands = self.tpm.commands();
        let counted = [QUOTE, PCR_READ].map(|code| commands.remove(&code).unwrap_or_default());
        assert!(commands.is_empty(), "{commands:x?}");
        counted.into()
    }
}

#[tokio::test]
async fn a_steady_attestation_is_one_tpm_command_and_under_three_hundred_bytes() {
    let mut world = Measured::with_ima().await;
    world.attest().await;
    assert_eq!(world.commands(), (1, 2), "the first one reads all PCRs, eight at a time");
    for _ in 0..3 {
        let steady = world.attest().await;
        assert!(steady.bytes < STEADY, "{} bytes", steady.bytes);
        assert_eq!(steady.lines, b"");
        assert_eq!(world.commands(), (1, 0));
    }
    for number in 0..10 {
        world.kernel.measure(format!("/usr/bin/program-{number}").as_bytes());
    }
    let grown = world.attest().await;
    assert_eq!(grown.lines.split_inclusive(|byte| *byte == b'\n').count(), 10);
    assert!(grown.bytes < STEADY + 10 * 64, "{} bytes", grown.bytes);
    assert_eq!(world.commands(), (1, 0));
}

#[tokio::test]
async fn a_pcr_that_changed_is_read_once_and_travels_alone() {
    let mut world = Measured::with_ima().await;
    let first = world.attest().await;
    let steady = world.attest().await;
    assert!(first.bytes > steady.bytes + 15 * 32);
    world.commands();
    world.tpm.extend(11, [7; 32]);
    let changed = world.attest().await;
    assert_ne!(changed.values.value(11), first.values.value(11));
    assert!((steady.bytes + 32..steady.bytes + 48).contains(&changed.bytes), "{}", changed.bytes);
    assert_eq!(world.commands(), (1, 2));
    world.attest().await;
    assert_eq!(world.commands(), (1, 0));
}

#[tokio::test]
async fn a_bridge_that_holds_other_values_or_none_gets_them_all() {
    let mut world = Measured::with_ima().await;
    world.attest().await;
    for held in [None, Some(PcrTag::from([1, 2, 3, 4]))] {
        world.bridge.held = None;
        let challenge = Challenge { held, ..world.bridge.challenge(PCRS) };
        let (evidence, _) = world.collect(&challenge).await;
        let sent = evidence.pcrs.as_ref().unwrap();
        assert_eq!(u32::from(sent.mask()), PCRS & !(1 << 10), "PCR 10 is where the lines lead");
        assert!(world.bridge.believe(&challenge, &evidence).is_some());
    }
}

#[tokio::test]
async fn asked_for_in_full_everything_is_there_and_nothing_is_read_again() {
    let mut world = Measured::with_ima().await;
    world.attest().await;
    world.commands();
    let challenge = Challenge { full: true, ..world.bridge.challenge(PCRS) };
    let (evidence, _) = world.collect(&challenge).await;
    assert!(matches!(evidence.quote, Quote::Full(_)));
    let believed = world.bridge.believe(&challenge, &evidence).unwrap();
    assert_eq!(u32::from(believed.values.mask()), PCRS);
    assert_eq!(world.commands(), (1, 0));
}

#[tokio::test]
async fn a_log_that_grows_all_the_time_is_no_race() {
    let mut world = Measured::with_ima().await;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut kernel = Kernel::new(&world.device.path("ima"), world.tpm.clone());
    // about 500 a second, which is what a busy boot measures
    let measuring = thread::spawn(move || {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            kernel.measure(format!("/opt/busy/{number}").as_bytes());
            number += 1;
            thread::sleep(Duration::from_millis(1));
        }
        kernel.entries
    });
    // The bridge's first lines go as blobs; here it is a bridge that starts now.
    world.attest().await;
    assert_eq!(world.commands(), (1, 2), "also where the log grows between quote and read");
    let mut lines = 0;
    for _ in 0..40 {
        lines += world.attest().await.lines.len();
        assert_eq!(world.commands(), (1, 0));
    }
    stop.store(true, Ordering::Relaxed);
    let measured = measuring.join().unwrap();
    assert!(lines > 0 && measured > 40, "{measured} entries: nothing moved, nothing was shown");
}

#[tokio::test]
async fn hostile_names_violations_and_huge_lines_are_followed_like_others() {
    let mut world = Measured::with_ima().await;
    world.attest().await;
    world.commands();
    for name in [
        &b"/a name with blanks"[..],
        b" ",
        b"/\xFF\xFE\x80 not UTF-8 \xC3",
        b"sha256:00 /looks/like/fields 10 ima-ng",
        "/\u{1F512}/\u{202E}gnp.exe".as_bytes(),
        &[b'x'; 4096],
    ] {
        world.kernel.measure(name);
    }
    world.kernel.violate("/var/log/open for writing");
    world.kernel.measure_buffer("dm_table_load", &vec![0xA5; 60_000]);
    world.kernel.measure(b"/usr/bin/last");
    let believed = world.attest().await;
    assert_eq!(believed.lines.split_inclusive(|byte| *byte == b'\n').count(), 9);
    assert_eq!(world.commands(), (1, 0));
}

#[tokio::test]
async fn a_line_that_cannot_be_followed_costs_a_read_and_the_value_of_pcr_10_once() {
    let mut world = Measured::with_ima().await;
    world.attest().await;
    world.commands();
    world.kernel.measure_strangely("what is this");
    world.kernel.measure(b"/usr/bin/after");
    let over_it = world.attest().await;
    assert_eq!(over_it.lines.split_inclusive(|byte| *byte == b'\n').count(), 2);
    assert_eq!(world.commands(), (1, 2));
    // From there on the log is followed again.
    world.kernel.measure(b"/usr/bin/later");
    let challenge = world.bridge.challenge(PCRS);
    let (evidence, _) = world.collect(&challenge).await;
    assert_eq!(evidence.pcrs, None);
    assert!(world.bridge.believe(&challenge, &evidence).is_some());
    assert_eq!(world.commands(), (1, 0));
    // A bridge that wants all lines again gets the value that they do not lead to.
    let challenge = Challenge { ima_offset: Some(0), ..world.bridge.challenge(PCRS) };
    let (evidence, _) = world.collect(&challenge).await;
    assert!(evidence.pcrs.unwrap().value(10).is_some());
}

#[tokio::test]
async fn a_log_that_does_not_fit_the_pcr_is_sent_whole_with_the_value_that_it_does_not_lead_to() {
    let mut world = Measured::with_ima().await;
    // Written into the log and never measured, as by somebody who forged it.
    world.device.append_ima("10 aa ima-ng sha256:bb /forged\n");
    let challenge = world.bridge.challenge(PCRS);
    let (evidence, end) = world.collect(&challenge).await;
    assert_eq!(end, Some(1), "what lies beyond the quote is not part of it");
    assert!(world.bridge.believe(&challenge, &evidence).is_some());
    // What was measured after it cannot be followed over it.
    world.kernel.measure(b"/usr/bin/after");
    world.commands();
    let over_it = world.attest().await;
    assert_eq!(over_it.lines.split_inclusive(|byte| *byte == b'\n').count(), 2);
    assert_eq!(world.commands(), (1, 2));
}

#[tokio::test]
async fn without_an_ima_log_pcr_10_is_a_pcr_like_others_and_one_that_never_rests_is_said_to_move() {
    let (mut device, tpm) = TestDevice::shared(false).await;
    let mut bridge = Holder::of(device.describe().await, false);
    for _ in 0..2 {
        tpm.extend(10, [1; 32]);
        let challenge = bridge.challenge(PCRS);
        let evidence = device.collect(&challenge).await.unwrap();
        assert!(bridge.believe(&challenge, &evidence).is_some());
    }
    let challenge = bridge.challenge(PCRS);
    let evidence = device.collect(&challenge).await.unwrap();
    assert_eq!(evidence.pcrs, None, "nothing moved");
    assert!(bridge.believe(&challenge, &evidence).is_some());

    tpm.commands();
    tpm.extend(10, [1; 32]);
    tpm.extend_at_each(QUOTE, 10);
    let challenge = bridge.challenge(PCRS);
    let moving = device.collect(&challenge).await;
    assert!(
        matches!(moving, Err(EvidenceError::Tpm(TpmError::PcrsMoving { mask: PCRS, tries: 8 }))),
        "{moving:?}"
    );
    assert_eq!(tpm.commands(), [(QUOTE, 8), (PCR_READ, 16)].into());
}

#[tokio::test]
async fn after_a_suspend_the_quote_says_how_often_the_tpm_was_restarted() {
    let mut device = TestDevice::with_logs().await;
    let mut bridge = Holder::of(device.describe().await, false);
    for restarts in [None, Some(1)] {
        let challenge = bridge.challenge(PCRS);
        let evidence = device.collect(&challenge).await.unwrap();
        let Quote::Brief(brief) = &evidence.quote else { panic!("not brief") };
        assert_eq!(brief.restart_count, restarts);
        assert!(bridge.believe(&challenge, &evidence).is_some());
        device.tpm.clone().close().await.unwrap();
        device.swtpm.suspend_and_resume();
    }
}

#[tokio::test]
async fn a_restarted_agent_follows_the_log_from_its_start_and_reads_once() {
    let mut world = Measured::with_ima().await;
    for number in 0..300 {
        world.kernel.measure(format!("/usr/bin/{number}").as_bytes());
    }
    world.attest().await;
    world.device = world.device.restart().await;
    world.bridge = Holder::of(world.device.describe().await, true);
    world.tpm.commands();
    world.kernel.measure(b"/usr/bin/more");
    assert_eq!(world.attest().await.lines.split_inclusive(|byte| *byte == b'\n').count(), 302);
    assert_eq!(world.commands(), (1, 2));
    world.attest().await;
    assert_eq!(world.commands(), (1, 0));
}

#[tokio::test]
async fn more_lines_than_evidence_carries_are_asked_for_in_parts() {
    let mut world = Measured::with_ima().await;
    for number in 0..10 {
        world.kernel.measure_buffer(&format!("large-{number}"), &vec![number; 60_000]);
    }
    let challenge = world.bridge.challenge(PCRS);
    let refused = world.device.collect(&challenge).await;
    assert!(matches!(refused, Err(EvidenceError::LogAhead { .. })), "{refused:?}");
    // What was refused is not taken for sent.
    let challenge = Challenge { ima_offset: Some(11), ..world.bridge.challenge(PCRS) };
    let (evidence, end) = world.collect(&challenge).await;
    assert_eq!((evidence.ima, end), (None, Some(11)));
    assert_eq!(evidence.pcrs.unwrap().mask().count(), 15);
}

#[tokio::test]
async fn an_ima_log_nobody_asks_for_is_used_and_not_needed() {
    let mut world = Measured::with_ima().await;
    let ready = world.device.describe().await;
    world.bridge = Holder::of(ready, false);
    world.attest().await;
    world.commands();
    world.kernel.measure(b"/usr/bin/more");
    let moved = world.attest().await;
    assert_eq!(world.commands(), (1, 0), "PCR 10 is where the log leads");
    assert!(moved.bytes < STEADY + 48, "and travels alone: {} bytes", moved.bytes);
    std::fs::remove_file(world.device.path("ima")).unwrap();
    world.tpm.extend(10, [1; 32]);
    world.attest().await;
    assert_eq!(world.commands(), (1, 2), "without the log it is read");
}

#[tokio::test]
async fn what_the_reference_knows_costs_a_few_bytes_a_line() {
    let names: Vec<String> =
        (0..100).map(|number| format!("/usr/lib/x86_64-linux-gnu/lib{number}.so")).collect();
    let mut builder = ReferenceBuilder::new();
    {
        let golden = Measured::with_ima().await;
        let mut kernel = golden.kernel;
        for name in &names {
            kernel.measure(name.as_bytes());
        }
        builder.ima_log(&std::fs::read(golden.device.path("ima")).unwrap());
    }
    let file = builder.build().unwrap();
    let mut costs = Vec::new();
    for known in [false, true] {
        let mut world = Measured::with_ima().await;
        std::fs::write(world.device.path("reference"), &file).unwrap();
        world.device = world.device.restart().await;
        let ready = world.device.describe().await;
        assert_eq!(ready.reference.unwrap(), Reference::parse(&file).unwrap().digest());
        world.bridge = Holder::of(ready, true);
        world.bridge.reference = known.then(|| Reference::parse(&file).unwrap());
        world.attest().await;
        for name in &names {
            world.kernel.measure(name.as_bytes());
        }
        costs.push(world.attest().await.bytes);
    }
    assert!(costs[1] < STEADY + 100 * 8 && costs[0] > STEADY + 100 * 32, "{costs:?}");
}
