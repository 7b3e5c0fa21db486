//! One connection, from the attempt to its end.
//!
//! ```text
//! connecting -- CONNACK --> serving -- stop, all acknowledged --> parting --> Stopped
//!      |                        |--- renewal, all acknowledged --> parting --> Renewed
//!      \--------- error --------\------ error, watchdog -----------------> Lost
//! ```
//!
//! Invariants:
//! - The future of `EventLoop::poll` is never dropped halfway unless the connection is given up with it: a
//!   message may be filed as sent and not yet written.
//! - The event loop holds a bounded number of letters. However the connection ends, those it has not seen acknowledged
//!   go back to the front of the outbox, in order, and what it had read already still counts: messages are delivered,
//!   and a SUBACK that came in one read with what ended the connection still says that there was one.

use std::time::Duration;

use rumqttc::{AsyncClient, Connect, Event, Outgoing, Packet, Publish, Request};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::{
    driver::{Stop, Wish},
    eventloop::EventLoop,
    ledger::Ledger,
    limits::{IN_FLIGHT, Limits},
    link::{Counters, Letter, LinkEvent, Qos},
    loss::Loss,
    outgoing::{CHANNEL, Held, hand_over, held_until},
    pace::Pace,
    packet_limit::PacketLimit,
    path::{Milestone, Route},
    pulse::Patience,
    queue::{Queue, Refused, Weigh},
    renewal::{Reason, Renewal},
    subscriptions::Subscriptions,
    window::{TELLING, with_size},
};

/// A reader that falls behind holds up the broker (TCP pushes back) for this long, once; then messages are
/// dropped, because a connection that is not polled neither pings nor sends.
const READER_PATIENCE: Duration = Duration::from_secs(2);
/// After DISCONNECT the broker closes the connection; closing first could reset it before DISCONNECT was read.
const PARTING: Duration = Duration::from_secs(2);

pub(crate) enum Ended {
    Stopped,
    /// Given up though it worked; the next one is due at once.
    Renewed(Reason),
    Lost {
        loss: Loss,
        /// Since CONNACK, if it came.
        lived: Option<Duration>,
        /// The size of the packet over which the broker may have closed the connection.
        suspect: Option<usize>,
    },
}

