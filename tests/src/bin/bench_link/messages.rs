//! What was said, as the observer at the broker saw it: kinds, sizes, and the bytes of each field.
//!
//! Read as plain CBOR, without the project's own codec: the sizes are those of what really travelled, and a field
//! that this file has no name for is still counted.

use anyhow::{Context, Result};
use ciborium::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// A message of the device or to it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Since the Unix epoch, when the broker passed it on
    pub(crate) at: Duration,
    /// From the device
    pub(crate) up: bool,
    /// Its kind, a word of the contract
    pub(crate) kind: String,
    /// Topic and payload, as MQTT carries them
    pub(crate) topic: usize,
    pub(crate) payload: Vec<u8>,
}

const UP: [&str; 9] =
    ["Enrol", "Activation", "Ready", "Proof", "Evidence", "Blob", "Statement", "NotYet", "Unchanged"];
const DOWN: [&str; 9] =
    ["Credential", "Enrolled", "Prove", "Challenge", "Need", "State", "Accepted", "Later", "Refused"];

/// `log-kind` in the contract's grammar.
const IMA: u64 = 1;

/// A kind's fields by their place: keys from the outside in.
const NAMES: [(&str, &[u64], &str); 54] = [
    ("Prove", &[0], "nonce"),
    ("Proof", &[0], "nonce tag"),
    ("Proof", &[1, 0], "TPMS_ATTEST"),
    ("Proof", &[1, 1], "TPMT_SIGNATURE"),
    ("Need", &[0], "which log"),
    ("Need", &[1], "boot tag"),
    ("Need", &[2], "from"),
    ("Need", &[3], "up to"),
    ("Need", &[4], "reference known"),
    ("Blob", &[0], "which log"),
    ("Blob", &[1], "boot tag"),
    ("Blob", &[2], "offset"),
    ("Blob", &[4], "size of the packed log"),
    ("Accepted", &[0], "seconds to the next"),
    ("Accepted", &[1], "outcome"),
    ("Ready", &[0], "boot marker"),
    ("Ready", &[1], "boot time"),
    ("Ready", &[2], "PCRs to be had"),
    ("Ready", &[3], "AK public"),
    ("Ready", &[4, 0], "statement of the boot: TPMS_ATTEST"),
    ("Ready", &[4, 1], "statement of the boot: TPMT_SIGNATURE"),
    ("Ready", &[5], "IMA lines"),
    ("Ready", &[6, 0], "digest of the UEFI log"),
    ("Ready", &[6, 1], "size of the UEFI log"),
    ("Ready", &[7], "ticket"),
    ("Ready", &[8], "seconds asleep"),
    ("Ready", &[9], "digest of the reference"),
    ("Blob", &[3], "part of the UEFI log"),
    ("Unchanged", &[0], "tag of the facts"),
    ("Unchanged", &[1], "IMA lines"),
    ("Challenge", &[0], "nonce"),
    ("Challenge", &[1], "boot tag"),
    ("Challenge", &[2], "PCR selection"),
    ("Challenge", &[3], "seconds good for"),
    ("Challenge", &[4], "seconds of silence"),
    ("Challenge", &[5], "IMA line to send from"),
    ("Challenge", &[6], "tag of the PCR values held"),
    ("Challenge", &[7], "ticket"),
    ("Challenge", &[8], "full form asked for"),
    ("Challenge", &[9], "reference known"),
    ("Evidence", &[0], "nonce tag"),
    ("Evidence", &[1], "quote"),
    ("Evidence", &[1, 0], "quote, full"),
    ("Evidence", &[1, 0, 0], "quote: TPMS_ATTEST"),
    ("Evidence", &[1, 0, 1], "quote: TPMT_SIGNATURE"),
    ("Evidence", &[1, 1], "quote, brief"),
    ("Evidence", &[1, 1, 0], "quote: TPM clock"),
    ("Evidence", &[1, 1, 1], "quote: signature"),
    ("Evidence", &[1, 1, 2], "quote: restart count"),
    ("Evidence", &[2], "PCR values"),
    ("Evidence", &[2, 0], "PCR values: which"),
    ("Evidence", &[2, 1], "PCR values: changed"),
    ("Evidence", &[3, 0], "IMA: line it begins at"),
    ("Evidence", &[3, 1], "IMA: new entries"),
];

