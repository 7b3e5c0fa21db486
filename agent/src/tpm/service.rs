//! The thread that owns the TPM, and the queue in front of it.
//!
//! [`Service`] is the callers' side: it never blocks longer than the caller agreed to. [`Device`] is the thread's side:
//! it keeps the connection, repeats what [`super::reaction`] says is worth repeating, and bounds how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use tokio::sync::{mpsc, oneshot};
use tss_esapi::tcti_ldr::TctiNameConf;

use super::TpmSettings;
use super::ak::{AkName, SavedAk};
use super::error::{Failure, TpmCode, TpmError};
use super::health::{self, Health};
use super::identity::Identity;
use super::open::{self, Opened};
use super::reaction::{Reaction, reaction};

/// Requests that may wait: the exchange asks for one thing at a time, so more than a few means that the TPM is stuck.
const QUEUE: usize = 8;
/// Answers "retry" taken in one operation. With the pauses below that is about 5 s; self tests of chips take under 2 s.
const RETRIES: u32 = 9;
/// New connections tried in one operation, about 1.5 s: a TPM that restarts is back by then, or the caller hears of it.
const RECONNECTIONS: u32 = 5;
/// First pause, doubled each time.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) fn parse_tcti(tcti: &str) -> Result<TctiNameConf, TpmError> {
    tcti.parse().map_err(|_| TpmError::BadTcti { tcti: tcti.to_owned() })
}

type Job = Box<dyn FnOnce(&mut Device) + Send>;

/// The callers' side.
#[derive(Debug, Clone)]
pub(super) struct Service {
    queue: mpsc::Sender<Job>,
    busy: Arc<BusySince>,
    patience: Duration,
}

impl Service {
    pub(super) fn spawn(settings: TpmSettings, saved: Option<SavedAk>) -> Result<Self, TpmError> {
        let tcti = parse_tcti(&settings.tcti)?;
        let patience = settings.command_timeout;
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let busy = Arc::new(BusySince::default());
        let run = move || {
            // A signal that interrupts poll() inside the device TCTI loses the response and with it the connection
            // (tpm2-tss issue 3086), so the other threads take all signals.
            if let Err(error) = SigSet::all().thread_block() {
                tracing::warn!(%error, "signals cannot be blocked in the TPM's thread");
            }
            let mut device = Device { settings, tcti, saved, opened: None, announced: None };
            while let Some(job) = jobs.blocking_recv() {
                job(&mut device);
            }
        };
        thread::Builder::new().name("tpm".to_owned()).spawn(run).map_err(TpmError::Spawn)?;
        Ok(Self { queue, busy, patience })
    }

    /// Has `work` done in the TPM's thread and waits for it no longer than the configured time.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Device) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        self.call_within(self.patience, operation, work).await
    }

    pub(super) async fn call_within<T: Send + 'static>(
        &self,
        patience: Duration,
        operation: &'static str,
        work: impl FnOnce(&mut Device) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (reply, answer) = oneshot::channel();
        let marks = Arc::clone(&self.busy);
        let job: Job = Box::new(move |device| {
            // A caller that gave up while the request waited wants no signature any more.
            if reply.is_closed() {
                return;
            }
            marks.begin();
            let result = work(device);
            // Before the answer: whoever has it sees the thread idle.
            marks.end();
            if reply.send(result).is_err() {
                tracing::debug!(operation, "the TPM finished after its caller had given up");
            }
        });
        self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TpmError::Busy { waiting: QUEUE },
            mpsc::error::TrySendError::Closed(_) => TpmError::Stopped,
        })?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TpmError::Stopped),
            Err(_) => Err(TpmError::Timeout { operation, after: patience }),
        }
    }

    pub(super) fn busy_for(&self) -> Option<Duration> {
        self.busy.elapsed()
    }
}

/// When the running job began, readable from outside the thread that is stuck in it.
#[derive(Debug)]
struct BusySince {
    epoch: Instant,
    /// Milliseconds after `epoch`, plus one; 0 is idle.
    since: AtomicU64,
}