pub(crate) struct Connection<'a> {
    limits: &'a Limits,
    wanted: &'a [(String, Qos)],
    outbox: &'a Queue<Letter>,
    inbox: &'a Queue<LinkEvent>,
    counters: &'a Counters,
    packets: &'a PacketLimit,
    pace: Pace,
    patience: &'a mut Patience,
    client: AsyncClient,
    ledger: Ledger,
    subscriptions: Subscriptions,
    /// What [`LinkEvent::Connected`] will say, until it is said.
    unannounced: Option<bool>,
    /// The inbox was full and the reader's patience is used up; messages are dropped until there is room again.
    reader_is_behind: bool,
    eventloop: EventLoop,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(
        limits: &'a Limits,
        wanted: &'a [(String, Qos)],
        outbox: &'a Queue<Letter>,
        inbox: &'a Queue<LinkEvent>,
        counters: &'a Counters,
        packets: &'a PacketLimit,
        patience: &'a mut Patience,
    ) -> Self {
        let flush_limit = with_size(limits.ack, limits.max_packet);
        let (client, eventloop) = EventLoop::new(IN_FLIGHT, limits.keep_alive, flush_limit, CHANNEL);
        Self {
            limits,
            wanted,
            outbox,
            inbox,
            counters,
            packets,
            pace: limits.pace,
            patience,
            client,
            ledger: Ledger::default(),
            subscriptions: Subscriptions::default(),
            unannounced: None,
            reader_is_behind: false,
            eventloop,
        }
    }

    pub(crate) async fn run(
        mut self,
        hello: &Connect,
        route: &Route,
        renewal: &mut Renewal<'_>,
        stop: &mut Stop,
    ) -> Ended {
        if let Err(ended) = self.connect(hello, route, renewal, stop).await {
            return ended;
        }
        let connected_at = Instant::now();
        match &route.proxy {
            None => info!(broker = route.address(), "connected to the broker"),
            Some(proxy) => info!(broker = route.address(), ?proxy, "connected to the broker through a proxy"),
        }
        self.counters.connected();
        if self.subscriptions.are_answered() {
            self.announce();
        }
        let end = self.serve(renewal, stop).await;
        if let Err(loss) = &end {
            if matches!(loss, Loss::Stalled) {
                self.patience.stalled();
            }
            self.patience.died_after(self.eventloop.pulse.risk().filter(|_| loss.is_silence()));
        }
        self.salvage().await;
        match (end, renewal.due()) {
            (Ok(()), Some(reason)) => Ended::Renewed(reason),
            (Ok(()), None) => Ended::Stopped,
            (Err(loss), _) => {
                let suspect = self.ledger.suspect().filter(|_| matches!(loss, Loss::Closed));
                Ended::Lost { loss, lived: Some(connected_at.elapsed()), suspect }
            }
        }
    }

    /// Name, proxy, TCP, TLS, CONNECT, CONNACK: all under one time limit.
    async fn connect(
        &mut self,
        hello: &Connect,
        route: &Route,
        renewal: &Renewal<'_>,
        stop: &mut Stop,
    ) -> Result<(), Ended> {
        let mut passed = Vec::new();
        let outcome = {
            let codec = self.limits.codec();
            let attempt = async {
                let stream = route.open(renewal.tls(), &mut passed).await.map_err(Loss::from_path)?;
                self.eventloop.greet(stream, codec, hello.clone(), self.patience).await
            };
            let attempt = timeout(self.limits.connect, attempt);
            tokio::pin!(attempt);
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut attempt => break outcome,
                    wish = stop.next_wish() => match wish {
                        // with something queued, the connection is still worth making
                        Wish::Asked if !self.outbox.is_empty() => {}
                        Wish::Asked | Wish::TimeUp => return Err(Ended::Stopped),
                    },
                }
            }
        };
        if !matches!(outcome, Ok(Ok(_))) {
            self.patience.link_is_down();
        }
        let failed = |loss| Ended::Lost { loss, lived: None, suspect: None };
        match outcome {
            Ok(Ok(answer)) => {
                debug!(?passed, "the way to the broker");
                let requests = self.subscriptions.requests(self.wanted);
                self.ledger.subscribe(requests.len());
                // served before anything from the channel
                self.eventloop.pending.extend(requests);
                self.unannounced = Some(answer.session_present);
                Ok(())
            }
            Ok(Err(loss)) if alpn_was_ignored(renewal, &passed) => Err(failed(loss.without_alpn())),
            Ok(Err(loss)) => Err(failed(loss)),
            Err(_) => Err(failed(Loss::timed_out(&passed))),
        }
    }

    async fn serve(&mut self, renewal: &mut Renewal<'_>, stop: &mut Stop) -> Result<(), Loss> {
        let mut parting = None;
        loop {
            match self.next_event(renewal, stop, &mut parting).await? {
                Step::Event(event) => self.take(event).await?,
                Step::Parted => return Ok(()),
            }
        }
    }

    /// Polls until one event, feeding rumqttc from the outbox meanwhile.
    async fn next_event(
        &mut self,
        renewal: &mut Renewal<'_>,
        stop: &mut Stop,
        parting: &mut Option<Instant>,
    ) -> Result<Step, Loss> {
        let Self { eventloop, client, ledger, outbox, counters, limits, pace, patience, .. } = self;
        let silent_at = Instant::now() + limits.silence + eventloop.pulse.slack();
        let (before, round_trip) = ((*patience).clone(), eventloop.pulse.round_trip());
        let poll = eventloop.poll(patience);
        tokio::pin!(poll);
        loop {
            let renewing = renewal.due().is_some();
            let mut held_by = Some(Held::Leaving);
            if parting.is_none() {
                if !renewing {
                    held_by = hand_over(client, ledger, outbox, counters, limits, pace);
                }
                let leaving = renewing || (stop.is_asked() && outbox.is_empty());
                if leaving && ledger.is_clear() {
                    if client.try_disconnect().is_err() {
                        return Ok(Step::Parted);
                    }
                    *parting = Some(Instant::now() + PARTING);
                }
            }
            let stalled_at = ledger.stalled_at(&before, round_trip);
            let overdue_at = ledger.overdue_at(limits.ack).into_iter().chain(stalled_at).min();
            let give_up_at = parting.unwrap_or_else(|| overdue_at.map_or(silent_at, |at| at.min(silent_at)));
            tokio::select! {
                biased;
                event = &mut poll => return match event {
                    Ok(event) => Ok(Step::Event(event)),
                    Err(_) if parting.is_some() => Ok(Step::Parted),
                    Err(loss) => Err(loss),
                },
                () = outbox.filled(), if held_by.is_none() => {}
                () = held_until(held_by), if held_by.is_some() => {}
                () = renewal.becomes_due(), if parting.is_none() && !renewing => {}
                wish = stop.next_wish() => match wish {
                    Wish::Asked => {}
                    Wish::TimeUp => return Ok(Step::Parted),
                },
                () = sleep_until(give_up_at) => return match (&parting, overdue_at) {
                    (Some(_), _) => Ok(Step::Parted),
                    (None, Some(at)) if at <= silent_at && stalled_at == Some(at) => Err(Loss::Stalled),
                    (None, Some(at)) if at <= silent_at => {
                        Err(Loss::AckOverdue { seconds: limits.ack.as_secs() })
                    }
                    (None, _) => Err(Loss::Hung { seconds: limits.silence.as_secs() }),
                },
            }
        }
    }

    async fn take(&mut self, event: Event) -> Result<(), Loss> {
        match event {
            Event::Incoming(Packet::Publish(publish)) => self.deliver(publish).await,
            Event::Incoming(Packet::PubAck(answer)) => {
                if let Some(size) = self.ledger.acknowledged(answer.pkid) {
                    self.packets.passed(size);
                    self.patience.moved(self.ledger.speed());
                    if size >= TELLING {
                        self.eventloop.pulse.log_goes_on(Instant::now());
                    }
                    self.counters.settle(Qos::AtLeastOnce);
                }
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                self.ledger.subscribe_acknowledged();
                self.subscriptions.answered(&answer);
                if self.subscriptions.are_answered() {
                    self.announce();
                }
            }
            // MQTT 3.1.1 §4.3.2: only PUBACK answers QoS 1. rumqttc took it for QoS 2 and let go of the message.
            Event::Incoming(Packet::PubRec(_)) => {
                return Err(Loss::Protocol("PUBREC for a message of QoS 1".into()));
            }
            Event::Outgoing(Outgoing::Publish(packet_id)) => self.ledger.written(packet_id),
            Event::Outgoing(Outgoing::Subscribe(packet_id)) => self.subscriptions.sent(packet_id),
            _ => {}
        }
        Ok(())
    }

    fn announce(&mut self) {
        if let Some(session_present) = self.unannounced.take() {
            self.inbox.push_always(LinkEvent::Connected { session_present });
        }
    }

    async fn deliver(&mut self, publish: Publish) {
        // MQTT 3.1.1 §3.8.4: a message may overtake the SUBACK
        self.announce();
        self.counters.received(publish.payload.len());
        if publish.payload.len() > self.limits.max_packet {
            self.counters.dropped();
            warn!(
                topic = %publish.topic.escape_debug(),
                bytes = publish.payload.len(),
                "dropped a message larger than broker.max_packet_bytes: set a message size limit in the broker"
            );
            return;
        }
        let message = LinkEvent::Message {
            topic: publish.topic,
            payload: publish.payload.into(),
            retain: publish.retain,
        };
        match self.inbox.try_push(message) {
            Ok(()) => self.reader_is_behind = false,
            // nobody reads any more
            Err((Refused::Closed, _)) => {}
            Err((Refused::Full, message)) => self.wait_for_the_reader(message).await,
        }
    }

    async fn wait_for_the_reader(&mut self, message: LinkEvent) {
        if !self.reader_is_behind {
            if timeout(READER_PATIENCE, self.inbox.room_for(message.weight())).await.is_ok()
                && self.inbox.try_push(message).is_ok()
            {
                return;
            }
            self.reader_is_behind = true;
            warn!("dropping messages: this process reads more slowly than the broker delivers");
        }
        self.counters.dropped();
    }

    /// Hears what was read and takes back what rumqttc owes. Its own `pending.clear()` on a new session would lose all of it.
    async fn salvage(&mut self) {
        self.eventloop.clean();
        let read_already: Vec<Event> = self.eventloop.state.events.drain(..).collect();
        for event in read_already {
            if let Err(second) = self.take(event).await {
                debug!(%second, "the connection had one more reason to end");
            }
        }
        let mut owed: Vec<Letter> = self
            .eventloop
            .pending
            .drain(..)
            .filter_map(|request| match request {
                Request::Publish(publish) => Some(publish.into()),
                _ => None,
            })
            .collect();
        if let Some(collided) = self.eventloop.state.collision.take() {
            // handed over after all that is in flight and before all that is in the channel
            let in_channel = self.ledger.handed().saturating_sub(1);
            owed.insert(owed.len().saturating_sub(in_channel), collided.into());
        }
        if !owed.is_empty() {
            debug!(letters = owed.len(), "unacknowledged messages go back into the outbox");
            self.outbox.put_back(owed);
        }
    }
}

enum Step {
    Event(Event),
    Parted,
}

/// What was offered, and that the peer, which spoke TLS, took none of it.
fn alpn_was_ignored(renewal: &Renewal<'_>, passed: &[Milestone]) -> bool {
    !renewal.tls().alpn_protocols.is_empty()
        && passed.iter().any(|step| matches!(step, Milestone::Secured { alpn: None, .. }))
}
