//! The task behind a [`Link`](crate::Link): one connection after the other until it is told to stop.
//!
//! Each connection has a rumqttc event loop of its own, so that no packet id, collision or half-done state of a
//! dead connection reaches the next one. What the old one still owed goes back to the front of the outbox.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng;
use rumqttc::Connect;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

use crate::{
    backoff::{Backoff, GOOD_CONNECTION},
    brokers::{Brokers, Choice},
    connection::{Connection, Ended},
    limits::{Limits, SMALLEST_PACKET_LIMIT},
    link::{Counters, Letter, LinkEvent, MissedAfter, Qos, SHUTDOWN_LIMIT, Will},
    loss::Loss,
    packet_limit::{Closed, PacketLimit, SMALLEST_SUSPECT},
    pulse::Patience,
    queue::Queue,
    renewal::{Reason, Renewal},
    settings::{BrokerSettings, CheckedBroker},
};

/// A broker may be away so long before it is a warning: a restart takes less.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a clock that is not set is looked at: costs no traffic.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

pub(crate) struct Driver {
    settings: BrokerSettings,
    brokers: Brokers,
    hello: Connect,
    subscriptions: Vec<(String, Qos)>,
    outbox: Arc<Queue<Letter>>,
    inbox: Arc<Queue<LinkEvent>>,
    counters: Arc<Counters>,
    packets: Arc<PacketLimit>,
    missed_after: Arc<MissedAfter>,
    /// Of the way to the broker of this address.
    patience: (String, Patience),
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
        packets: Arc<PacketLimit>,
        missed_after: Arc<MissedAfter>,
        asked: watch::Receiver<bool>,
        done: watch::Sender<bool>,
    ) -> Self {
        let CheckedBroker { settings, first, fallbacks } = broker;
        let hello = hello(&settings, client_id, will);
        let brokers = Brokers::new(first, fallbacks, &settings);
        let stop = Stop { asked, deadline: None };
        let patience = (brokers.address(), Patience::new(Limits::from(&settings).keep_alive));
        Self {
            settings,
            brokers,
            hello,
            subscriptions,
            outbox,
            inbox,
            counters,
            packets,
            missed_after,
            patience,
            stop,
            done,
        }
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
        let mut backoff = Backoff::new(
            Duration::from_secs(self.settings.reconnect_first_seconds.into()),
            Duration::from_secs(self.settings.reconnect_longest_seconds.into()),
        );
        let mut away_since: Option<Instant> = None;
        loop {
            let (mut loss, lived, suspect) = match self.connect_once().await {
                Ended::Stopped => return,
                Ended::Renewed(reason) => {
                    backoff.reset();
                    away_since = None;
                    self.renew(reason);
                    if self.stop.is_asked() && self.outbox.is_empty() {
                        return;
                    }
                    continue;
                }
                Ended::Lost { loss, lived, suspect } => (loss, lived, suspect),
            };
            if lived.is_some_and(|lived| lived >= GOOD_CONNECTION) {
                backoff.reset();
                away_since = None;
                self.brokers.was_good();
            }
            match suspect.map_or(Closed::Chance, |size| self.closed_over(size)) {
                Closed::Chance => {}
                Closed::Lowered => backoff.reset(),
                Closed::Hopeless => loss = Loss::PacketLimit { least: SMALLEST_PACKET_LIMIT },
            }
            let broker = self.brokers.address();
            if self.brokers.failed() == Choice::Fresh {
                backoff.reset();
            }
            let wait = if loss.lasts() {
                backoff.longest_wait()
            } else {
                backoff.next_wait(self.missed_after.get())
            };
            let away = away_since.get_or_insert_with(Instant::now).elapsed();
            self.tell(&broker, &loss, wait, away);
            if self.rests_until_stopped(wait, loss.good_from()).await {
                return;
            }
        }
    }

    async fn connect_once(&mut self) -> Ended {
        let first = self.brokers.first();
        let limits = Limits::from(&self.settings);
        let address = self.brokers.address();
        if self.patience.0 != address {
            self.patience = (address, Patience::new(limits.keep_alive));
        }
        let Self {
            settings,
            brokers,
            hello,
            subscriptions,
            outbox,
            inbox,
            counters,
            packets,
            patience,
            stop,
            ..
        } = self;
        let patience = &mut patience.1;
        let connection = Connection::new(&limits, subscriptions, outbox, inbox, counters, packets, patience);
        let broker = brokers.present();
        broker.credentials.look();
        let mut renewal = Renewal::new(settings, &mut broker.credentials, first);
        connection.run(hello, &broker.route, &mut renewal, stop).await
    }

    /// What the broker does not take is not sent again: the exchange repeats it in smaller parts.
    fn closed_over(&self, size: usize) -> Closed {
        let meaning = self.packets.closed_over(size);
        let largest = match meaning {
            Closed::Chance => return meaning,
            Closed::Lowered => self.packets.bytes(),
            Closed::Hopeless => SMALLEST_SUSPECT,
        };
        let mut letters = 0;
        self.outbox.retain(|letter| {
            let is_taken = letter.packet_size() <= largest;
            if !is_taken {
                letters += 1;
                self.counters.settle(letter.qos);
            }
            is_taken
        });
        info!(letters, "messages that the broker does not take were dropped");
        meaning
    }

    fn renew(&mut self, reason: Reason) {
        info!(broker = self.brokers.address(), "{reason}");
        if reason == Reason::FirstBroker {
            self.brokers.back_to_first();
        }
        self.inbox.push_always(LinkEvent::Disconnected { reason: reason.to_string() });
    }

    /// A link that drops now and then is what links do; one that stays away, or is refused, is for an operator.
    fn tell(&self, broker: &str, loss: &Loss, wait: Duration, away: Duration) {
        let reason = loss.to_string();
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
    async fn rests_until_stopped(&mut self, wait: Duration, good_from: Option<SystemTime>) -> bool {
        let spread = Duration::from_secs(self.settings.reconnect_first_seconds.into());
        let rest = async {
            tokio::select! {
                () = sleep(wait) => {}
                () = clock_passes(good_from, spread) => {}
            }
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

/// Ends soon after this machine's clock has been set to a time from which on an attempt can succeed; a site's devices get
/// their time at one instant, and do not all come in that instant.
async fn clock_passes(good_from: Option<SystemTime>, spread: Duration) {
    let Some(good_from) = good_from else { return pending().await };
    while SystemTime::now() < good_from {
        sleep(LOOK_AT_CLOCK).await;
    }
    info!("the clock of this machine was set");
    let wait = rand::rng().random_range(Duration::ZERO..=spread);
    sleep(wait).await;
}

fn hello(settings: &BrokerSettings, client_id: String, will: Option<Will>) -> Connect {
    let mut hello = Connect::new(client_id);
    hello.clean_session = true;
    hello.keep_alive = settings.keep_alive_seconds;
    hello.last_will = will.map(Into::into);
    hello
}
