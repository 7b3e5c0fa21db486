//! The commands of relays, carried out.
//!
//! Invariant: each command ends in exactly one [`Done`] of its kind, within the time limits of the REST client, whatever happens on the way, even if the code
//! that carries it out fails. At most as many requests are under way at Keylime as there are connections to it, and
//! computing is done on threads of its own, so that no device waits for another's logs.

use super::budget_file::BudgetFile;
use super::lifetimes::Lifetimes;
use super::outcome;
use super::report::Admitted;
use super::restoring::{self, Job, restore};
use super::uefi_cache::{Disk, UefiCache, UefiLog};
use crate::admission::{Admission, Claim, Decision};
use crate::config::Checked;
use crate::keylime::{
    Capabilities, EvidenceBody, ImaSegment, Proved, Registrar, Registration, SessionOpening, SessionToken,
    Submission, Verifier,
};
use crate::restore::{Unbound, certified_name, verify_proof, verify_statement};
use crate::session_budget::{Budget, SessionBudget, Standing};
use crate::ticket::{Ticket, TicketKeys};
use crate::tpm::AkPublic;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::compact::Reference;
use keylime_mqtt_schemas::exchange::Time;
use keylime_mqtt_schemas::exchange::relay::{
    Command, Done, Facts, Offer, Offered, OpenedTicket, Proven, Registered, Restored, Restoring, Session,
    StatedAt, Status, Submitted, Token, Unavailable, Unpack,
};
use keylime_mqtt_schemas::messages::limits::MAX_PUBLIC;
use keylime_mqtt_schemas::messages::{AkName, Bounded, Digest, Enrol, Nonce, RefusedReason, Signed};
use rustls_pki_types::UnixTime;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

/// Logs unpacked or followed at once per bridge; each takes milliseconds, with a log of many entries a fraction of a second
const RESTORATIONS: usize = 4;
/// Registrations per second of all devices together; each is a chain of certificates to check and a write at the registrar
const REGISTRATIONS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(19);
/// Registrations of all devices at once: a rack that is switched on
const REGISTRATIONS_AT_ONCE: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);
/// What no HMAC of a credential is
const NO_TAG: [u8; 48] = [0; 48];

/// KiB of large submissions that are made and sent at once: three of the largest, of 100 000 entries
const LARGE_SUBMISSIONS: u32 = 64 * 1024;
/// Bytes up to which a submission is not large: a whole UEFI log and some hundred IMA lines
const SMALL_SUBMISSION: usize = 256 * 1024;

/// Keylime and all that stands between it and the relays
#[derive(Debug)]
pub(super) struct Services {
    registrar: Registrar,
    verifier: Verifier,
    /// What tickets are bound to
    verifier_name: String,
    admission: RwLock<Admission>,
    admission_changes: AtomicU64,
    refreshing: AtomicBool,
    registrations: DefaultDirectRateLimiter,
    budget: Mutex<SessionBudget>,
    budget_file: BudgetFile,
    tickets: TicketKeys,
    uefi: UefiCache,
    restoring: Semaphore,
    large_submissions: Semaphore,
    /// Files that devices may have packed their logs with
    references: Arc<[Reference]>,
    lifetimes: Lifetimes,
    started: Instant,
}

/// What a device's slot remembers for its commands
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// The UEFI log of the attestation under way, kept from finding it to submitting it
    pub(super) uefi: Option<(Digest, Arc<UefiLog>)>,
    /// What admission said last
    pub(super) admitted: Option<Admitted>,
    /// How often the verifier had come back when the device's session was opened
    session_of: u64,
}

impl Memory {
    /// Bytes of a log that nobody else holds: what is in the cache is within the cache's own bound
    pub(super) fn held(&self) -> usize {
        let log = self.uefi.as_ref().map(|(_, log)| log).filter(|log| Arc::strong_count(log) == 1);
        log.map_or(0, |log| log.weight())
    }
}

