//! A certificate authority of the test's own, and the files that settings name.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use figment::{
    Figment,
    providers::{Format, Toml},
};
use keylime_mqtt_broker_config::{BrokerSettings, CheckedBroker};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// A directory with `ca.pem` and what was issued, as `{name}.pem` and `{name}.key`.
pub(crate) struct Pki {
    pub(crate) dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// With a broker certificate for `localhost`.
    pub(crate) fn new() -> Self {
        Self::named("test CA")
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let pki = Self { dir, issuer: Issuer::new(params, key) };
        pki.issue("broker", &["localhost"]);
        pki
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn issue(&self, name: &str, hosts: &[&str]) {
        self.sign(name, &params(name, hosts));
    }

    pub(crate) fn issue_expired(&self, name: &str, hosts: &[&str]) {
        let mut params = params(name, hosts);
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.sign(name, &params);
    }

    fn sign(&self, name: &str, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        let key_file = self.file(&format!("{name}.key"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Settings as an operator writes them, with reconnects as quick as they can be set.
    pub(crate) fn settings(&self, name: &str, port: u16, more: &str) -> BrokerSettings {
        let dir = self.dir.path().display();
        let most = format!(
            "host = 'localhost'\nport = {port}\nca_file = '{dir}/ca.pem'\ncert_file = '{dir}/{name}.pem'\n\
             key_file = '{dir}/{name}.key'\nreconnect_first_seconds = 1\nreconnect_longest_seconds = 1\n"
        );
        table(&[&most, more]).unwrap()
    }

    /// Issues a certificate and checks settings with it.
    pub(crate) fn client(&self, name: &str, port: u16, more: &str) -> CheckedBroker {
        self.issue(name, &[]);
        self.settings(name, port, more).check().unwrap()
    }
}

/// Reads a `[broker]` table the way agent and bridge do; later layers win.
pub(crate) fn table(layers: &[&str]) -> Result<BrokerSettings, Box<figment::Error>> {
    layers
        .iter()
        .fold(Figment::new(), |table, layer| table.merge(Toml::string(layer)))
        .extract()
        .map_err(Box::new)
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params
}
