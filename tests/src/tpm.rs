//! The few TPM commands with which the harness plays firmware and kernel, extending PCRs and shutting down, and looks
//! at what agents leave behind: handles, the lockout counter, the clock.
//!
//! Plain TPM 2.0 commands over swtpm's data channel, so that the harness shares no code with the agent it tests.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::TcpStream;

// TPM 2.0 Part 2, 6.3 (TPM_ALG_ID), 6.5.2 (TPM_CC) and 6.9 (TPM_ST).
const ALG_SHA1: u16 = 0x0004;
const ALG_SHA256: u16 = 0x000B;
const CC_PCR_EXTEND: u32 = 0x0182;
const CC_PCR_READ: u32 = 0x017E;
const CC_SHUTDOWN: u32 = 0x0145;
const CC_GET_CAPABILITY: u32 = 0x017A;
const CC_READ_CLOCK: u32 = 0x0181;
const CC_CLOCK_SET: u32 = 0x0128;
const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const CAP_HANDLES: u32 = 1;
const CAP_PCRS: u32 = 5;
const CAP_TPM_PROPERTIES: u32 = 6;
/// TPM_PT_LOCKOUT_COUNTER
const LOCKOUT_COUNTER: u32 = 0x020E;
/// Where the handles of loaded sessions and of transient objects begin (TPM_HT)
const LOADED_SESSIONS: u32 = 0x0200_0000;
const TRANSIENT_OBJECTS: u32 = 0x8000_0000;

/// The owner, whose password is empty
const RH_OWNER: u32 = 0x4000_0001;

/// TPMS_AUTH_COMMAND of TPM_RS_PW with an empty password: handle, nonce, attributes, password.
const PASSWORD_SESSION: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// Tag, size and code (command) or result (response).
pub(crate) const HEADER: usize = 10;

/// Larger than any command or response of a TPM (TPM2_MAX_COMMAND_SIZE is 4096).
const FRAME_MAX: usize = 8192;

/// A PCR bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// SHA-1, 20 bytes
    Sha1,
    /// SHA-256, 32 bytes
    Sha256,
}

impl Bank {
    /// TPM_ALG_ID
    pub fn id(self) -> u16 {
        match self {
            Self::Sha1 => ALG_SHA1,
            Self::Sha256 => ALG_SHA256,
        }
    }

    /// The bank with this TPM_ALG_ID, if it is one that the harness knows.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            ALG_SHA1 => Some(Self::Sha1),
            ALG_SHA256 => Some(Self::Sha256),
            _ => None,
        }
    }

    /// This bank's digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => sha1::Sha1::digest(data).to_vec(),
            Self::Sha256 => Sha256::digest(data).to_vec(),
        }
    }
}

/// What occupies a TPM's few slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handles {
    /// Transient objects
    pub objects: u32,
    /// Loaded sessions
    pub sessions: u32,
}

/// A connection to a TPM's data channel.
#[derive(Debug)]
pub struct Tpm {
    stream: TcpStream,
}