impl Services {
    pub(super) fn new(checked: Checked, started: Instant) -> Self {
        let verifier = &checked.config.verifier;
        let cache = &checked.config.cache;
        let disk = cache.dir.clone().map(|dir| Disk::new(dir, cache.max_bytes));
        let mut budget = SessionBudget::new(verifier.sessions_per_minute, verifier.replicas, started);
        let budget_file = BudgetFile::beside(&checked.config.ticket_key_file);
        budget.go_on(budget_file.filling_for());
        Self {
            verifier_name: verifier.url.to_string(),
            restoring: Semaphore::new(RESTORATIONS),
            large_submissions: Semaphore::new(LARGE_SUBMISSIONS as usize),
            references: checked.relay.references,
            lifetimes: Lifetimes::default(),
            uefi: UefiCache::new(checked.config.limits.uefi_cache_bytes, disk),
            budget: Mutex::new(budget),
            budget_file,
            admission: RwLock::new(checked.admission),
            admission_changes: AtomicU64::new(0),
            refreshing: AtomicBool::new(false),
            registrations: RateLimiter::direct(
                Quota::per_second(REGISTRATIONS_PER_SECOND).allow_burst(REGISTRATIONS_AT_ONCE),
            ),
            registrar: checked.registrar,
            verifier: checked.verifier,
            tickets: checked.tickets,
            started,
        }
    }

    /// Time since start, as relays count it
    pub(super) fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// Keeps a log for the device that sent it, and for all others of its kind
    pub(super) fn keep_uefi(&self, digest: Digest, log: Vec<u8>, memory: &mut Memory) {
        memory.uefi = Some((digest, self.uefi.keep(&digest, log)));
    }

    /// Carries out a command; `KeepUefi` has no answer
    pub(super) async fn perform(&self, id: &AgentId, command: Command, memory: &mut Memory) -> Option<Done> {
        let done = match command {
            Command::Register(enrol) => Done::Registered(self.register(id, enrol, memory).await),
            Command::Activate { auth_tag } => Done::Activated(outcome::activated(
                &self.registrar.activate(id.as_str(), auth_tag.as_bytes()).await,
            )),
            Command::Withdraw => {
                // the registrar deletes a record on a wrong tag; one that is gone already is as good
                self.registrar.activate(id.as_str(), &NO_TAG).await;
                Done::Withdrawn
            }
            Command::OpenSession { known } => {
                memory.session_of = self.verifier.returns();
                Done::Session(self.open_session(id, known).await)
            }
            Command::Prove { session, proof, nonce, ak_public } => {
                Done::Proven(match proof_holds(&proof, &nonce, &ak_public) {
                    Ok(()) => self.prove(id, &session, &proof).await,
                    Err(unbound) => Proven::Unbound(restoring::name(unbound)),
                })
            }
            Command::CheckStatement { statement, expected, ak_public } => {
                Done::StatementChecked(stated_at(&statement, &expected, ak_public.as_slice()))
            }
            Command::ReadStatus { token } => Done::Status(self.status(id, &token).await),
            Command::Offer { token, facts } => {
                memory.uefi = None;
                if self.session_is_costly(id, memory) {
                    return Some(Done::Offered(Offered::TokenRejected));
                }
                Done::Offered(self.offer(id, &token, &facts).await)
            }
            Command::FindUefi(digest) => {
                memory.uefi = self.uefi.find(&digest).await.map(|log| (digest, log));
                Done::UefiFound(memory.uefi.is_some())
            }
            Command::Unpack(unpack) => Done::Unpacked(self.unpack(unpack).await),
            Command::KeepUefi(digest, log) => {
                self.keep_uefi(digest, log, memory);
                return None;
            }
            Command::Restore(restore) => {
                let uefi = match &restore.uefi {
                    Some(digest) => self.uefi_log(digest, memory).await,
                    None => None,
                };
                let job = Job { restore: *restore, uefi, references: Arc::clone(&self.references) };
                Done::Restored(self.restore(job).await)
            }
            Command::Submit { token, offer, restored } => {
                Done::Submitted(self.submit(id, &token, &offer, &restored, memory).await)
            }
        };
        Some(done)
    }

    /// Opens a ticket that came with a device's `Ready`
    pub(super) fn open_ticket(&self, id: &AgentId, sealed: &[u8]) -> Option<OpenedTicket> {
        let ticket = self.tickets.open_ticket(id.as_str(), &self.verifier_name, sealed)?;
        let ak = AkName::try_from(ticket.ak_name.as_slice()).ok()?;
        Some(OpenedTicket { token: Token::new(ticket.token.expose().to_owned()), ak })
    }

