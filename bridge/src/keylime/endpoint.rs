//! One HTTP service: connections, time limits, size limits.
//!
//! Invariant: once its turn has come a call returns within its time limit, with at most its size limit in memory, and every
//! way in which it can go wrong is a counted [`Unavailable`].
//!
//! A device stays on one of a few keep-alive connections ("lanes"): Keylime's time-out timers live in the worker process that
//! accepted the connection, and a device that wanders between workers is reported as timed out. So a lane is one connection,
//! and its requests go one after the other: a second request at the same time would open a second connection, which ends at any
//! worker and pays a TLS handshake. Keylime loses nothing by it, for a worker serves one request at a time.
//!
//! A request that hangs would keep all devices of its lane waiting. Who has waited for a while may go by the next lane as
//! well, whichever is free first. That one attestation may reach another worker, whose timer is of no harm: the device is
//! back in its own lane for the next one, and the first worker reports a TIMEOUT only after five that it has not seen.

use super::json_api::{Errors, is_of_v2};
use super::token::SessionToken;
use super::trust::trust_nobody;
use super::unavailable::{Counters, Reason, Unavailable};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, Url};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

/// Time to connect, TLS included; a service that is up does it in milliseconds
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: above the longest usual attestation interval, so that lanes last, and below the hour
/// after which Keylime's server (Tornado) closes it
const IDLE_TIMEOUT: Duration = Duration::from_secs(3000);
/// How often an idle connection is probed, so that what stands between forgets none
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// A lane that is not free after this part of a request's longest time is likely held by one that hangs
const PATIENCE_PART: u32 = 16;
/// Largest answer of which the content matters; Keylime's are below 4 KiB
pub(super) const MAX_ANSWER: usize = 256 * 1024;
/// Longest `Retry-After` believed: Keylime's own blocks end after an hour
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// JSON:API, the only content type the verifier's v3 attestations accept
pub(super) const JSON_API: &str = "application/vnd.api+json";
/// Plain JSON: v2 handlers fail on JSON:API
pub(super) const JSON: &str = "application/json";

/// How to reach a service
#[derive(Debug, Clone)]
pub struct EndpointSettings {
    /// Scheme, host and port
    pub url: Url,
    /// TLS with the service's own trust store; `None` only where plain HTTP was asked for by a `danger_` setting
    pub tls: Option<rustls::ClientConfig>,
    /// Longest time for one request. The verifier hashes tokens and checks logs on the thread that answers, so well above a minute
    pub timeout: Duration,
    /// Number of keep-alive connections over which devices are spread, at least 1
    pub lanes: usize,
}

/// A service that cannot be set up
#[derive(Debug, Error)]
pub enum EndpointError {
    /// Plain HTTP without having been allowed, or no HTTP at all
    #[error("{url}: must be an https URL with a host and no path")]
    Scheme {
        /// The URL at fault
        url: Box<Url>,
    },
    /// The TLS library refused its own defaults
    #[error("{url}: TLS cannot be set up ({source})")]
    Tls {
        /// The URL at fault
        url: Box<Url>,
        /// What the library said
        source: Box<rustls::Error>,
    },
    /// The HTTP library refused the settings
    #[error("{url}: the HTTP client cannot be built ({source})")]
    Client {
        /// The URL at fault
        url: Box<Url>,
        /// What the library said
        source: reqwest::Error,
    },
}

#[derive(Debug)]
pub(super) struct Endpoint {
    base: Url,
    lanes: Vec<Lane>,
    patience: Duration,
    unavailable: Counters,
    /// It could not be connected to since the last answer
    gone: AtomicBool,
    /// How often it answered again after that
    returns: AtomicU64,
}

/// A connection, and whose turn it is on it
#[derive(Debug)]
struct Lane {
    client: Client,
    turn: Semaphore,
}

/// The right to send one request on a lane
pub(super) struct Turn<'a> {
    client: &'a Client,
    _permit: SemaphorePermit<'a>,
}

/// One request, complete
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Path segments; each is escaped
    pub(super) path: &'a [&'a str],
    pub(super) content_type: &'static str,
    pub(super) token: Option<&'a SessionToken>,
    pub(super) body: Option<Vec<u8>>,
    /// Decides the lane
    pub(super) agent: &'a str,
    /// Largest answer to read, bytes
    pub(super) max_answer: usize,
    /// What to keep of it
    pub(super) keep: Keep,
}

