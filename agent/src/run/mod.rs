//! The agent at work: a shell around the exchange's [`Attester`].
//!
//! ```text
//! broker  -> Incoming -> Attester -> Errand -> worker (TPM, logs)
//! broker  <- Link     <- Attester <- Done   <-
//! ```
//!
//! The machine decides; here its wishes are carried out. Nothing in this loop blocks: the TPM and the logs have a thread of
//! their own ([`worker`]), the link queues.

mod ending;
mod payload;
mod said;
mod session;
mod worker;

use std::time::Duration;

use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::messages::PcrMask;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::config::{Config, ConfigError, ConfiguredId};
use crate::evidence::{Device, Equipment};
use crate::logs::LogError;
use crate::logs::ima::ImaLog;
use crate::logs::uefi::UefiLog;
use crate::store::{Store, StoreError};
use crate::tpm::{HOPELESS_AFTER, Identity, Tpm, TpmError};

pub use ending::{EXIT_CODES, Ending};
use session::Session;

/// First pause before the TPM is tried again at start; doubles.
const TPM_PAUSE: Duration = Duration::from_secs(1);
/// Longest such pause.
const LONGEST_TPM_PAUSE: Duration = Duration::from_secs(60);
/// The TPM gets so long to flush the AK when the agent ends; a hanging one must not hang the service manager.
const FAREWELL: Duration = Duration::from_secs(5);

/// For how long to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Until a signal.
    Service,
    /// Wake, attest, end.
    Once {
        /// Latest end.
        deadline: Duration,
        /// Seconds until the next run; 0 when there is no fixed time.
        sleep: u32,
    },
    /// Wake, attest, sleep, in one process until a signal.
    Every {
        /// Seconds from wake to wake.
        seconds: u32,
        /// Latest end of a wake.
        deadline: Duration,
    },
}

/// Why the agent cannot run on. Exits with code 1, or 2 when the configuration is at fault.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A configured log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The TPM, in a way that waiting does not mend.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The TPM has not come back from one command; only a new process can use it again.
    #[error(
        "the TPM has not answered one command for {HOPELESS_AFTER:?}; ending, so that the service manager starts anew"
    )]
    TpmHangs,
    /// The operating system's.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A defect.
    #[error("the thread of the device has ended; this is a defect of the agent")]
    WorkerEnded,
}

/// SIGTERM and SIGINT.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| {
            signal(kind).map_err(|source| RunError::System { what: "no signals can be received", source })
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits until it is time to end. Cancel safe.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

/// Runs the agent. Needs a runtime with I/O and time.
pub async fn run(config: &Config, mode: Mode) -> Result<Ending, RunError> {
    let deadline = match mode {
        Mode::Service | Mode::Every { .. } => None,
        Mode::Once { deadline, .. } => Some(Instant::now() + deadline),
    };
    let broker = config.broker()?;
    let reference = config.reference()?;
    check_files(config)?;
    let store = Store::open(&config.state_dir)?;
    let mut stop = Stop::listen()?;
    let (tpm, identity) = tokio::select! {
        ready = ready_tpm(config, &store) => ready?,
        () = stop.asked() => return Ok(Ending::Stopped),
        () = reached(deadline) => return Ok(Ending::NoTpm),
    };
    let id = agent_id(config, &identity)?;
    tracing::info!(
        %id,
        ek_hash = identity.ek_hash,
        ak_name = hex::encode(identity.ak_name),
        ek_certificate = identity.ek_certificate.is_some(),
        broker = broker.address(),
        "keylime-mqtt-agent {}", env!("CARGO_PKG_VERSION")
    );
    let equipment = Equipment {
        boot: config.boot(),
        ima: config.ima_log.as_deref().map(ImaLog::new),
        uefi: config.uefi_log.as_deref().map(UefiLog::new),
        reference,
        sleep: match mode {
            Mode::Service => None,
            Mode::Once { sleep: seconds, .. } | Mode::Every { seconds, .. } => Some(seconds),
        },
        pcrs: config.pcrs(),
        payload_bytes: config.payload_bytes,
    };
    let device = Device::new(id.clone(), tpm.clone(), identity, equipment, store)?;
    let session = Session::start(config, broker, id, device, tpm.clone(), (mode, deadline))?;
    let ending = session.run(&mut stop).await;
    match tokio::time::timeout(FAREWELL, tpm.close()).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::debug!(%error, "the AK stays loaded; the next start flushes it"),
        Err(_) => tracing::debug!("the TPM is busy; the next start flushes the AK"),
    }
    ending
}

/// Tries the logs and the files about the boot, so that a wrong path is an error now and not a silent device later.
pub fn check_files(config: &Config) -> Result<(), LogError> {
    config.boot().check()?;
    if let Some(path) = &config.ima_log {
        ImaLog::new(path).refresh()?;
    }
    if let Some(path) = &config.uefi_log {
        UefiLog::new(path).summary([0; 16].into())?;
    }
    Ok(())
}

/// How this device is called.
pub fn agent_id(config: &Config, identity: &Identity) -> Result<AgentId, ConfigError> {
    match config.id()? {
        ConfiguredId::Given(id) => Ok(id),
        ConfiguredId::HashOfEk => {
            let hash = &identity.ek_hash;
            hash.parse().map_err(|source| ConfigError::Id { id: hash.clone(), source })
        }
    }
}

/// A TPM that has said who it is, and whose PCRs are known.
async fn ready_tpm(config: &Config, store: &Store) -> Result<(Tpm, Identity), TpmError> {
    let tpm = start_tpm(config, store).await?;
    let identity = tpm.identity().await?;
    tpm.pcrs(u32::from(PcrMask::ALL)).await?;
    Ok((tpm, identity))
}

/// A TPM that is not there yet, or busy, is waited for. What only the operator can mend is an error, and so is a TPM that
/// did not even make its keys in time: its thread is lost, and only a new process gets rid of it.
async fn start_tpm(config: &Config, store: &Store) -> Result<Tpm, TpmError> {
    let mut pause = TPM_PAUSE;
    loop {
        let error = match Tpm::start(config.tpm(), store.state().ak.clone()).await {
            Ok(tpm) => return Ok(tpm),
            Err(error) => error,
        };
        match error {
            TpmError::Unreachable { .. }
            | TpmError::StillRetrying { .. }
            | TpmError::OutOfSlots { .. }
            | TpmError::Lockout => tracing::warn!(%error, again_in = ?pause, "the TPM cannot be used yet"),
            error => return Err(error),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_TPM_PAUSE);
    }
}

/// Waits for a time that may never come.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
