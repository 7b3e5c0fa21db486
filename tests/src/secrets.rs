//! What must show nowhere: secrets, the one file in which each may be, and the forms in which one might show.

use crate::device::Device;
use crate::pki::Certificate;
use crate::world::World;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use keylime_mqtt_bridge::ticket::TicketKeys;
use keylime_mqtt_schemas::codec::decode;
use keylime_mqtt_schemas::messages::{Question, Up};
use keylime_mqtt_schemas::wire::unpack_down;
use std::fs;
use std::path::{Path, PathBuf};

/// Before the private key itself in the PKCS #8 of a key on P-256 (RFC 5915: version 1, then 32 bytes).
const BEFORE_SCALAR: [u8; 5] = [2, 1, 1, 4, SCALAR_LEN];
const SCALAR_LEN: u8 = 32;
/// Lines of such a key in PEM that hold some of the private key; after them comes the public one.
const PRIVATE_LINES: usize = 2;
/// What the registrar and the TPM share of a device, out of the registrar's database.
const CREDENTIAL: &str = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(\
                          'select key from registrarmain where agent_id = ?', sys.argv[2:]).fetchone()[0])";

/// Something that must show nowhere, or in one file alone.
#[derive(Debug)]
pub struct Secret {
    /// In words
    pub what: &'static str,
    /// As it is
    pub bytes: Vec<u8>,
    home: Option<PathBuf>,
}

impl Secret {
    /// It is in no file.
    pub fn new(what: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { what, bytes: bytes.into(), home: None }
    }

    /// It is kept in this file.
    pub fn kept_in(what: &'static str, bytes: impl Into<Vec<u8>>, file: &Path) -> Self {
        Self { home: Some(file.to_owned()), ..Self::new(what, bytes) }
    }

    /// Whether this file is where it is kept.
    pub fn may_be_in(&self, file: &Path) -> bool {
        self.home.as_deref() == Some(file)
    }

    /// Whether a [`text`] holds it: as it is, in hex, in base64 or as Rust prints bytes.
    pub fn shows_in(&self, shown: &str) -> bool {
        let printed = format!("{:?}", self.bytes);
        [
            text(&self.bytes),
            hex::encode(&self.bytes),
            hex::encode_upper(&self.bytes),
            STANDARD_NO_PAD.encode(&self.bytes),
            printed.trim_matches(['[', ']']).to_owned(),
        ]
        .iter()
        .any(|form| shown.contains(form))
    }
}

/// Bytes to be searched, a character each: the search for text is the quick one.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// What agent and bridge keep in files: their keys at the broker, the keys of tickets, the AK's private part.
pub fn kept(world: &World, device: &Device) -> Result<Vec<Secret>> {
    let mut secrets = private_key("agent's key at the broker", &device.access().certificate)?;
    secrets.extend(private_key("bridge's key at the broker", &world.bridge.settings().broker.certificate)?);
    let file = ticket_keys(world);
    for line in fs::read_to_string(&file)?.lines() {
        secrets.push(Secret::kept_in("ticket key", hex::decode(line)?, &file));
    }
    let file = device.state_dir().join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    let private = state.get("ak_private").and_then(serde_json::Value::as_str).context("no AK is kept")?;
    secrets.push(Secret::kept_in("AK's private part", STANDARD.decode(private)?, &file));
    Ok(secrets)
}

/// The key itself, and the lines of its file that hold some of it.
fn private_key(what: &'static str, certificate: &Certificate) -> Result<Vec<Secret>> {
    let file = &certificate.key;
    let text = fs::read_to_string(file)?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(lines.concat())?;
    let at = der.windows(BEFORE_SCALAR.len()).position(|window| window == BEFORE_SCALAR);
    let from = at.context("no key on P-256")? + BEFORE_SCALAR.len();
    let scalar = der.get(from..from + usize::from(SCALAR_LEN)).context("a key that is cut off")?;
    let lines = lines.into_iter().take(PRIVATE_LINES).map(|line| Secret::kept_in(what, line, file));
    Ok(lines.chain([Secret::kept_in(what, scalar, file)]).collect())
}

/// Nonces, credentials, auth tags and tickets of this device that passed the broker: no secrets there, but nothing for logs.
pub fn passed(world: &World, device: &Device) -> Result<Vec<Secret>> {
    let mut secrets = Vec::new();
    let [challenge, evidence] =
        ["challenge", "evidence"].map(|end| format!("keylime/v1/{}/{end}", device.id()));
    for seen in world.observer()?.seen() {
        if seen.topic == challenge {
            match unpack_down(&seen.payload)?.question {
                Question::Credential(message) => {
                    secrets.push(Secret::new("credential", message.blob.as_slice()));
                }
                Question::Prove(message) => {
                    secrets.push(Secret::new("session nonce", message.nonce.as_bytes()));
                }
                Question::Challenge(message) => {
                    secrets.push(Secret::new("nonce", message.nonce.as_bytes()));
                    secrets.extend(message.ticket.map(|ticket| Secret::new("ticket", ticket.as_slice())));
                }
                _ => {}
            }
        } else if seen.topic == evidence
            && let Ok(Up::Activation(message)) = decode::<Up>(&seen.payload)
        {
            secrets.push(Secret::new("auth tag", message.auth_tag.as_bytes()));
        }
    }
    let all = ["credential", "auth tag", "session nonce", "nonce", "ticket"];
    let missing: Vec<_> =
        all.iter().filter(|what| !secrets.iter().any(|secret| secret.what == **what)).collect();
    ensure!(
        missing.is_empty(),
        "these never passed the broker, so a search proves nothing of them: {missing:?}"
    );
    Ok(secrets)
}

/// The token of the device's session, out of the last ticket of `passed`.
pub fn session_token(world: &World, device: &Device, passed: &[Secret]) -> Result<String> {
    let keys = TicketKeys::open(&ticket_keys(world))?;
    let verifier = format!("{}/", world.keylime.verifier_url());
    let ticket = passed.iter().rfind(|secret| secret.what == "ticket").context("no ticket")?;
    let opened =
        keys.open_ticket(device.id(), &verifier, &ticket.bytes).context("a ticket of this bridge")?;
    Ok(opened.token.expose().to_owned())
}

/// The secret in the device's credential, as text in base64 and as what that stands for.
pub fn credential(world: &World, device: &Device) -> Result<[Secret; 2]> {
    let database = world.keylime.state().join("reg_data.sqlite");
    let output =
        world.keylime.program("python").args(["-c", CREDENTIAL]).arg(database).arg(device.id()).output()?;
    let text = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(text.len() >= 32, "no secret at the registrar: {}", String::from_utf8_lossy(&output.stderr));
    let bytes = STANDARD.decode(&text)?;
    Ok([text.into_bytes(), bytes].map(|form| Secret::new("credential's secret", form)))
}

fn ticket_keys(world: &World) -> PathBuf {
    world.scratch.path().join("bridge/ticket.key")
}