    /// Has the admission list read again if it changed, on a thread that may wait for the disk
    pub(super) fn refresh_admission(self: &Arc<Self>) {
        let Some(reader) = read(&self.admission).list_reader() else { return };
        // a disk that hangs is asked once
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let services = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            match reader.read().map(|changed| write(&services.admission).adopt(changed)) {
                None => {}
                Some(Ok(())) => {
                    services.admission_changes.fetch_add(1, Ordering::AcqRel);
                    tracing::info!("the admission list has changed and was read again");
                }
                Some(Err(error)) => tracing::warn!("the former admission list stays in force: {error}"),
            }
            services.refreshing.store(false, Ordering::Release);
        });
    }

    /// How often the admission list has changed since start
    pub(super) fn admission_changes(&self) -> u64 {
        self.admission_changes.load(Ordering::Acquire)
    }

    /// Answers of Keylime that were of no use: service, reason, how often
    pub(super) fn unavailable_counts(&self) -> Vec<(String, String, u64)> {
        let of = |service: &str, counts: Vec<(&'static str, u64)>| {
            let service = service.to_owned();
            counts.into_iter().map(move |(reason, n)| (service.clone(), reason.to_owned(), n))
        };
        of("registrar", self.registrar.unavailable_counts())
            .chain(of("verifier", self.verifier.unavailable_counts()))
            .filter(|(_, _, n)| *n > 0)
            .collect()
    }

    async fn register(&self, id: &AgentId, enrol: Enrol, memory: &mut Memory) -> Registered {
        if let Err(not_until) = self.registrations.check() {
            return Registered::Wait(not_until.wait_time_from(DefaultClock::default().now()));
        }
        let Enrol { ek_public, ak_public, ek_certificate } = enrol;
        let ek_certificate = ek_certificate.as_ref().map(Bounded::as_slice);
        let (ek_public, ak_public) = (ek_public.as_slice(), ak_public.as_slice());
        let claim = Claim { id: id.as_str(), ek_public, ek_certificate, ak_public };
        let decision = read(&self.admission).decide(claim, UnixTime::now());
        let before = memory.admitted.replace(Admitted::of(&decision, id)).map(|admitted| admitted.decision);
        let refused = match decision {
            Decision::Admitted { .. } => None,
            Decision::UnknownCa { .. } => Some(RefusedReason::UnknownCa),
            Decision::NoCertificate { .. } => Some(RefusedReason::NoCertificate),
            Decision::NotAdmitted { .. } | Decision::IdMismatch { .. } => Some(RefusedReason::NotAdmitted),
            Decision::Malformed { .. } | Decision::UnfitAk(_) => Some(RefusedReason::Malformed),
        };
        if let Some(reason) = refused {
            // once per change, for a refused device comes again and again
            if before != Some(decision.name()) {
                tracing::info!(agent = %id, decision = decision.name(), "registration refused");
            }
            return Registered::Refused(reason);
        }
        match self.registrar.register(id.as_str(), ek_public, ek_certificate, ak_public).await {
            Registration::Registered { blob } => Registered::Credential(blob),
            Registration::Conflict => Registered::Refused(RefusedReason::OtherTpm),
            Registration::Rejected { status } => {
                tracing::warn!(agent = %id, status, "the registrar finds the keys of this device invalid; see its log");
                Registered::Refused(RefusedReason::Malformed)
            }
            Registration::Unavailable(no_answer) => Registered::Unavailable(outcome::unavailable(no_answer)),
        }
    }

    async fn open_session(&self, id: &AgentId, known: bool) -> Session {
        let standing = if known { Standing::Healthy } else { Standing::Unproven };
        if let Err(wait) = self.may_open_session(id, standing) {
            return Session::Wait(wait);
        }
        let opening = self.verifier.open_session(id.as_str()).await;
        match opening {
            SessionOpening::RateLimited { retry_after, agent_only: true } => {
                tracing::warn!(
                    agent = %id,
                    "the verifier allows this device no more sessions for now: others ask for it too; set [verifier] replicas to \
                     the number of bridges"
                );
                lock(&self.budget).agent_limited(id.as_str(), retry_after, Instant::now());
            }
            SessionOpening::RateLimited { retry_after, agent_only: false } => {
                tracing::warn!(
                    "the verifier allows fewer sessions than the bridge was told; set [verifier] sessions_per_minute to its \
                     session_create_rate_limit_per_ip, and replicas to the bridges on this address"
                );
                lock(&self.budget).rate_limited(retry_after, Instant::now());
            }
            SessionOpening::Opened(_) | SessionOpening::Unavailable(_) => {}
        }
        outcome::session(opening)
    }

    /// What is granted is on the disk before it is spent
    fn may_open_session(&self, id: &AgentId, standing: Standing) -> Result<(), Duration> {
        let now = Instant::now();
        let mut budget = lock(&self.budget);
        match budget.request(id.as_str(), standing, now) {
            Budget::Wait(wait) => Err(wait),
            Budget::Granted => {
                self.budget_file.keep(budget.filling_for(now));
                Ok(())
            }
        }
    }

    async fn prove(&self, id: &AgentId, session: &str, proof: &Signed) -> Proven {
        let (attest, signature) = (proof.attest.as_slice(), proof.signature.as_slice());
        let proved = self.verifier.prove(id.as_str(), session, attest, signature).await;
        match proved {
            Proved::Token { token, good_for } => {
                self.lifetimes.session(good_for);
                lock(&self.budget).proof_passed(id.as_str());
                let name = certified_name(attest).ok();
                match name.and_then(|name| AkName::try_from(name.as_slice()).ok()) {
                    Some(certified) => self.proven(id, &token, certified),
                    // the verifier compared the name and let it pass, so it has one
                    None => Proven::Unavailable(Unavailable { retry_after: None }),
                }
            }
            other => {
                if matches!(other, Proved::BadProof) {
                    lock(&self.budget).proof_failed(id.as_str(), Instant::now());
                }
                outcome::unproven(&other)
            }
        }
    }

    fn proven(&self, id: &AgentId, token: &SessionToken, certified: AkName) -> Proven {
        let ak_name = certified.as_bytes().to_vec();
        let ticket = Ticket { token: token.clone(), ak_name };
        let sealed = self.tickets.seal(id.as_str(), &self.verifier_name, &ticket);
        // without a ticket a restart costs one more proof, nothing else
        let ticket = sealed.ok().and_then(|sealed| sealed.try_into().ok());
        Proven::Token { token: Token::new(token.expose().to_owned()), certified, ticket }
    }

    async fn status(&self, id: &AgentId, token: &Token) -> Status {
        let Some(token) = session_token(token) else { return Status::TokenRejected };
        outcome::status(self.verifier.status(id.as_str(), &token).await)
    }

    /// A verifier that was restarted has tokens only as hashes: until the device proves itself anew it computes two PBKDF2 of
    /// 600 000 rounds for each request, which makes an attestation some twenty times as dear (Keylime, action_handler.py).
    /// So a session to spare is spent on it, once per device and restart
    fn session_is_costly(&self, id: &AgentId, memory: &mut Memory) -> bool {
        let returns = self.verifier.returns();
        let costly = memory.session_of < returns && lock(&self.budget).has_spare(id.as_str(), Instant::now());
        if costly {
            memory.session_of = returns;
        }
        costly
    }

    async fn offer(&self, id: &AgentId, token: &Token, facts: &Facts) -> Offered {
        let Some(token) = session_token(token) else { return Offered::TokenRejected };
        let ak = match AkPublic::parse(facts.ak_public.as_slice()) {
            Ok(ak) => ak,
            Err(unfit) => return Offered::Invalid(unfit.to_string()),
        };
        let Ok(boot_time) = i64::try_from(facts.stated.boot_time) else {
            return Offered::Invalid("the boot time is beyond any calendar".to_owned());
        };
        let capabilities = Capabilities {
            ak_public: ak.tpm2b().to_vec(),
            ak_name: ak.name().to_vec(),
            ak_bits: ak.bits(),
            pcr_mask: u32::from(facts.stated.pcrs),
            ima_entries: facts.ima_entries,
            uefi: facts.stated.uefi.is_some(),
            boot_time,
        };
        outcome::offered(self.verifier.offer(id.as_str(), &token, &capabilities).await, self.now())
    }

    async fn unpack(&self, unpack: Unpack) -> Result<Vec<u8>, &'static str> {
        let _turn = turn(&self.restoring).await;
        let references = Arc::clone(&self.references);
        let unpacked = tokio::task::spawn_blocking(move || unpack.carry_out(&references)).await;
        unpacked.unwrap_or(Err(outcome::UNPACKING_FAILED))
    }

    async fn restore(&self, job: Job) -> Restoring {
        if job.is_long() {
            let _turn = turn(&self.restoring).await;
            match tokio::task::spawn_blocking(move || restore(job)).await {
                Ok(done) => done,
                Err(_) => Restoring::Unbound("restoring it failed in the bridge"),
            }
        } else {
            restore(job)
        }
    }

    async fn submit(
        &self,
        id: &AgentId,
        token: &Token,
        offer: &Offer,
        restored: &Restored,
        memory: &Memory,
    ) -> Submitted {
        let Some(token) = session_token(token) else { return Submitted::TokenRejected };
        let ima = restored.ima.clone().map(ImaSegment::of);
        if matches!(ima, Some(None)) {
            let detail = "the IMA log holds a name that is not UTF-8, which Keylime's JSON cannot carry";
            return Submitted::Invalid(detail.to_owned());
        }
        let uefi = match &restored.uefi {
            Some(digest) => match self.uefi_log(digest, memory).await.and_then(|log| log.text()) {
                Some(text) => Some(text),
                // pushed out of the cache: a new challenge, and the log once more
                None => return Submitted::LogGone,
            },
            None => None,
        };
        let evidence = EvidenceBody {
            attest: restored.quote.attest.as_slice().to_vec(),
            signature: restored.quote.signature.as_slice().to_vec(),
            pcr_blob: restored.pcr_blob.clone(),
            ima: ima.flatten(),
            uefi,
        };
        // the body is made when its turn has come
        let _room = self.room_for(&evidence).await;
        let order = outcome::order(offer);
        let submission = self.verifier.submit(id.as_str(), &token, offer.index, evidence, &order).await;
        if let Submission::Accepted { seconds_to_next: Some(seconds) } = submission {
            self.lifetimes.interval(seconds);
        }
        outcome::submitted(submission)
    }

    /// Room for the body of a large submission. Small ones wait for nobody: there are no more of them than connections
    async fn room_for(&self, evidence: &EvidenceBody) -> Option<SemaphorePermit<'_>> {
        let size = evidence.log_bytes();
        if size <= SMALL_SUBMISSION {
            return None;
        }
        let kib = u32::try_from(size / 1024).unwrap_or(u32::MAX).min(LARGE_SUBMISSIONS);
        self.large_submissions.acquire_many(kib).await.ok()
    }

    async fn uefi_log(&self, digest: &Digest, memory: &Memory) -> Option<Arc<UefiLog>> {
        match &memory.uefi {
            Some((held, log)) if held == digest => Some(Arc::clone(log)),
            _ => self.uefi.find(digest).await,
        }
    }
}

