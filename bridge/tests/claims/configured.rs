//! A configuration file with all the files it names

use crate::fixtures::path;
use crate::scripted::Scripted;
use keylime_mqtt_bridge::config::{Checked, Config, ConfigError};
use rcgen::{CertificateParams, KeyPair};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub struct Configured {
    dir: TempDir,
    pub text: String,
}

impl Configured {
    /// For a scripted Keylime; broker, TPM makers and all else are there
    pub fn at(keylime: &Scripted) -> Self {
        Self::with(keylime.settings.url.as_str(), &keylime.ca_file())
    }

    pub fn with(keylime: &str, ca_file: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["bridge".to_owned()]).unwrap().self_signed(&key).unwrap();
        for name in ["broker-ca.pem", "bridge.pem"] {
            fs::write(at(name), certificate.pem()).unwrap();
        }
        fs::write(at("bridge.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(at("bridge.key"), Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(at("ek-ca")).unwrap();
        for name in ["ek_issuer.pem", "ek_rootca.pem"] {
            fs::copy(path(&format!("device-secure/{name}")), at("ek-ca").join(name)).unwrap();
        }
        fs::write(at("admitted"), "").unwrap();
        let here = dir.path().display();
        let ca = ca_file.display();
        let text = format!(
            r#"ticket_key_file = "{here}/ticket.keys"
status_socket = "{here}/status.sock"
[broker]
host = "localhost"
ca_file = "{here}/broker-ca.pem"
cert_file = "{here}/bridge.pem"
key_file = "{here}/bridge.key"
[verifier]
url = "{keylime}"
ca_file = "{ca}"
[registrar]
url = "{keylime}"
ca_file = "{ca}"
[admission]
ek_ca_dir = "{here}/ek-ca"
list_file = "{here}/admitted"
"#
        );
        Self { dir, text }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self) -> PathBuf {
        let file = self.path("bridge.toml");
        fs::write(&file, &self.text).unwrap();
        file
    }

    pub fn check(&self, overrides: &[&str]) -> Result<Checked, ConfigError> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Config::read(&self.file(), &overrides)?.check()
    }
}
