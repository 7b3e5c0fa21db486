//! A key of nobody's device, with which a liar says whatever a TPM can say: its own AK, its own statements, its own
//! quotes. In software, so that nothing holds it back.

use crate::scratch::Scratch;
use anyhow::{Context, Result, anyhow, ensure};
use keylime_mqtt_liar::{Forger, Stamp};
use keylime_mqtt_schemas::messages::{AkName, Signed};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use std::process::Command;

/// TPM 2.0 Part 2, 8.3: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
const ATTRIBUTES: u32 = 0x0005_0072;
/// TPM 2.0 Part 2, 6.9.
const ATTEST_CERTIFY: u16 = 0x8017;
const ATTEST_QUOTE: u16 = 0x8018;
const SHA256: [u8; 2] = [0x00, 0x0B];
const RSASSA: [u8; 2] = [0x00, 0x14];

/// The key.
pub struct Stranger {
    key: RsaKeyPair,
}

impl Stranger {
    /// Has OpenSSL make one: ring makes no RSA keys.
    pub fn with_a_new_key(scratch: &Scratch) -> Result<Self> {
        let file = scratch.path().join("stranger.der");
        let made = Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .args(["-outform", "DER", "-out"])
            .arg(&file)
            .status()
            .context("cannot run openssl: `make setup` installs it")?;
        ensure!(made.success(), "openssl made no key");
        let made = std::fs::read(file)?;
        // PKCS #8 from some versions of OpenSSL, PKCS #1 from others.
        let key = RsaKeyPair::from_pkcs8(&made)
            .or_else(|_| RsaKeyPair::from_der(&made))
            .map_err(|error| anyhow!("ring does not take the key that OpenSSL made: {error}"))?;
        Ok(Self { key })
    }

    fn name(&self) -> Vec<u8> {
        AkName::of_public(&self.public()).map(|name| name.as_bytes().to_vec()).unwrap_or_default()
    }

    /// TPMS_ATTEST. TPM 2.0 Part 2, 10.12.12.
    fn attest(&self, stamp: Stamp<'_>) -> Vec<u8> {
        let (kind, extra) = match &stamp {
            Stamp::Statement(digest) => (ATTEST_QUOTE, digest.as_bytes().as_slice()),
            Stamp::Certify(nonce) => (ATTEST_CERTIFY, *nonce),
            Stamp::Quote(nonce, _) => (ATTEST_QUOTE, *nonce),
        };
        let mut attest = b"\xffTCG".to_vec();
        attest.extend(kind.to_be_bytes());
        attest.extend(sized(&self.name()));
        attest.extend(sized(extra));
        // Clock, resets, restarts, safe; then the firmware's version.
        attest.extend(77_000_u64.to_be_bytes());
        attest.extend([0, 0, 0, 1, 0, 0, 0, 0, 1]);
        attest.extend(1_u64.to_be_bytes());
        match stamp {
            Stamp::Certify(_) => {
                attest.extend(sized(&self.name()));
                attest.extend(sized(&self.name()));
            }
            Stamp::Statement(_) => {
                attest.extend([0, 0, 0, 0]);
                attest.extend(sized(&[]));
            }
            Stamp::Quote(_, values) => {
                attest.extend([0, 0, 0, 1]);
                attest.extend(SHA256);
                let [low, middle, high, _] = u32::from(values.mask()).to_le_bytes();
                attest.extend([3, low, middle, high]);
                attest.extend(sized(values.digest().as_bytes()));
            }
        }
        attest
    }
}

impl Forger for Stranger {
    fn public(&self) -> Vec<u8> {
        let PublicKeyComponents { n: modulus, .. }: PublicKeyComponents<Vec<u8>> = self.key.public().into();
        // TPMT_PUBLIC: RSA, SHA-256, no policy, no symmetric algorithm, RSASSA, 2048 bits, the usual exponent.
        let area = [
            &[0x00, 0x01][..],
            &SHA256,
            &ATTRIBUTES.to_be_bytes(),
            &[0, 0, 0x00, 0x10],
            &RSASSA,
            &SHA256,
            &2048_u16.to_be_bytes(),
            &[0; 4],
            &sized(&modulus),
        ];
        sized(&area.concat())
    }

    fn sign(&self, stamp: Stamp<'_>) -> Signed {
        let attest = self.attest(stamp);
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &attest, &mut signature)
            .expect("a buffer of the modulus' length");
        let signature = [&RSASSA[..], &SHA256, &sized(&signature)].concat();
        Signed {
            attest: attest.try_into().expect("a hundred bytes or two"),
            signature: signature.try_into().expect("as long as any of RSA-2048"),
        }
    }
}

/// As TPMs carry byte strings: a length in front.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}
