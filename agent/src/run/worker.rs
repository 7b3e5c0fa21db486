//! The thread on which the device works: TPM and logs on one side, the exchange on the other.
//!
//! The exchange asks for one piece of work at a time and waits for its outcome, so an errand that finds no room is answered
//! as failed: an exchange that waits for ever would be silent for ever.

use keylime_mqtt_schemas::exchange::attester::{Done, Work};
use keylime_mqtt_schemas::messages::Bounded;
use keylime_mqtt_schemas::messages::limits::MAX_TICKET;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::evidence::{Device, EvidenceError};
use crate::tpm::TpmError;

/// One piece of work, and things to keep meanwhile. A bridge sends a ticket with a session, so more than a few mean that
/// the TPM hangs.
const ERRANDS: usize = 16;

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Errand {
    /// Work for the exchange.
    Work(Work),
    /// Keep: the registrar accepted the AK.
    KeepEnrolled,
    /// Keep: a ticket.
    KeepTicket(Bounded<MAX_TICKET>),
}

/// What comes back.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Of a piece of work.
    Done(Box<Done>),
    /// Instead of that: the TPM was cleared or replaced, and the device has a new AK.
    NewAk,
}

/// The other end of the thread.
#[derive(Debug)]
pub(super) struct Worker {
    errands: mpsc::Sender<Errand>,
    outcomes: mpsc::Receiver<Outcome>,
}

impl Worker {
    /// Starts the thread; it ends with this value.
    pub(super) fn spawn(device: Device) -> std::io::Result<Self> {
        let (errands, taken) = mpsc::channel(ERRANDS);
        let (done, outcomes) = mpsc::channel(1);
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || runtime.block_on(serve(device, taken, done)))?;
        Ok(Self { errands, outcomes })
    }

    /// Gives the thread something to do.
    ///
    /// # Errors
    /// There is no room, or the thread has ended.
    pub(super) fn give(&self, errand: Errand) -> Result<(), TrySendError<Errand>> {
        self.errands.try_send(errand)
    }

    /// What came of the work; `None` when the thread has ended, which is a defect. Cancel safe.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.recv().await
    }
}

async fn serve(mut device: Device, mut errands: mpsc::Receiver<Errand>, outcomes: mpsc::Sender<Outcome>) {
    while let Some(errand) = errands.recv().await {
        let outcome = match errand {
            Errand::Work(work) => work_on(&mut device, &work).await,
            Errand::KeepEnrolled => {
                report("the enrolment cannot be kept", device.remember_enrolled());
                continue;
            }
            Errand::KeepTicket(ticket) => {
                report("the ticket cannot be kept", device.remember_ticket(ticket));
                continue;
            }
        };
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

fn report<E: std::fmt::Display>(what: &str, kept: Result<(), E>) {
    if let Err(error) = kept {
        tracing::error!(%error, "{what}; the device goes on without");
    }
}

async fn work_on(device: &mut Device, work: &Work) -> Outcome {
    let error = match device.work(work).await {
        Ok(done) => return Outcome::Done(Box::new(done)),
        Err(error) => error,
    };
    if matches!(error, EvidenceError::Tpm(TpmError::AkReplaced { .. })) {
        return match device.adopt_new_ak().await {
            Ok(()) => Outcome::NewAk,
            Err(error) => {
                tracing::warn!(%error, "the new AK cannot be taken on yet");
                Outcome::Done(Box::new(Done::Failed))
            }
        };
    }
    match &error {
        EvidenceError::Clock(_) | EvidenceError::Rebooted => tracing::info!(work = name(work), "{error}"),
        EvidenceError::LogAhead { .. } => tracing::debug!(work = name(work), "{error}"),
        EvidenceError::Store(_) => tracing::error!(work = name(work), "{error}"),
        EvidenceError::Tpm(_) | EvidenceError::Log(_) | EvidenceError::TooLong { .. } => {
            tracing::warn!(work = name(work), "{error}");
        }
    }
    Outcome::Done(Box::new(device.excuse(work, &error).await))
}

/// A word for the log; the work itself holds nonces.
fn name(work: &Work) -> &'static str {
    match work {
        Work::Introduce => "introduce",
        Work::Describe => "describe",
        Work::Activate { .. } => "activate",
        Work::Prove(_) => "prove",
        Work::Collect(_) => "collect",
        Work::Read(_) => "read",
        Work::State { .. } => "state",
    }
}
