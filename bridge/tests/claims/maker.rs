//! A TPM maker of one's own: CAs and EK certificates as OpenSSL makes them, and as it would not.

use crate::fixtures::{TestAk, bytes, sized};
use keylime_mqtt_bridge::admission::{Admission, AdmissionSettings, Claim, Decision, ek_hash};
use rustls_pki_types::UnixTime;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A maker's files; names of certificates and keys are file names in it
pub struct Maker {
    dir: TempDir,
}

/// An EK: TPM2B_PUBLIC, and the file of its public key
pub struct Ek {
    public: Vec<u8>,
    key: &'static str,
}

impl Maker {
    pub fn new() -> Self {
        let maker = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(maker.path("store")).unwrap();
        maker
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A recorded TPM's EK, RSA-2048
    pub fn rsa_ek(&self) -> Ek {
        self.openssl(&["x509", "-in", "$fixture", "-noout", "-pubkey", "-out", "ek.pub.pem"]);
        Ek { public: bytes("device-secure/ek.pub"), key: "ek.pub.pem" }
    }

    /// A new EK on P-256, in the TCG's template
    pub fn ecc_ek(&self) -> Ek {
        self.key("ecc-ek", "EC:P-256");
        self.openssl(&["pkey", "-in", "ecc-ek.key", "-pubout", "-out", "ecc-ek.pub.pem"]);
        self.openssl(&["pkey", "-in", "ecc-ek.key", "-pubout", "-outform", "DER", "-out", "ecc-ek.der"]);
        let spki = fs::read(self.path("ecc-ek.der")).unwrap();
        let point = &spki[spki.len() - 64..];
        let mut area = vec![0, 0x23, 0, 0x0B, 0, 3, 0, 0xB2];
        sized(&mut area, &[0; 32]);
        // AES-128 in CFB, no scheme, NIST P-256, no KDF
        area.extend_from_slice(&[0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10]);
        sized(&mut area, &point[..32]);
        sized(&mut area, &point[32..]);
        let mut public = Vec::new();
        sized(&mut public, &area);
        Ek { public, key: "ecc-ek.pub.pem" }
    }

    pub fn key(&self, name: &str, kind: &str) {
        let (algorithm, size) = kind.split_once(':').unwrap();
        let size = match algorithm {
            "RSA" => format!("rsa_keygen_bits:{size}"),
            _ => format!("ec_paramgen_curve:{size}"),
        };
        self.openssl(&[
            "genpkey",
            "-algorithm",
            algorithm,
            "-pkeyopt",
            &size,
            "-out",
            &format!("{name}.key"),
        ]);
    }

    /// A CA that its own key has signed, in the store
    pub fn root(&self, name: &str, kind: &str, extensions: &str) {
        self.key(name, kind);
        let key = format!("{name}.key");
        self.certificate(
            name,
            &["-subj", &format!("/C=XX/O=Maker/CN={name}"), "-key", &key],
            extensions,
            &[],
        );
        self.keep(name);
    }

    /// A CA that another has signed, in the store
    pub fn intermediate(&self, name: &str, issuer: &str, kind: &str, extensions: &str, options: &[&str]) {
        self.key(name, kind);
        self.openssl(&["pkey", "-in", &format!("{name}.key"), "-pubout", "-out", &format!("{name}.pub.pem")]);
        let subject = format!("/C=XX/O=Maker/CN={name}");
        self.issue(name, issuer, &subject, &format!("{name}.pub.pem"), extensions, options);
        self.keep(name);
    }

    /// An EK certificate without a subject, DER
    pub fn leaf(&self, issuer: &str, ek: &Ek, extensions: &str, options: &[&str]) -> Vec<u8> {
        self.issue("leaf", issuer, "/", ek.key, extensions, options);
        self.der("leaf")
    }

    fn issue(&self, name: &str, issuer: &str, subject: &str, key: &str, extensions: &str, options: &[&str]) {
        let (certificate, issuer_key) = (format!("{issuer}.pem"), format!("{issuer}.key"));
        let from = ["-subj", subject, "-force_pubkey", key, "-CA", &certificate, "-CAkey", &issuer_key];
        self.certificate(name, &from, extensions, options);
    }

    fn certificate(&self, name: &str, from: &[&str], extensions: &str, options: &[&str]) {
        let config = format!("{extensions}\n{TPM_NAME}");
        fs::write(self.path("extensions"), config).unwrap();
        let (key, file) = (from.iter().position(|word| *word == "-key"), format!("{name}.pem"));
        let mut words = vec!["x509", "-new", "-extfile", "extensions", "-out", &file];
        words
            .extend(from.iter().map(|word| if key.is_some() && *word == "-key" { "-signkey" } else { word }));
        if !options.contains(&"-days") {
            words.extend(["-days", "3650"]);
        }
        if !options.contains(&"-set_serial") {
            words.extend(["-set_serial", "0x5A"]);
        }
        words.extend(options);
        self.openssl(&words);
    }

    fn der(&self, name: &str) -> Vec<u8> {
        self.openssl(&["x509", "-in", &format!("{name}.pem"), "-outform", "DER", "-out", "out.der"]);
        fs::read(self.path("out.der")).unwrap()
    }

    /// Puts a certificate where the bridge looks
    fn keep(&self, name: &str) {
        fs::copy(self.path(&format!("{name}.pem")), self.path("store").join(format!("{name}.pem"))).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path("store").join(format!("{name}.pem"))).unwrap();
    }