/// When this was stated by that AK, if it was
fn stated_at(statement: &Signed, expected: &Digest, ak_public: &[u8]) -> Option<StatedAt> {
    let (attest, signature) = (statement.attest.as_slice(), statement.signature.as_slice());
    let ak = AkPublic::parse(ak_public).ok()?;
    let clock = verify_statement(&ak, expected.as_bytes(), attest, signature).ok()?;
    Some(StatedAt { resets: clock.reset_count, restarts: clock.restart_count, clock: clock.clock })
}

/// That this is the answer to that session nonce by the AK that the device claims, as far as that can be seen here
fn proof_holds(proof: &Signed, nonce: &Nonce, ak_public: &Bounded<MAX_PUBLIC>) -> Result<(), Unbound> {
    let ak = AkPublic::parse(ak_public.as_slice()).map_err(|_| Unbound::Kind)?;
    verify_proof(&ak, nonce.as_bytes(), proof.attest.as_slice(), proof.signature.as_slice())
}

fn session_token(token: &Token) -> Option<SessionToken> {
    SessionToken::new(Zeroizing::new(token.expose().to_owned())).ok()
}

/// A turn at something of which there is little; the semaphores are never closed
async fn turn(semaphore: &Semaphore) -> Option<SemaphorePermit<'_>> {
    semaphore.acquire().await.ok()
}

/// What a panic elsewhere left behind is still consistent: every change under these locks is a single step
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`]
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`]
fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
