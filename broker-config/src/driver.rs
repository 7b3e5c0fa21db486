//! The task behind a [`Link`](crate::Link): one connection after the other until it is told to stop.
//!
//! Each connection has a rumqttc event loop of its own, so that no packet id, collision or half-done state of a
//! dead connection reaches the next one. What the old one still owed goes back to the front of the outbox.

use std::{sync::Arc, time::Duration};

use rumqttc::{MqttOptions, TlsConfiguration, Transport};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::{
    backoff::{Backoff, GOOD_CONNECTION},
    connection::{self, Connection, Ended},
    link::{Counters, Letter, LinkEvent, Qos, SHUTDOWN_LIMIT, Will},
    loss::Loss,
    queue::Queue,
    settings::CheckedBroker,
};

/// QoS 1 messages sent and not yet acknowledged. Mosquitto's default inflight is the same; more would gain
/// nothing for an exchange with one message per device under way.
const IN_FLIGHT: u16 = 20;
/// What rumqttc itself accepts. It cannot skip a packet, only die of it, and a retained message would come again
/// on every connection; so larger packets than the settings allow are read and dropped here, up to this size.
/// It covers the default limits of brokers that have one (2 MB mosquitto 2.1, 1 MB EMQX, 128 KB AWS).
const LARGEST_SKIPPED: usize = 4 * 1024 * 1024;

/// A broker may be away so long before it is a warning: a restart takes less.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Driver {
    broker: CheckedBroker,
    options: MqttOptions,
    subscriptions: Vec<(String, Qos)>,
    outbox: Arc<Queue<Letter>>,
    inbox: Arc<Queue<LinkEvent>>,
    counters: Arc<Counters>,
    stop: Stop,
    done: watch::Sender<bool>,
}

/// The wish to stop, and until when what is queued may still be sent.
pub(crate) struct Stop {
    asked: watch::Receiver<bool>,
    deadline: Option<Instant>,
}

impl Stop {
    pub(crate) fn is_asked(&self) -> bool {
        self.deadline.is_some()
    }

    /// Returns when the link is to stop, once; afterwards when its time is up. Cancel safe.
    pub(crate) async fn next_wish(&mut self) -> Wish {
        if let Some(deadline) = self.deadline {
            sleep_until(deadline).await;
            return Wish::TimeUp;
        }
        // an error means that the last Link was dropped, which is a wish to stop as well
        let dropped = self.asked.wait_for(|asked| *asked).await.is_err();
        if dropped {
            tracing::debug!("the last Link was dropped");
        }
        self.deadline = Some(Instant::now() + SHUTDOWN_LIMIT);
        Wish::Asked
    }
}

pub(crate) enum Wish {
    Asked,
    TimeUp,
}

impl Driver {
    #[expect(clippy::too_many_arguments, reason = "called once, by connect, which has these at hand")]
    pub(crate) fn new(
        broker: CheckedBroker,
        client_id: String,
        will: Option<Will>,
        subscriptions: Vec<(String, Qos)>,
        outbox: Arc<Queue<Letter>>,
        inbox: Arc<Queue<LinkEvent>>,
        counters: Arc<Counters>,
        asked: watch::Receiver<bool>,
        done: watch::Sender<bool>,
    ) -> Self {
        let options = options(&broker, client_id, will);
        let stop = Stop { asked, deadline: None };
        Self { broker, options, subscriptions, outbox, inbox, counters, stop, done }
    }

    pub(crate) async fn run(mut self) {
        self.connect_until_stopped().await;
        self.outbox.close();
        self.inbox.close();
        let unsent = self.outbox.len();
        if unsent > 0 {
            warn!(unsent, "messages were still queued when the link to the broker was shut down");
        }
        self.done.send_replace(true);
    }

    async fn connect_until_stopped(&mut self) {
        let settings = &self.broker.settings;
        let mut backoff = Backoff::new(
            Duration::from_secs(settings.reconnect_first_seconds.into()),
            Duration::from_secs(settings.reconnect_longest_seconds.into()),
        );
        let limits = connection::Limits::from(settings);
        let mut away_since: Option<Instant> = None;
        loop {
            let ended = Connection::new(
                &self.options,
                &limits,
                &self.subscriptions,
                &self.outbox,
                &self.inbox,
                &self.counters,
            )
            .run(&mut self.stop)
            .await;
            let (loss, lived) = match ended {
                Ended::Stopped => return,
                Ended::Lost { loss, lived } => (loss, lived),
            };
            if lived.is_some_and(|lived| lived >= GOOD_CONNECTION) {
                backoff.reset();
                away_since = None;
            }
            let wait = if loss.lasts() { backoff.longest_wait() } else { backoff.next_wait() };
            let away = away_since.get_or_insert_with(Instant::now).elapsed();
            self.tell(&loss, wait, away);
            if self.rests_until_stopped(wait).await {
                return;
            }
        }
    }

    /// A link that drops now and then is what links do; one that stays away, or is refused, is for an operator.
    fn tell(&self, loss: &Loss, wait: Duration, away: Duration) {
        let (broker, reason) = (self.broker.address(), loss.to_string());
        let next_attempt_seconds = wait.as_secs_f32();
        if self.stop.is_asked() {
            info!(broker, reason, "connection lost while shutting down");
        } else if loss.lasts() || away >= PATIENCE {
            warn!(broker, reason, next_attempt_seconds, "no connection");
        } else {
            info!(broker, reason, next_attempt_seconds, "no connection");
        }
        self.inbox.push_always(LinkEvent::Disconnected { reason });
    }

    /// Waits, and for the reader as well: events that may not be dropped must not pile up. True means stop.
    async fn rests_until_stopped(&mut self, wait: Duration) -> bool {
        let rest = async {
            tokio::time::sleep(wait).await;
            self.inbox.room_for(0).await;
        };
        tokio::pin!(rest);
        loop {
            if self.stop.is_asked() && self.outbox.is_empty() {
                return true;
            }
            tokio::select! {
                wish = self.stop.next_wish() => match wish {
                    Wish::Asked => {}
                    Wish::TimeUp => return true,
                },
                () = &mut rest => return false,
            }
        }
    }
}

fn options(broker: &CheckedBroker, client_id: String, will: Option<Will>) -> MqttOptions {
    let settings = &broker.settings;
    let mut options = MqttOptions::new(client_id, settings.host.clone(), settings.port);
    options
        .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(&broker.tls))))
        .set_clean_session(true)
        .set_keep_alive(Duration::from_secs(settings.keep_alive_seconds.into()))
        .set_max_packet_size(LARGEST_SKIPPED, settings.max_packet_bytes)
        .set_inflight(IN_FLIGHT);
    if let Some(will) = will {
        options.set_last_will(will.into());
    }
    options
}
