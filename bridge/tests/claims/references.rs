//! Claims about reference files: made by the command, read by the configuration, each mistake named with its option or key and file.

use crate::configured::Configured;
use crate::fixtures::path;
use keylime_mqtt_schemas::compact::Reference;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the command without any configuration
fn reference(arguments: &[(&str, &Path)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keylime-mqtt-bridge"));
    command.env("KEYLIME_MQTT_BRIDGE_CONFIG", "/nowhere").arg("reference");
    for (option, file) in arguments {
        command.arg(option).arg(file);
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn what_the_command_makes_the_configuration_takes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("policy.json"), format!(r#"{{"digests": {{"/bin/sh": ["{}"]}}}}"#, "ab".repeat(32)))
        .unwrap();
    let ima = path("device-secure/ascii_runtime_measurements");
    let uefi = path("device-secure/binary_bios_measurements");
    let policy = at("policy.json");
    let all = [("--ima", &*ima), ("--uefi", &*uefi), ("--policy", &*policy)];
    for some in [&all[..], &all[..1], &all[1..2], &all[2..]] {
        let file = at("made.ref");
        let (good, said) = reference(&[some, &[("-o", &*file)]].concat());
        assert!(good, "{said}");
        let made = Reference::from_file(fs::read(&file).unwrap()).unwrap();
        let named = hex::encode(made.digest().as_bytes());
        let entries = format!("{} files", made.entries());
        for part in [&named, &entries, "agent.toml", "references = ["] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let list = format!("references=[\"{}\"]", file.display());
        let configured = Configured::with("https://localhost:8881", &path("device-secure/ek_rootca.pem"));
        let checked = configured.check(&[&list]).unwrap();
        assert_eq!(
            checked.relay.references.iter().map(Reference::digest).collect::<Vec<_>>(),
            [made.digest()]
        );
        // a file that was cut on its way to the bridge
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let error = configured.check(&[&list]).map(drop).unwrap_err().to_string();
        assert!(error.contains("references: ") && error.contains("made.ref"), "{error}");
    }
}

#[test]
fn an_input_that_is_something_else_is_named_by_its_option() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("made.ref");
    let ima = path("device-secure/ascii_runtime_measurements");
    let uefi = path("device-secure/binary_bios_measurements");
    let nowhere = Path::new("/nowhere");
    let cases: [(&str, &Path); 7] = [
        ("--ima", &uefi),
        ("--uefi", &ima),
        ("--policy", &ima),
        ("--ima", nowhere),
        ("--uefi", nowhere),
        ("--policy", nowhere),
        ("-o", nowhere),
    ];
    for (option, file) in cases {
        let (good, said) = reference(&[(option, file), ("-o", &output)]);
        assert!(!good, "{option} {}: {said}", file.display());
        assert!(said.contains(option) || option == "-o", "{option}: {said}");
        assert!(!output.exists());
    }
    let (good, said) = reference(&[("--ima", &ima), ("-o", Path::new("/nowhere/made.ref"))]);
    assert!(!good && said.contains("/nowhere/made.ref"), "{said}");
    let (good, said) = reference(&[("-o", &output)]);
    assert!(
        !good && said.contains("--policy") && said.contains("--ima") && said.contains("--uefi"),
        "{said}"
    );
}