impl Tpm {
    /// Connects to the TPM on this port of the loopback interface.
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).context("no TPM listens")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// The banks that hold PCRs.
    pub fn banks(&mut self) -> Result<Vec<Bank>> {
        let answer = self.capability(CAP_PCRS, 0, 16)?;
        // moreData, capability, count; then per bank: algorithm, size of select, select
        let mut rest = answer.get(9..).context("short TPMS_CAPABILITY_DATA")?;
        let mut banks = Vec::new();
        while let [high, low, size, tail @ ..] = rest {
            let (select, next) = tail.split_at_checked(usize::from(*size)).context("short PCR selection")?;
            let used = select.iter().any(|byte| *byte != 0);
            banks.extend(Bank::from_id(u16::from_be_bytes([*high, *low])).filter(|_| used));
            rest = next;
        }
        Ok(banks)
    }

    /// Extends one PCR by one digest a bank.
    pub fn extend(&mut self, pcr: u32, digests: &[(Bank, Vec<u8>)]) -> Result<()> {
        let mut body = pcr.to_be_bytes().to_vec();
        body.extend_from_slice(&u32::try_from(PASSWORD_SESSION.len())?.to_be_bytes());
        body.extend_from_slice(&PASSWORD_SESSION);
        body.extend_from_slice(&u32::try_from(digests.len())?.to_be_bytes());
        for (bank, digest) in digests {
            body.extend_from_slice(&bank.id().to_be_bytes());
            body.extend_from_slice(digest);
        }
        self.command(ST_SESSIONS, CC_PCR_EXTEND, &body).map(drop)
    }

    /// The value of one PCR.
    pub fn read(&mut self, pcr: u32, bank: Bank) -> Result<Vec<u8>> {
        let mut select = [0u8; 3];
        *select.get_mut(usize::try_from(pcr / 8)?).context("a TPM has 24 PCRs")? |= 1 << (pcr % 8);
        let mut body = 1u32.to_be_bytes().to_vec();
        body.extend_from_slice(&bank.id().to_be_bytes());
        body.push(3);
        body.extend_from_slice(&select);
        let answer = self.command(ST_NO_SESSIONS, CC_PCR_READ, &body)?;
        let size = bank.digest(b"").len();
        answer
            .len()
            .checked_sub(size)
            .and_then(|from| answer.get(from..))
            .map(<[u8]>::to_vec)
            .context("short")
    }

    /// TPM2_Shutdown(CLEAR): what firmware sends before an orderly power-off.
    pub fn shutdown(&mut self) -> Result<()> {
        self.command(ST_NO_SESSIONS, CC_SHUTDOWN, &[0, 0]).map(drop)
    }

    /// Transient objects and loaded sessions: what a process that was killed may have left.
    pub fn handles(&mut self) -> Result<Handles> {
        let (objects, sessions) = (self.count(TRANSIENT_OBJECTS)?, self.count(LOADED_SESSIONS)?);
        Ok(Handles { objects, sessions })
    }

    /// Failed authorisations and TPM resets without TPM2_Shutdown, as the TPM counts them towards its lockout.
    pub fn lockout_counter(&mut self) -> Result<u32> {
        let answer = self.capability(CAP_TPM_PROPERTIES, LOCKOUT_COUNTER, 1)?;
        match answer.get(9..17) {
            Some(&[0, 0, 2, 0x0E, a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
            other => bail!("no lockout counter in {other:02x?}"),
        }
    }

    /// Milliseconds of its clock, and whether it vouches that it never showed a later one.
    pub fn clock(&mut self) -> Result<(u64, bool)> {
        let answer = self.command(ST_NO_SESSIONS, CC_READ_CLOCK, &[])?;
        // TPMS_TIME_INFO: time, then clock, resetCount, restartCount, safe
        let clock = answer.get(8..16).context("short TPMS_TIME_INFO")?;
        let safe = answer.get(24).context("short TPMS_TIME_INFO")?;
        Ok((u64::from_be_bytes(clock.try_into()?), *safe == 1))
    }

    /// Sets its clock ahead, as its owner may; it cannot be set back.
    pub fn set_clock(&mut self, milliseconds: u64) -> Result<()> {
        let mut body = RH_OWNER.to_be_bytes().to_vec();
        body.extend_from_slice(&u32::try_from(PASSWORD_SESSION.len())?.to_be_bytes());
        body.extend_from_slice(&PASSWORD_SESSION);
        body.extend_from_slice(&milliseconds.to_be_bytes());
        self.command(ST_SESSIONS, CC_CLOCK_SET, &body).map(drop)
    }

    fn count(&mut self, from: u32) -> Result<u32> {
        let answer = self.capability(CAP_HANDLES, from, 64)?;
        match answer.get(5..9) {
            Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
            other => bail!("no count of handles in {other:02x?}"),
        }
    }

    fn capability(&mut self, which: u32, from: u32, count: u32) -> Result<Vec<u8>> {
        let body: Vec<u8> = [which, from, count].into_iter().flat_map(u32::to_be_bytes).collect();
        self.command(ST_NO_SESSIONS, CC_GET_CAPABILITY, &body)
    }

    fn command(&mut self, tag: u16, code: u32, body: &[u8]) -> Result<Vec<u8>> {
        let mut frame = tag.to_be_bytes().to_vec();
        frame.extend_from_slice(&u32::try_from(HEADER + body.len())?.to_be_bytes());
        frame.extend_from_slice(&code.to_be_bytes());
        frame.extend_from_slice(body);
        self.stream.write_all(&frame)?;
        let answer = read_frame(&mut self.stream)?.context("the TPM closed the connection")?;
        match answer.get(6..HEADER) {
            Some([0, 0, 0, 0]) => Ok(answer.get(HEADER..).unwrap_or_default().to_vec()),
            other => bail!("the TPM answered command {code:#x} with {other:02x?}"),
        }
    }
}

/// Reads one command or response; `None` where the peer closed between two.
pub(crate) fn read_frame(from: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let mut frame = vec![0; HEADER];
    let (first, rest) = frame.split_at_mut(1);
    if from.read(first)? == 0 {
        return Ok(None);
    }
    from.read_exact(rest)?;
    let size = match frame.get(2..6) {
        Some(&[a, b, c, d]) => usize::try_from(u32::from_be_bytes([a, b, c, d]))?,
        _ => 0,
    };
    ensure!((HEADER..=FRAME_MAX).contains(&size), "a TPM frame of {size} bytes");
    frame.resize(size, 0);
    from.read_exact(frame.get_mut(HEADER..).unwrap_or_default())?;
    Ok(Some(frame))
}