    /// Changes bytes of a certificate, in all places, and signs it anew (SHA-256)
    pub fn rewritten(&self, der: &[u8], issuer: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len(), "lengths stand in front");
        let (tbs, rest) = element(contents(der));
        let mut tbs = tbs.to_vec();
        let places: Vec<_> = (0..tbs.len() - from.len()).filter(|at| tbs[*at..].starts_with(from)).collect();
        assert!(!places.is_empty(), "nothing to change");
        for at in places {
            tbs[at..at + to.len()].copy_from_slice(to);
        }
        let (algorithm, _) = element(rest);
        fs::write(self.path("tbs"), &tbs).unwrap();
        self.openssl(&["dgst", "-sha256", "-sign", &format!("{issuer}.key"), "-out", "signature", "tbs"]);
        let signature = fs::read(self.path("signature")).unwrap();
        let bits = tagged(0x03, &[&[0], signature.as_slice()].concat());
        tagged(0x30, &[&tbs, algorithm, &bits].concat())
    }

    /// Changes a CA's own certificate in the same way
    pub fn rewrite_root(&self, name: &str, from: &[u8], to: &[u8]) {
        let changed = self.rewritten(&self.der(name), name, from, to);
        fs::write(self.path("changed.der"), changed).unwrap();
        self.openssl(&["x509", "-inform", "DER", "-in", "changed.der", "-out", &format!("{name}.pem")]);
        self.keep(name);
    }

    pub fn gate(&self) -> Admission {
        let ek_ca_dir = Some(self.path("store"));
        Admission::new(&AdmissionSettings { ek_ca_dir, ..AdmissionSettings::default() }).unwrap()
    }

    /// What the bridge decides of an EK under its own hash
    pub fn decide(&self, ek: &Ek, certificate: &[u8]) -> Decision {
        let ak = TestAk::new().tpm2b();
        let hash = ek_hash(&ek.public).unwrap();
        let claim = Claim {
            id: hash.as_str(),
            ek_public: &ek.public,
            ek_certificate: Some(certificate),
            ak_public: &ak,
        };
        self.gate().decide(claim, UnixTime::now())
    }

    fn openssl(&self, words: &[&str]) {
        let fixture = crate::fixtures::path("device-secure/ek_rsa.der");
        let words =
            words.iter().map(|word| if *word == "$fixture" { fixture.to_str().unwrap() } else { word });
        let mut command = Command::new("openssl");
        let output = command.args(words).current_dir(self.dir.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What a configuration of OpenSSL needs for `dirName:tpm`
const TPM_NAME: &str = "
[tpm]
1.2.23.133.2.1 = id:414D4400
2.2.23.133.2.2 = MODEL
3.2.23.133.2.3 = id:00030001
";

/// An element, its length in as few bytes as may be
pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let header = match content.len() {
        length @ ..=0x7F => vec![tag, length as u8],
        length @ ..=0xFF => vec![tag, 0x81, length as u8],
        length => [&[tag, 0x82], (length as u16).to_be_bytes().as_slice()].concat(),
    };
    [header.as_slice(), content].concat()
}

/// The first element, with its header, and what follows it
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    let header = header(der);
    der.split_at(header.0 + header.1)
}

fn contents(der: &[u8]) -> &[u8] {
    &der[header(der).0..]
}

/// Length of the header, and of what it announces
fn header(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ ..=0x7F => (2, short.into()),
        0x81 => (3, der[2].into()),
        _ => (4, u16::from_be_bytes([der[2], der[3]]).into()),
    }
}
