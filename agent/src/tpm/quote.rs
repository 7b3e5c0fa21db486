//! TPM2_Quote, the PCRs it covers, and the clock it carries.

use tss_esapi::Context;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{AttestInfo, Data, PcrSelectionList, PcrSlot, SignatureScheme};
use tss_esapi::traits::Marshall;

use super::error::{Failure, TpmError};
use super::open::Opened;

/// PCRs of a PC Client TPM.
pub const PCR_COUNT: u32 = 24;
/// Longest qualifying data that every TPM takes: those with SHA-256 alone have room for one name (34 bytes).
const QUALIFYING_DATA: usize = 34;

/// The TPM's clock, TPMS_CLOCK_INFO (TPM 2.0 Part 1, 36).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock {
    /// Milliseconds, over all resets.
    pub clock_ms: u64,
    /// TPM resets since manufacture: one per boot, and one per power cut.
    pub reset_count: u32,
    /// Restarts and resumes since the last reset.
    pub restart_count: u32,
    /// False after an unorderly stop, until `clock_ms` has certainly passed all earlier values.
    pub safe: bool,
}

/// A quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    /// TPMS_ATTEST, without a size in front.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// The clock inside.
    pub clock: Clock,
    /// SHA-256 over the quoted PCR values.
    pub pcr_digest: [u8; 32],
}

/// One command: the AK's authorization is the empty password.
pub(super) fn quote(open: &mut Opened, qualifying: &[u8], mask: u32) -> Result<Quoted, Failure> {
    let data = Some(qualifying)
        .filter(|data| data.len() <= QUALIFYING_DATA)
        .and_then(|data| Data::try_from(data).ok())
        .ok_or(TpmError::QualifyingData { length: qualifying.len() })?;
    let selection = selection(mask)?;
    let (attest, signature) = open.context.execute_with_session(Some(AuthSession::Password), |context| {
        context.quote(open.ak, data, SignatureScheme::Null, selection)
    })?;
    let AttestInfo::Quote { info } = attest.attested() else {
        return Err(TpmError::Malformed("quote").into());
    };
    // A TPM silently leaves out PCRs of a bank that is not active.
    let missing = mask & !selected(info.pcr_selection());
    if missing != 0 {
        return Err(TpmError::NoSha256Bank { missing }.into());
    }
    let clock = attest.clock_info();
    Ok(Quoted {
        clock: Clock {
            clock_ms: clock.clock(),
            reset_count: clock.reset_count(),
            restart_count: clock.restart_count(),
            safe: clock.safe(),
        },
        pcr_digest: info.pcr_digest().value().try_into().map_err(|_| TpmError::Malformed("PCR digest"))?,
        attest: attest.marshall()?,
        signature: signature.marshall()?,
    })
}

/// The clock by way of a quote of nothing: TPM2_ReadClock is not in the library, and what the AK signs is what counts.
pub(super) fn clock(open: &mut Opened) -> Result<Clock, Failure> {
    Ok(quote(open, &[], 0)?.clock)
}

/// PCR values, as many TPM2_PCR_Read as it takes: a TPM returns eight at once.
pub(super) fn pcrs(open: &mut Opened, mask: u32) -> Result<Vec<[u8; 32]>, Failure> {
    pcr_values(&mut open.context, mask)
}

/// As [`pcrs`], without an AK.
pub(super) fn pcr_values(context: &mut Context, mask: u32) -> Result<Vec<[u8; 32]>, Failure> {
    selection(mask)?;
    let mut values = Vec::new();
    let mut left = mask;
    while left != 0 {
        let (_, returned, digests) = context.pcr_read(selection(left)?)?;
        let read = selected(&returned);
        // Lowest first, so what comes back must be the lowest of what was asked for.
        if read == 0 || read & !left != 0 || (left & !read) & lower_than_highest(read) != 0 {
            return Err(TpmError::NoSha256Bank { missing: left }.into());
        }
        for digest in digests.value() {
            values.push(digest.value().try_into().map_err(|_| TpmError::Malformed("PCR value"))?);
        }
        left &= !read;
    }
    if values.len() != mask.count_ones() as usize {
        return Err(TpmError::Malformed("list of PCR values").into());
    }
    Ok(values)
}

fn selection(mask: u32) -> Result<PcrSelectionList, Failure> {
    if mask >> PCR_COUNT != 0 {
        return Err(TpmError::PcrMask { mask }.into());
    }
    if mask == 0 {
        return Ok(PcrSelectionList::default());
    }
    let slots = (0..PCR_COUNT)
        .map(|pcr| 1 << pcr)
        .filter(|bit| mask & bit != 0)
        .map(PcrSlot::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(PcrSelectionList::builder().with_selection(HashingAlgorithm::Sha256, &slots).build()?)
}

fn selected(list: &PcrSelectionList) -> u32 {
    list.get_selections()
        .iter()
        .filter(|bank| bank.hashing_algorithm() == HashingAlgorithm::Sha256)
        .flat_map(tss_esapi::structures::PcrSelection::selected)
        .fold(0, |mask, slot| mask | u32::from(slot))
}

fn lower_than_highest(mask: u32) -> u32 {
    mask.checked_ilog2().map_or(0, |highest| (1 << highest) - 1)
}