impl Default for BusySince {
    fn default() -> Self {
        Self { epoch: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl BusySince {
    fn begin(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn elapsed(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The thread's side: the connection and what must survive it.
pub(super) struct Device {
    settings: TpmSettings,
    tcti: TctiNameConf,
    saved: Option<SavedAk>,
    opened: Option<Opened>,
    /// The AK that the callers know of.
    announced: Option<AkName>,
}

impl Device {
    /// Makes sure that there is a connection with a loaded AK.
    pub(super) fn connect(&mut self) -> Result<(), TpmError> {
        self.repeat("open", &|_| Ok(()))
    }

    /// Tells who this device is; from here on the AK may sign.
    pub(super) fn announce(&mut self) -> Result<Identity, TpmError> {
        let identity = self.repeat("identity", &|open| Ok(open.identity.clone()))?;
        self.announced = Some(identity.ak_name);
        Ok(identity)
    }

    /// Does one operation with an AK that the callers know of.
    pub(super) fn perform<T>(
        &mut self,
        operation: &'static str,
        work: &dyn Fn(&mut Opened) -> Result<T, Failure>,
    ) -> Result<T, TpmError> {
        let announced = self.announced;
        self.repeat(operation, &|open| {
            if announced == Some(open.identity.ak_name) {
                work(open)
            } else {
                Err(TpmError::AkReplaced { name: open.identity.ak_name }.into())
            }
        })
    }

    /// Lets go of the TPM; the next operation connects again.
    pub(super) fn disconnect(&mut self) {
        self.opened = None;
    }

    /// Looks at the TPM over a connection of its own.
    pub(super) fn health(&mut self) -> Result<Health, TpmError> {
        self.repeat_attempt("health", &|device| health::health(&device.tcti, device.settings.ek_handle))
    }

    fn repeat<T>(
        &mut self,
        operation: &'static str,
        work: &dyn Fn(&mut Opened) -> Result<T, Failure>,
    ) -> Result<T, TpmError> {
        self.repeat_attempt(operation, &|device| device.opened().and_then(work))
    }

    fn repeat_attempt<T>(
        &mut self,
        operation: &'static str,
        attempt: &dyn Fn(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, TpmError> {
        let mut retries = 0;
        let mut reconnections = 0;
        let mut made_room = false;
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Stack(error)) => error,
            };
            let code = TpmCode(error);
            match reaction(error) {
                Reaction::Retry if retries < RETRIES => {
                    pause(retries);
                    retries += 1;
                }
                Reaction::Retry => return Err(TpmError::StillRetrying { operation, code }),
                Reaction::MakeRoom if !made_room => {
                    tracing::debug!(operation, %code, "the TPM has no free slot; what is left over goes with a new connection");
                    self.opened = None;
                    made_room = true;
                }
                Reaction::MakeRoom => {
                    self.opened = None;
                    return Err(TpmError::OutOfSlots { operation, code });
                }
                Reaction::Reconnect if reconnections < RECONNECTIONS => {
                    tracing::debug!(operation, %code, "connecting to the TPM anew");
                    // Dropped first: a TPM without resource manager serves one connection at a time.
                    self.opened = None;
                    pause(reconnections + 1);
                    reconnections += 1;
                }
                Reaction::Reconnect => {
                    self.opened = None;
                    return Err(TpmError::Unreachable { tcti: self.settings.tcti.clone(), code });
                }
                Reaction::GiveUp(error) => return Err(error),
                Reaction::Unexpected => return Err(TpmError::Unexpected { operation, code }),
            }
        }
    }

    fn opened(&mut self) -> Result<&mut Opened, Failure> {
        match &mut self.opened {
            Some(open) => Ok(open),
            vacant => {
                let open = open::open(&self.tcti, self.settings.ek_handle, self.saved.as_ref())?;
                self.saved = Some(open.identity.saved_ak.clone());
                Ok(vacant.insert(open))
            }
        }
    }
}

fn pause(doublings: u32) {
    thread::sleep(PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE));
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn every_way_to_a_tpm_is_read_as_the_tpm_library_will_get_it() {
        for (configured, handed_on) in [
            ("device:/dev/tpmrm0", "device:/dev/tpmrm0"),
            ("swtpm:host=127.0.0.1,port=2322", "swtpm:host=127.0.0.1,port=2322"),
            ("swtpm:port=2322", "swtpm:host=localhost,port=2322"),
            ("mssim:port=2322,host=tpm-1.example", "mssim:host=tpm-1.example,port=2322"),
            ("swtpm", "swtpm:host=localhost,port=2321"),
            (
                "tabrmd:bus_name=com.example.Tabrmd2,bus_type=session",
                "tabrmd:bus_name=com.example.Tabrmd2,bus_type=session",
            ),
        ] {
            let read = CString::try_from(parse_tcti(configured).unwrap()).unwrap();
            assert_eq!(read.to_str().unwrap(), handed_on, "{configured}");
        }
        for wrong in [
            "",
            "tpm0",
            "/dev/tpmrm0",
            "swtpm:port=x",
            "swtpm:port=99999",
            "tabrmd:bus_name=no dots",
            "devices:x",
        ] {
            assert!(matches!(parse_tcti(wrong), Err(TpmError::BadTcti { .. })), "{wrong}");
        }
    }
}