/// What of an answer is of interest
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    /// The whole
    All,
    /// Its last bytes, at least so many
    Tail(usize),
}

/// An answer within its limits
///
/// Read apart from the sending by a method of its call's own, so that whatever a service may answer can be tried without one.
pub struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    /// The whole body, or why there is none: what a status code alone says stays usable when the body is not.
    /// Wiped when dropped, for one of them carries a token
    pub(super) body: Result<Zeroizing<Vec<u8>>, Reason>,
}

impl Answer {
    /// One that came whole
    pub fn whole(status: u16, location: Option<String>, body: Vec<u8>) -> Self {
        Self { status, retry_after: None, location, body: Ok(Zeroizing::new(body)) }
    }

    /// What Keylime finds wrong; nothing where it says so in no body
    pub(super) fn errors(&self) -> Errors {
        self.body.as_ref().map_or_else(|_| Errors::default(), |body| Errors::parse(body))
    }

    /// Whether it is in the words of Keylime's v2
    pub(super) fn is_of_v2(&self) -> bool {
        self.body.as_ref().is_ok_and(|body| is_of_v2(self.status, body))
    }
}

impl Endpoint {
    pub(super) fn new(settings: &EndpointSettings) -> Result<Self, EndpointError> {
        let url = &settings.url;
        let scheme = if settings.tls.is_some() { "https" } else { "http" };
        if url.scheme() != scheme || url.host_str().is_none() || !matches!(url.path(), "" | "/") {
            return Err(EndpointError::Scheme { url: Box::new(url.clone()) });
        }
        let tls = settings.tls.clone().map_or_else(trust_nobody, Ok);
        let tls = tls
            .map_err(|source| EndpointError::Tls { url: Box::new(url.clone()), source: Box::new(source) })?;
        let lanes = (0..settings.lanes.max(1))
            .map(|_| Ok(Lane { client: build_client(settings, tls.clone())?, turn: Semaphore::new(1) }))
            .collect::<Result<_, _>>()
            .map_err(|source| EndpointError::Client { url: Box::new(url.clone()), source })?;
        let patience = settings.timeout / PATIENCE_PART;
        Ok(Self {
            base: url.clone(),
            lanes,
            patience,
            unavailable: Counters::default(),
            gone: AtomicBool::new(false),
            returns: AtomicU64::new(0),
        })
    }

    /// Sends one request in its turn and reads its answer, both bounded
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Answer, Unavailable> {
        let turn = self.turn(call.agent).await?;
        self.send_in(turn, call).await
    }

