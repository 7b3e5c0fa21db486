//! What a configuration may say, and what is said of a wrong one.

use keylime_mqtt_schemas::compact::ReferenceBuilder;
use keylime_mqtt_schemas::messages::Digest;

use super::*;

const BROKER: &str =
    "[broker]\nhost = \"broker.example\"\nca_file = \"ca\"\ncert_file = \"c\"\nkey_file = \"k\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::read(file.path(), &Overrides::default())
}

fn refused(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let error = Config::read(file.path(), &Overrides::default()).unwrap_err().to_string();
    error.replace(&file.path().display().to_string(), "FILE")
}

#[test]
fn a_broker_is_all_that_must_be_said() {
    let config = read(BROKER).unwrap();
    assert_eq!(config.id().unwrap(), ConfiguredId::HashOfEk);
    assert_eq!(config.topics().unwrap(), Topics::default());
    assert_eq!(config.tpm().tcti, "device:/dev/tpmrm0");
    assert_eq!((config.ima_log.as_ref(), config.uefi_log.as_ref()), (None, None));
    assert_eq!(config.attester(7, false).enrol_again_after, Duration::from_secs(3600));
}

#[test]
fn everything_can_be_said() {
    let config = read(&format!(
        "id = \"gw-7\"\ntopic_prefix = \"site/a\"\nstate_dir = \"/s\"\nima_log = \"/i\"\nuefi_log = \"/u\"\nreference = \"/r\"\n\
         boot_id_file = \"/b\"\nboot_time_file = \"/t\"\nlongest_silence_seconds = 5\nfirst_retry_seconds = 1\n\
         longest_retry_seconds = 2\nenrol_again_after_seconds = 3\npayload_bytes = 8192\nlog = \"debug\"\n\
         [tpm]\ntcti = \"swtpm:host=127.0.0.1,port=2321\"\ncommand_timeout_seconds = 9\nek_handle = 0x81010001\n{BROKER}"
    ))
    .unwrap();
    assert_eq!(config.id().unwrap(), ConfiguredId::Given("gw-7".parse().unwrap()));
    assert_eq!(config.topics().unwrap().challenge(&"gw-7".parse().unwrap()), "site/a/gw-7/challenge");
    assert_eq!(config.tpm().ek_handle, Some(0x8101_0001));
    assert_eq!(config.attester(7, false).silence_cap, Duration::from_secs(5));
}

#[test]
fn a_mistake_is_named_with_key_file_and_remedy() {
    for (text, words) in [
        (format!("[tpm]\ntctl = \"x\"\n{BROKER}"), &["FILE", "tpm", "tctl", "tcti"][..]),
        (format!("imalog = \"/x\"\n{BROKER}"), &["FILE", "imalog", "ima_log"]),
        (format!("payload_bytes = \"big\"\n{BROKER}"), &["FILE", "payload_bytes", "big"]),
        ("[broker]\nhost = \"h\"\n".to_owned(), &["FILE", "ca_file"]),
        (format!("{BROKER}[tpm"), &["FILE"]),
        (format!("id = \"a/b\"\n{BROKER}"), &["id", "a/b", "hash_ek"]),
        (format!("topic_prefix = \"a/#\"\n{BROKER}"), &["topic_prefix", "a/#", "keylime/v1"]),
        (
            format!("first_retry_seconds = 400\n{BROKER}"),
            &["first_retry_seconds = 400", "longest_retry_seconds = 300"],
        ),
        (format!("first_retry_seconds = 0\n{BROKER}"), &["first_retry_seconds", "between 1 and"]),
    ] {
        let error = refused(&text);
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

#[test]
fn the_example_that_is_shipped_says_what_the_defaults_are() {
    const EXAMPLE: &str = include_str!("../../agent.example.toml");
    let shipped = read(EXAMPLE).unwrap();
    let all: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let spelled_out = read(&all).unwrap();
    assert_eq!(format!("{spelled_out:?}"), format!("{shipped:?}"));
    assert_ne!(all, EXAMPLE);
}

#[test]
fn flags_win_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("id = \"a\"\n[tpm]\ncommand_timeout_seconds = 9\n{BROKER}")).unwrap();
    let overrides = Overrides {
        id: Some("b".to_owned()),
        tpm: Some(TpmOverrides { tcti: "swtpm".to_owned() }),
        ..Overrides::default()
    };
    let config = Config::read(file.path(), &overrides).unwrap();
    assert_eq!(config.id().unwrap(), ConfiguredId::Given("b".parse().unwrap()));
    assert_eq!(config.tpm().tcti, "swtpm");
    assert_eq!(config.tpm().command_timeout, Duration::from_secs(9), "the file's other keys stay");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::read(Path::new("/nonexistent.toml"), &Overrides::default()).unwrap_err().to_string();
    assert!(error.contains("/nonexistent.toml") && error.contains("--config"), "{error}");
}

#[test]
fn a_reference_is_read_and_a_wrong_one_named_with_its_key() {
    assert!(read(BROKER).unwrap().reference().unwrap().is_none());
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = read(&format!("reference = {:?}\n{BROKER}", file.path())).unwrap();
    let log = include_bytes!("../../tests/data/device-secure-violations/ascii_runtime_measurements");
    let mut builder = ReferenceBuilder::new();
    builder.ima_log(log);
    let good = builder.build().unwrap();
    std::fs::write(file.path(), &good).unwrap();
    assert_eq!(config.reference().unwrap().unwrap().digest(), Digest::of(&[&good]));
    for wrong in [&b""[..], b"rubbish", &good[..good.len() - 1]] {
        std::fs::write(file.path(), wrong).unwrap();
        let error = config.reference().unwrap_err().to_string();
        assert!(error.contains("reference = ") && error.contains("keylime-mqtt-bridge reference"), "{error}");
    }
    for path in ["/nonexistent/reference", "/dev/zero"] {
        let error = read(&format!("reference = {path:?}\n{BROKER}")).unwrap().reference().unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}
