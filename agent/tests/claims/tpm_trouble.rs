//! What TPMs do to those who use them for long: hang, restart, fill up, put off.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::retry_proxy::RetryProxy;
use crate::swtpm::Swtpm;
use keylime_mqtt_agent::tpm::{SavedAk, Tpm, TpmError, TpmSettings};

fn settings(swtpm: &Swtpm) -> TpmSettings {
    TpmSettings { tcti: swtpm.tcti(), command_timeout: Duration::from_secs(60), ek_handle: None }
}

#[tokio::test]
async fn a_hanging_tpm_costs_its_caller_the_timeout_and_then_serves_again() {
    let swtpm = Swtpm::new();
    let tpm =
        Tpm::start(TpmSettings { command_timeout: Duration::from_millis(500), ..settings(&swtpm) }, None)
            .await
            .unwrap();
    let identity = patiently(|| tpm.identity()).await;
    assert_eq!(tpm.busy_for(), None);
    swtpm.hang();
    let quote = tpm.quote(vec![1; 16], 1).await;
    assert!(matches!(quote, Err(TpmError::Timeout { operation: "quote", .. })), "{quote:?}");
    assert!(tpm.busy_for().is_some());
    // Others wait no longer, and their number is bounded.
    let mut busy = false;
    for _ in 0..20 {
        match tpm.quote(vec![2; 16], 1).await {
            Err(TpmError::Timeout { .. }) => (),
            Err(TpmError::Busy { .. }) => {
                busy = true;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(busy);
    swtpm.resume();
    patiently(|| tpm.quote(vec![3; 16], 1)).await;
    assert_eq!(patiently(|| tpm.identity()).await, identity);
}

/// Asks until it is served: on a busy machine any operation may take longer than this test's short timeout.
async fn patiently<T, F: Future<Output = Result<T, TpmError>>>(ask: impl Fn() -> F) -> T {
    loop {
        match ask().await {
            Err(TpmError::Timeout { .. } | TpmError::Busy { .. }) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_tpm_that_restarts_under_a_live_connection_is_used_again() {
    let mut swtpm = Swtpm::new();
    let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
    let identity = tpm.identity().await.unwrap();
    for _ in 0..2 {
        swtpm.power_off();
        swtpm.power_on();
        tpm.quote(vec![1; 16], 1).await.unwrap();
    }
    assert_eq!(tpm.identity().await.unwrap(), identity);
}

#[tokio::test]
async fn an_absent_tpm_is_said_to_be_unreachable_and_used_once_it_is_there() {
    let mut swtpm = Swtpm::new();
    let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
    tpm.identity().await.unwrap();
    swtpm.power_off();
    let quote = tpm.quote(vec![1; 16], 1).await;
    assert!(matches!(quote, Err(TpmError::Unreachable { .. })), "{quote:?}");
    swtpm.power_on();
    tpm.quote(vec![1; 16], 1).await.unwrap();
}

#[tokio::test]
async fn a_tpm_that_says_retry_is_asked_again_and_not_for_ever() {
    let swtpm = Swtpm::new();
    let proxy = RetryProxy::before(swtpm.port());
    let through = TpmSettings { tcti: proxy.tcti(), ..settings(&swtpm) };
    let tpm = Tpm::start(through, None).await.unwrap();
    tpm.identity().await.unwrap();
    // More than the five that the software stack takes by itself.
    for code in [0x922, 0x908, 0x90A] {
        proxy.answer_next(12, code);
        tpm.quote(vec![1; 16], 1).await.unwrap();
    }
    proxy.answer_next(u32::MAX, 0x922);
    let quote = tpm.quote(vec![1; 16], 1).await;
    assert!(matches!(quote, Err(TpmError::StillRetrying { .. })), "{quote:?}");
    proxy.answer_next(0, 0);
    tpm.quote(vec![1; 16], 1).await.unwrap();
}

/// Not a test of its own: the process that `keys_left_by_a_killed_agent_are_flushed` kills.
#[tokio::test]
async fn victim() {
    let (Ok(tcti), Ok(saved)) = (std::env::var("VICTIM_TCTI"), std::env::var("VICTIM_AK")) else { return };
    let (public, private) = saved.split_once(':').unwrap();
    let saved = SavedAk { public: hex::decode(public).unwrap(), private: hex::decode(private).unwrap() };
    let settings = TpmSettings { tcti, command_timeout: Duration::from_secs(60), ek_handle: None };
    let tpm = Tpm::start(settings, Some(saved)).await.unwrap();
    tpm.identity().await.unwrap();
    tpm.quote(vec![1; 16], 1).await.unwrap();
    println!("\nVICTIM READY");
    std::future::pending::<()>().await;
}

fn kill_one_victim(swtpm: &Swtpm, saved: &SavedAk) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tpm_trouble::victim", "--nocapture"])
        .env("VICTIM_TCTI", swtpm.tcti())
        .env("VICTIM_AK", format!("{}:{}", hex::encode(&saved.public), hex::encode(&saved.private)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = BufReader::new(victim.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("VICTIM READY"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(ready);
}

fn loaded(swtpm: &Swtpm, kind: &str) -> usize {
    let listing = swtpm.tool("tpm2_getcap", &[kind]);
    String::from_utf8(listing).unwrap().lines().count()
}

#[tokio::test]
async fn keys_left_by_a_killed_agent_are_flushed_and_those_of_others_are_not() {
    let swtpm = Swtpm::new();
    let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
    let identity = tpm.identity().await.unwrap();
    tpm.close().await.unwrap();
    // Somebody else's key: tpm2-tools leave it loaded when there is no resource manager.
    swtpm.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-c", "others.ctx"]);
    assert_eq!(loaded(&swtpm, "handles-transient"), 1);
    for _ in 0..4 {
        kill_one_victim(&swtpm, &identity.saved_ak);
    }
    assert_eq!(
        loaded(&swtpm, "handles-transient"),
        2,
        "without a resource manager the killed one's AK stays"
    );
    let tpm = Tpm::start(settings(&swtpm), Some(identity.saved_ak.clone())).await.unwrap();
    assert_eq!(tpm.identity().await.unwrap(), identity);
    tpm.quote(vec![1; 16], 1).await.unwrap();
    tpm.close().await.unwrap();
    assert_eq!(loaded(&swtpm, "handles-transient"), 1);
}

#[tokio::test]
async fn stray_eks_give_way() {
    let swtpm = Swtpm::bare();
    for strays in [1, 3] {
        for _ in 0..strays {
            swtpm.tool("tpm2_createek", &["-Q", "-G", "rsa", "-c", "ek.ctx"]);
        }
        assert_eq!(loaded(&swtpm, "handles-transient"), strays);
        let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
        tpm.identity().await.unwrap();
        tpm.close().await.unwrap();
        assert_eq!(loaded(&swtpm, "handles-transient"), 0);
    }
}

#[tokio::test]
async fn a_tpm_full_of_other_peoples_keys_is_left_alone_and_the_operator_told() {
    let swtpm = Swtpm::new();
    for _ in 0..3 {
        swtpm.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "ecc", "-c", "others.ctx"]);
    }
    let full = Tpm::start(settings(&swtpm), None).await;
    assert!(matches!(full, Err(TpmError::OutOfSlots { .. })), "{full:?}");
    assert_eq!(loaded(&swtpm, "handles-transient"), 3);
}

#[tokio::test]
async fn sessions_left_by_a_killed_process_are_flushed() {
    let swtpm = Swtpm::new();
    // killed in the middle of an activation, and three times so
    for left in [1, 3] {
        for _ in 0..left {
            leak_a_session(swtpm.port());
        }
        assert_eq!(loaded(&swtpm, "handles-loaded-session"), left);
        let tpm = Tpm::start(settings(&swtpm), None).await.unwrap();
        tpm.identity().await.unwrap();
        tpm.close().await.unwrap();
        assert_eq!(loaded(&swtpm, "handles-loaded-session"), 0);
    }
}

/// TPM2_StartAuthSession (TPM 2.0 Part 3, 11.1) over a connection that then goes away.
fn leak_a_session(port: u16) {
    let mut command = vec![0x80, 0x01, 0, 0, 0, 0, 0x00, 0x00, 0x01, 0x76];
    command.extend([0x40, 0, 0, 7, 0x40, 0, 0, 7]); // no key, no bind
    command.extend([0, 16]); // nonce
    command.extend([1; 16]);
    command.extend([0, 0, 0x01, 0x00, 0x10, 0x00, 0x0B]); // no salt, policy session, no encryption, SHA-256
    let size = u8::try_from(command.len()).unwrap();
    command[5] = size;
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(&command).unwrap();
    let mut header = [0; 10];
    connection.read_exact(&mut header).unwrap();
    assert_eq!(header[6..], [0; 4], "the TPM starts the session");
}