    /// As [`Self::send`], for a body that is so large that it is made only when its turn has come
    pub(super) async fn send_in(&self, turn: Turn<'_>, call: Call<'_>) -> Result<Answer, Unavailable> {
        let mut request = turn.client.request(call.method, self.url(call.path)?);
        if let Some(token) = call.token {
            // the header's own copy is the HTTP library's, which wipes nothing
            let text = Zeroizing::new(["Bearer ", token.expose()].concat());
            let mut bearer = HeaderValue::from_str(&text).map_err(|_| self.unavailable(Reason::Garbage))?;
            bearer.set_sensitive(true);
            request = request.header(AUTHORIZATION, bearer);
        }
        // Keylime parses by the content type even where there is no body, and fails
        if let Some(body) = call.body {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(call.content_type)).body(body);
        }
        let response = request.send().await.map_err(|error| {
            let reason = reason_of(&error);
            if reason == Reason::Connect {
                self.gone.store(true, Ordering::Relaxed);
            }
            self.unavailable(reason)
        })?;
        if self.gone.swap(false, Ordering::Relaxed) {
            self.returns.fetch_add(1, Ordering::Relaxed);
        }
        let status = response.status().as_u16();
        let retry_after = seconds_header(&response);
        let location =
            response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if response.status().is_redirection() {
            return Err(self.unavailable(Reason::Redirected));
        }
        let body = read_bounded(response, call.max_answer, call.keep).await;
        Ok(Answer { status, retry_after, location, body })
    }

    /// Counts a reason and makes the error of it
    pub(super) fn unavailable(&self, reason: Reason) -> Unavailable {
        let first = self.unavailable.count(reason) == 0;
        if first && reason == Reason::Certificate {
            // nothing that passes by itself, so it is said at once
            tracing::warn!(url = %self.base, "Keylime {reason}");
        }
        Unavailable { reason, retry_after: None }
    }

    /// What an answer means that no outcome of the call covers
    pub(super) fn unavailable_answer(&self, answer: &Answer) -> Unavailable {
        let reason = match answer.status {
            429 => Reason::TooMany,
            500..=599 => Reason::ServerError,
            _ => match answer.body {
                Ok(_) => Reason::UnexpectedStatus,
                Err(reason) => reason,
            },
        };
        Unavailable { retry_after: answer.retry_after, ..self.unavailable(reason) }
    }

    /// How often it came back after it could not be connected to: most likely it was restarted
    pub(super) fn returns(&self) -> u64 {
        self.returns.load(Ordering::Relaxed)
    }

    pub(super) fn unavailable_counts(&self) -> Vec<(&'static str, u64)> {
        self.unavailable.snapshot()
    }

    /// Waits for the agent's lane; after a while for the next one, too
    pub(super) async fn turn(&self, agent: &str) -> Result<Turn<'_>, Unavailable> {
        let mut hasher = DefaultHasher::new();
        agent.hash(&mut hasher);
        let lanes = self.lanes.len().max(1) as u64;
        let home = usize::try_from(hasher.finish() % lanes).unwrap_or(0);
        let mut from_home = self.lanes.iter().cycle().skip(home).take(2);
        let (Some(home), Some(next)) = (from_home.next(), from_home.next()) else {
            return Err(self.unavailable(Reason::Connect));
        };
        // keeps its place in the queue while it waits for the other as well
        let waiting = home.turn();
        tokio::pin!(waiting);
        let turn = match tokio::time::timeout(self.patience, &mut waiting).await {
            Ok(turn) => turn,
            Err(_) if self.lanes.len() == 1 => waiting.await,
            Err(_) => tokio::select! {
                turn = &mut waiting => turn,
                turn = next.turn() => turn,
            },
        };
        turn.ok_or_else(|| self.unavailable(Reason::Connect))
    }

    fn url(&self, path: &[&str]) -> Result<Url, Unavailable> {
        let mut url = self.base.clone();
        // `.` and `..` would vanish from the path and change its meaning
        if path.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err(self.unavailable(Reason::Garbage));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.clear().extend(path),
            Err(()) => return Err(self.unavailable(Reason::Connect)),
        };
        Ok(url)
    }
}

impl Lane {
    /// Waits until it is free; the semaphore is never closed
    async fn turn(&self) -> Option<Turn<'_>> {
        let permit = self.turn.acquire().await.ok()?;
        Some(Turn { client: &self.client, _permit: permit })
    }
}

fn build_client(settings: &EndpointSettings, tls: rustls::ClientConfig) -> Result<Client, reqwest::Error> {
    Client::builder()
        .use_preconfigured_tls(tls)
        .https_only(settings.tls.is_some())
        .redirect(Policy::none())
        .no_proxy()
        .tcp_nodelay(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(settings.timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(1)
        .build()
}

async fn read_bounded(
    mut response: Response,
    limit: usize,
    keep: Keep,
) -> Result<Zeroizing<Vec<u8>>, Reason> {
    let mut body = Zeroizing::new(Vec::new());
    let mut read = 0usize;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if read + chunk.len() > limit => return Err(Reason::TooLarge),
            Ok(Some(chunk)) => {
                read += chunk.len();
                body.extend_from_slice(&chunk);
                // now and then, so that little is moved
                if let Keep::Tail(tail) = keep
                    && body.len() > tail.saturating_mul(4)
                {
                    let surplus = body.len() - tail;
                    body.drain(..surplus);
                }
            }
            Ok(None) => return Ok(body),
            Err(error) => return Err(reason_of(&error)),
        }
    }
}

fn reason_of(error: &reqwest::Error) -> Reason {
    if certificate_refused(error) {
        Reason::Certificate
    } else if error.is_connect() {
        Reason::Connect
    } else if error.is_timeout() {
        Reason::Silent
    } else {
        Reason::BrokenOff
    }
}

/// rustls' own error travels inside `io::Error`s, which leave what they hold out of the chain of sources
fn certificate_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    held.is_some_and(|held| certificate_refused(held)) || error.source().is_some_and(certificate_refused)
}

fn seconds_header(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}
