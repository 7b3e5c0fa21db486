//! Certificates of the MQTT side: a CA, the broker's certificate, one per device (its common name is the agent
//! id) and one for the bridge; and those that must be refused.
//!
//! No subject has an organization: rumqttd would take it for a tenant.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A CA that keeps what it issues as PEM files in one directory.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM
    pub certificate: PathBuf,
    /// PEM, readable by its owner alone
    pub key: PathBuf,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From long ago to far ahead
    Now,
    /// It ended in 2020
    Expired,
}

impl Pki {
    /// A new CA in `dir`.
    pub fn in_dir(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let key = KeyPair::generate()?;
        let mut params = params("harness CA", &[], Validity::Now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pki = Self { dir: dir.to_owned(), issuer: Issuer::new(params.clone(), key) };
        let certificate = params.self_signed(pki.issuer.key())?;
        fs::write(pki.ca(), certificate.pem()).context("cannot write the CA's certificate")?;
        Ok(pki)
    }

    /// The CA's certificate, PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate with `name` as its common name, for servers that are called `hosts`.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<Certificate> {
        self.issue_with(name, hosts, Validity::Now)
    }

    /// Issues a certificate with a validity.
    pub fn issue_with(&self, name: &str, hosts: &[&str], validity: Validity) -> Result<Certificate> {
        let key = KeyPair::generate()?;
        let certificate = params(name, hosts, validity)?.signed_by(&key, &self.issuer)?;
        let stem = if validity == Validity::Now { name.to_owned() } else { format!("{name}-expired") };
        let files = Certificate {
            certificate: self.dir.join(format!("{stem}.pem")),
            key: self.dir.join(format!("{stem}.key")),
        };
        fs::write(&files.certificate, certificate.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600))?;
        Ok(files)
    }
}

fn params(name: &str, hosts: &[&str], validity: Validity) -> Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    if validity == Validity::Expired {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    Ok(params)
}
