//! Reasons to give up a connection that works: certificates that changed, or the way to the first broker that is
//! open again.
//!
//! Invariant: the connection is given up at a moment when nothing is unacknowledged, with DISCONNECT, so that the
//! will is not published; whatever was queued meanwhile goes out on the next one.

use std::{fmt, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use crate::{
    credentials::{Change, Credentials},
    settings::{Broker, BrokerSettings},
};

/// Why a connection is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Certificate,
    FirstBroker,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Certificate => "this client's certificate or key changed: the connection is made anew",
            Self::FirstBroker => "the way to the first broker is open again: the connection moves there",
        })
    }
}

pub(crate) struct Renewal<'a> {
    credentials: &'a mut Credentials,
    look_every: Duration,
    next_look: Instant,
    home: Option<Home>,
    due: Option<Reason>,
}

/// The first broker, seen from a fallback.
struct Home {
    broker: Broker,
    every: Duration,
    limit: Duration,
    next_probe: Instant,
    /// At most one; ended with this value.
    probe: JoinSet<bool>,
}

impl<'a> Renewal<'a> {
    /// Of a connection that begins now, `first` being the first broker if this is another.
    pub(crate) fn new(
        settings: &BrokerSettings,
        credentials: &'a mut Credentials,
        first: Option<Broker>,
    ) -> Self {
        let now = Instant::now();
        let look_every = Duration::from_secs(settings.file_check_seconds.into());
        let every = Duration::from_secs(settings.fallback_return_seconds.into());
        let limit = Duration::from_secs(settings.connect_timeout_seconds.into());
        let home =
            first.map(|broker| Home { broker, every, limit, next_probe: now + every, probe: JoinSet::new() });
        Self { credentials, look_every, next_look: now + look_every, home, due: None }
    }

    pub(crate) fn tls(&self) -> &Arc<ClientConfig> {
        self.credentials.config()
    }

    pub(crate) fn due(&self) -> Option<Reason> {
        self.due
    }

    /// Returns when there is a reason. Cancel safe: what is under way goes on with the next call.
    pub(crate) async fn becomes_due(&mut self) {
        while self.due.is_none() {
            let at_home = async {
                match &mut self.home {
                    Some(home) => home.is_open().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep_until(self.next_look) => {
                    self.next_look = Instant::now() + self.look_every;
                    if self.credentials.look() == Change::Identity {
                        self.due = Some(Reason::Certificate);
                    }
                }
                () = at_home => self.due = Some(Reason::FirstBroker),
            }
        }
    }
}

impl Home {
    /// Returns once the way to the first broker was found open, up to TLS and the WebSocket. Without MQTT: a
    /// second session of one client id could end the first. Cancel safe.
    async fn is_open(&mut self) {
        loop {
            if self.probe.is_empty() {
                sleep_until(self.next_probe).await;
                self.broker.credentials.look();
                let tls = Arc::clone(self.broker.credentials.config());
                let (route, limit) = (self.broker.route.clone(), self.limit);
                self.probe.spawn(async move {
                    let way = timeout(limit, route.open(&tls, &mut Vec::new())).await;
                    matches!(way, Ok(Ok(_)))
                });
            }
            match self.probe.join_next().await {
                Some(Ok(true)) => return,
                outcome => debug!(?outcome, "the first broker is still away"),
            }
            self.next_probe = Instant::now() + self.every;
        }
    }
}
