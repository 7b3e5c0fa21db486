//! The agent as a process, over TLS through mosquitto, with a software TPM and a bridge that follows a script.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bridge::{Bridge, Site};
use crate::swtpm::Swtpm;
use keylime_mqtt_schemas::messages::{
    Accepted, Challenge, Credential, Enrolled, Evidence, Later, LaterReason, LogKind, Need, Nonce,
    NotYetReason, Outcome, PcrMask, Prove, Question, Ready, Refused, RefusedReason, Up,
};

/// The registrar's part: a credential for EK and AK as they came in `Enrol`.
fn credential(site: &Site, enrol: &keylime_mqtt_schemas::messages::Enrol) -> Vec<u8> {
    let ak_name = keylime_mqtt_schemas::messages::AkName::of_public(enrol.ak_public.as_slice()).unwrap();
    fs::write(site.path("ek.tss"), enrol.ek_public.as_slice()).unwrap();
    fs::write(site.path("secret"), [0x5A; 32]).unwrap();
    let name = hex::encode(ak_name.as_bytes());
    let made = Command::new("tpm2_makecredential")
        .args(["-Q", "-T", "none", "-u", "ek.tss", "-s", "secret", "-n", &name, "-o", "blob"])
        .current_dir(site.directory.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read(site.path("blob")).unwrap()
}

pub(crate) fn challenge(ready: &Ready, nonce: u8) -> Challenge {
    Challenge {
        nonce: Nonce::from([nonce; 16]),
        boot: ready.boot.tag(),
        pcrs: PcrMask::try_from(0x80).unwrap(),
        good_for: 600,
        silence: 600,
        ima_offset: None,
        held: None,
        full: false,
        reference: false,
        ticket: Some(vec![0xA5; 64].try_into().unwrap()),
    }
}

/// From the first word to `Ready`.
pub(crate) async fn enrol(site: &Site, bridge: &mut Bridge) -> Ready {
    let Up::Enrol(enrol) = bridge.hear().await else { panic!("no Enrol") };
    bridge.say(Question::Credential(Credential { blob: credential(site, &enrol).try_into().unwrap() }));
    let Up::Activation(_) = bridge.hear().await else { panic!("no Activation") };
    bridge.say(Question::Enrolled(Enrolled {}));
    ready(bridge).await
}

pub(crate) async fn ready(bridge: &mut Bridge) -> Ready {
    let Up::Ready(ready) = bridge.hear().await else { panic!("no Ready") };
    ready
}

pub(crate) async fn attest(bridge: &mut Bridge, ready: &Ready, nonce: u8) -> Evidence {
    bridge.say(Question::Challenge(challenge(ready, nonce)));
    let Up::Evidence(evidence) = bridge.hear().await else { panic!("no Evidence") };
    assert_eq!(evidence.tag, Nonce::from([nonce; 16]).tag());
    evidence
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_enrols_proves_attests_and_a_restarted_agent_needs_only_the_last() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    bridge.presence(true).await;
    let first = enrol(&site, &mut bridge).await;
    assert_eq!(first.ticket, None);
    bridge.say(Question::Prove(Prove { nonce: Nonce::from([1; 16]) }));
    let Up::Proof(proof) = bridge.hear().await else { panic!("no Proof") };
    assert_eq!(proof.tag, Nonce::from([1; 16]).tag());
    let evidence = attest(&mut bridge, &first, 2).await;
    assert_eq!(attest(&mut bridge, &first, 2).await, evidence, "a repeated challenge gets the cached answer");
    assert_ne!(attest(&mut bridge, &first, 3).await.quote, evidence.quote);
    agent.terminate();
    bridge.presence(false).await;
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "a healthy run warns of nothing:\n{log}");
    for (secret, what) in [
        (hex::encode([2; 16]), "nonce"),
        ("[2, 2, 2, 2".to_owned(), "nonce"),
        (hex::encode([0x5A; 32]), "credential"),
        ("WlpaWlpaWlpa".to_owned(), "credential"),
        ("[90, 90, 90".to_owned(), "credential"),
        (hex::encode([0xA5; 64]), "ticket"),
    ] {
        assert!(!log.contains(&secret), "the {what} is in the log");
    }

    let agent = site.agent(&["run"]);
    let again = ready(&mut bridge).await;
    assert_eq!(
        (again.boot, again.boot_time, &again.ak_public),
        (first.boot, first.boot_time, &first.ak_public)
    );
    assert_eq!(again.ticket.as_ref().unwrap().as_slice(), [0xA5; 64]);
    attest(&mut bridge, &again, 4).await;
    agent.terminate();
    assert_eq!(agent.end().0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_quotes_no_pcr_and_sends_no_log_but_those_that_it_is_configured_with() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "pcrs = [7]");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let ready = enrol(&site, &mut bridge).await;
    assert_eq!((u32::from(ready.pcrs), ready.ima_entries, ready.uefi), (1 << 7, None, None));
    let quoted = challenge(&ready, 2);
    for pcrs in [1 << 8, 1 << 7 | 1 << 8] {
        let pcrs = PcrMask::try_from(pcrs).unwrap();
        bridge.say(Question::Challenge(Challenge { pcrs, ..quoted.clone() }));
    }
    bridge.say(Question::Challenge(Challenge { ima_offset: Some(0), ..quoted }));
    for log in [LogKind::Ima, LogKind::Uefi] {
        let boot = ready.boot.tag();
        bridge.say(Question::Need(Need { log, boot, offset: 0, upto: 1, reference: false }));
    }
    // the first thing that the device says is the answer to this
    let evidence = attest(&mut bridge, &ready, 3).await;
    assert_eq!(evidence.pcrs.map(|values| u32::from(values.mask())), Some(1 << 7));
    assert!(agent.said("PCRs were asked for that this device does not offer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_answers_as_often_in_a_minute_as_it_is_configured_to() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "answers_per_minute = 3");
    let start = Instant::now();
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let ready = enrol(&site, &mut bridge).await;
    let ignored = async {
        while !agent.said("asked oftener than this device answers") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::pin!(ignored);
    // credential and word of the enrolment
    let mut answered = 2;
    for nonce in 2..100 {
        tokio::select! {
            () = &mut ignored => break,
            _ = attest(&mut bridge, &ready, nonce) => answered += 1,
        }
    }
    // twice as many at once, and one more each twenty seconds
    let most = 6 + start.elapsed().as_secs() / 20 + 1;
    assert!((6..=most).contains(&answered), "{answered} answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_seen_to_be_gone() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let mut agent = site.agent(&["run"]);
    bridge.presence(true).await;
    agent.kill();
    bridge.presence(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_from_the_broker_is_counted_and_changes_nothing() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let ready = enrol(&site, &mut bridge).await;
    for rubbish in [vec![], vec![0xFF; 100], vec![0xBF], b"{\"challenge\":1}".to_vec(), vec![0xA1; 9000]] {
        bridge.say_bytes(rubbish);
    }
    attest(&mut bridge, &ready, 2).await;
    agent.terminate();
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("refused a payload from the broker"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_the_bridge_is_told_why_there_is_no_evidence_yet() {
    let (site, mut swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let _agent = site.agent(&["run"]);
    let before = enrol(&site, &mut bridge).await;
    attest(&mut bridge, &before, 2).await;
    swtpm.power_off();
    swtpm.power_on();
    // The challenge is for the boot before: the device says Ready for the one that is.
    bridge.say(Question::Challenge(challenge(&before, 3)));
    let after = ready(&mut bridge).await;
    assert_ne!(after.boot, before.boot);
    bridge.say(Question::Challenge(challenge(&after, 3)));
    let Up::NotYet(not_yet) = bridge.hear().await else {
        panic!("evidence with a clock that Keylime would fail")
    };
    assert!(matches!(not_yet.reason, NotYetReason::ClockNotSafe | NotYetReason::ClockBehind));
    loop {
        bridge.say(Question::Challenge(challenge(&after, 4)));
        match bridge.hear().await {
            Up::NotYet(_) => (),
            Up::Evidence(_) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleared_tpm_makes_the_device_enrol_again() {
    let (site, mut swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let before = enrol(&site, &mut bridge).await;
    // The agent's connection ends with the TPM; it connects anew when it is asked for something.
    swtpm.power_off();
    swtpm.power_on();
    swtpm.tool("tpm2_clear", &["-c", "p"]);
    bridge.say(Question::Challenge(challenge(&before, 3)));
    let after = enrol(&site, &mut bridge).await;
    assert_ne!(after.ak_public, before.ak_public);
    agent.terminate();
    let (_, log) = agent.end();
    assert!(log.contains("cleared or replaced"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_ends_with_the_code_of_its_outcome() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let once = ["run", "--once", "--deadline", "60", "--sleep", "3600"];

    let agent = site.agent(&once);
    let first = enrol(&site, &mut bridge).await;
    assert_eq!(first.sleep, Some(3600));
    attest(&mut bridge, &first, 1).await;
    bridge.say(Question::Accepted(Accepted { seconds: 3600, outcome: Outcome::Pass }));
    assert_eq!(agent.end().0.code(), Some(0));

    let accepted = |outcome| Question::Accepted(Accepted { seconds: 3600, outcome });
    let refused = Question::Refused(Refused { seconds: 60, reason: RefusedReason::OtherTpm });
    let later = Question::Later(Later { seconds: 120, reason: LaterReason::NotEnrolled });
    for (answer, code) in
        [(accepted(Outcome::Fail), 10), (accepted(Outcome::Unknown), 11), (refused, 12), (later, 13)]
    {
        let agent = site.agent(&once);
        ready(&mut bridge).await;
        bridge.say(answer);
        let (status, log) = agent.end();
        assert_eq!(status.code(), Some(code), "{log}");
    }

    let agent = site.agent(&["run", "--once", "--deadline", "3"]);
    assert_eq!(agent.end().0.code(), Some(14));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_without_a_tpm_says_so_at_its_deadline() {
    let (site, mut swtpm) = (Site::new(), Swtpm::bare());
    site.configure(&swtpm.tcti(), "");
    swtpm.power_off();
    let (status, log) = site.agent(&["run", "--once", "--deadline", "5"]).end();
    assert_eq!(status.code(), Some(15), "{log}");
    assert!(log.contains("the TPM cannot be used yet") && log.contains(&swtpm.tcti()), "{log}");
    swtpm.power_on();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_whose_tpm_hangs_says_so_at_its_deadline() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run", "--once", "--deadline", "15"]);
    enrol(&site, &mut bridge).await;
    swtpm.hang();
    bridge.say(Question::Prove(Prove { nonce: Nonce::from([1; 16]) }));
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(15), "{log}");
    assert!(!log.contains("no bridge has answered"), "the bridge is not at fault: {log}");
    swtpm.resume();
}

/// A broker may send tickets as often as it is answered, and while the TPM hangs none is written.
#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_to_do_while_the_tpm_hangs_is_bounded_and_the_device_goes_on_afterwards() {
    let (site, swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    let agent = site.agent(&["run"]);
    let ready = enrol(&site, &mut bridge).await;
    swtpm.hang();
    let last = 41;
    for nonce in 2..=last {
        let ticket = Some(vec![nonce; 64].try_into().unwrap());
        bridge.say(Question::Challenge(Challenge { ticket, ..challenge(&ready, nonce) }));
    }
    while !agent.said("not kept; it is only an optimization") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    swtpm.resume();
    loop {
        if let Up::Evidence(evidence) = bridge.hear().await
            && evidence.tag == Nonce::from([last; 16]).tag()
        {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_started_before_its_tpm_waits_for_it() {
    let (site, mut swtpm) = (Site::new(), Swtpm::new());
    site.configure(&swtpm.tcti(), "");
    let mut bridge = site.bridge().await;
    swtpm.power_off();
    let agent = site.agent(&["run"]);
    while !agent.said("the TPM cannot be used yet") {
        tokio::task::yield_now().await;
    }
    swtpm.power_on();
    enrol(&site, &mut bridge).await;
}