impl Message {
    /// Reads a payload; `None` for what is not of this exchange (presence, results).
    pub(crate) fn read(at: Duration, topic: &str, payload: Vec<u8>) -> Option<Self> {
        let up = topic.contains("/evidence");
        let presence = topic.ends_with("/presence");
        if !up && !presence && !topic.ends_with("/challenge") {
            return None;
        }
        let kind = if presence { None } else { kind(up, &payload) };
        let kind = kind.unwrap_or_else(|| if presence { "Presence" } else { "Fragment" }.to_owned());
        let up = up || presence;
        Some(Self { at, up, kind, topic: topic.len(), payload })
    }

    /// The nonce of a challenge, by which repeats are told from a new one.
    pub(crate) fn nonce(&self) -> Option<Vec<u8>> {
        let body = body(self.up, &self.payload)?.1;
        body.as_map()?.iter().find(|(key, _)| number(key) == Some(0))?.1.as_bytes().cloned()
    }

    /// Bytes of each field, and of what holds them together.
    pub(crate) fn fields(&self) -> Result<BTreeMap<String, usize>> {
        let mut fields = BTreeMap::new();
        let body = if self.kind == "Presence" { None } else { body(self.up, &self.payload) };
        let body = body.map(|(_, body)| body);
        if let Some(body) = &body {
            self.leaves(body, &mut Vec::new(), &mut fields)?;
        }
        let ima = |(key, value): &(Value, Value)| number(key) == Some(0) && number(value) == Some(IMA);
        if self.kind == "Blob" && body.as_ref().and_then(Value::as_map).is_some_and(|map| map.iter().any(ima))
        {
            // The same field of another log.
            let part = fields.remove("part of the UEFI log");
            fields.extend(part.map(|size| ("part of the IMA log".to_owned(), size)));
        }
        let named: usize = fields.values().sum();
        let frame = self.payload.len().checked_sub(named).context("fields larger than their message")?;
        fields.insert("CBOR: kind and maps".to_owned(), frame);
        Ok(fields)
    }

    fn leaves(&self, value: &Value, path: &mut Vec<u64>, fields: &mut BTreeMap<String, usize>) -> Result<()> {
        for (key, value) in value.as_map().into_iter().flatten() {
            path.push(number(key).context("a key that is no number")?);
            if value.is_map() {
                self.leaves(value, path, fields)?;
            } else {
                let known = NAMES.iter().find(|(kind, at, _)| *kind == self.kind && at == path);
                let name = match known {
                    Some((_, _, name)) => (*name).to_owned(),
                    None => {
                        format!("field {}", path.iter().map(u64::to_string).collect::<Vec<_>>().join("."))
                    }
                };
                *fields.entry(name).or_default() += size(key)? + size(value)?;
            }
            path.pop();
        }
        Ok(())
    }
}

fn number(key: &Value) -> Option<u64> {
    key.as_integer()?.try_into().ok()
}

/// The kind's number and what it maps to.
fn body(up: bool, payload: &[u8]) -> Option<(u64, Value)> {
    let whole: Value = ciborium::from_reader(payload).ok()?;
    let question = if up {
        whole
    } else {
        whole.into_map().ok()?.into_iter().find(|(key, _)| number(key) == Some(0))?.1
    };
    let (kind, body) = question.into_map().ok()?.into_iter().next()?;
    Some((number(&kind)?, body))
}

fn kind(up: bool, payload: &[u8]) -> Option<String> {
    let (number, _) = body(up, payload)?;
    let words = if up { UP } else { DOWN };
    let word = usize::try_from(number).ok().and_then(|number| words.get(number));
    Some(word.map_or_else(|| format!("kind {number}"), |word| (*word).to_owned()))
}

fn size(value: &Value) -> Result<usize> {
    let mut encoded = Vec::new();
    ciborium::into_writer(value, &mut encoded)?;
    Ok(encoded.len())
}
