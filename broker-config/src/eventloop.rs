//! MQTT over one byte stream: rumqttc's client channel, state machine and codec, and a loop that joins them.
//!
//! rumqttc has an event loop of its own, but that one also makes the connection, and in ways that cannot be
//! mended from outside: one address after the other under a single time limit, no say in TLS beyond its
//! settings, proxy and WebSocket answers without their status. So the stream comes from [`crate::path`], and
//! this loop does the rest.
//!
//! Invariant: whatever a poll took from the channel is either in the state machine, in `pending` or reported by
//! an error after which [`EventLoop::clean`] yields it; a future of [`EventLoop::poll`] that is dropped halfway
//! may have written part of a packet, so it is dropped only together with the connection.

use std::{collections::VecDeque, time::Duration};

use flume::Receiver;
use futures_util::{FutureExt, SinkExt, StreamExt};
use rumqttc::{
    AsyncClient, Codec, ConnAck, Connect, ConnectReturnCode, Event, MqttState, Packet, PingReq, Request,
    StateError, mqttbytes,
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::Framed;

use crate::{
    loss::{Loss, Phase},
    path::ByteStream,
    pulse::{Beat, Patience, Pulse},
};

/// Packets that are read, or requests that are written, before the answers are flushed: a burst is then one
/// TLS record, and a flood does not keep the loop from its other duties.
const AT_ONCE: usize = 10;

pub(crate) struct EventLoop {
    pub(crate) state: MqttState,
    /// Sent before anything from the channel.
    pub(crate) pending: VecDeque<Request>,
    requests: Receiver<Request>,
    wire: Option<Framed<Box<dyn ByteStream>, Codec>>,
    in_flight: u16,
    pub(crate) pulse: Pulse,
    flush_limit: Duration,
}

enum Todo {
    Take(Option<Result<Packet, mqttbytes::Error>>),
    Send(Request),
}

impl EventLoop {
    /// `in_flight` bounds the QoS 1 messages without acknowledgement, `channel` the requests that wait.
    pub(crate) fn new(
        in_flight: u16,
        keep_alive: Duration,
        flush_limit: Duration,
        channel: usize,
    ) -> (AsyncClient, Self) {
        let (sender, requests) = flume::bounded(channel);
        let eventloop = Self {
            state: MqttState::new(in_flight, false),
            pending: VecDeque::new(),
            requests,
            wire: None,
            in_flight,
            pulse: Pulse::new(keep_alive),
            flush_limit,
        };
        (AsyncClient::from_senders(sender), eventloop)
    }

    /// Says CONNECT on a new stream and waits for CONNACK.
    pub(crate) async fn greet(
        &mut self,
        stream: Box<dyn ByteStream>,
        codec: Codec,
        connect: Connect,
        patience: &mut Patience,
    ) -> Result<ConnAck, Loss> {
        let mut wire = Framed::new(stream, codec);
        let asked = Instant::now();
        wire.send(Packet::Connect(connect)).await.map_err(|error| broken(error, Phase::Connecting))?;
        let answer = match wire.next().await {
            Some(Ok(Packet::ConnAck(answer))) => answer,
            Some(Ok(_)) => return Err(Loss::Protocol("something other than CONNACK came first".into())),
            Some(Err(error)) => return Err(broken(error, Phase::Connecting)),
            None => return Err(Loss::closed(Phase::Connecting)),
        };
        if answer.code != ConnectReturnCode::Success {
            return Err(Loss::from_code(answer.code));
        }
        self.wire = Some(wire);
        self.pulse.began(asked.elapsed(), patience);
        Ok(answer)
    }

    /// The next event, after reading, sending or pinging as is due.
    pub(crate) async fn poll(&mut self, patience: &mut Patience) -> Result<Event, Loss> {
        loop {
            if let Some(event) = self.state.events.pop_front() {
                return Ok(event);
            }
            let may_send = self.may_send();
            let Some(wire) = self.wire.as_mut() else { return Err(Loss::closed(Phase::Connected)) };
            let todo = tokio::select! {
                packet = wire.next() => Todo::Take(packet),
                request = next_request(&mut self.pending, &self.requests), if may_send => Todo::Send(request?),
                () = sleep_until(self.pulse.next(patience)) => match self.pulse.beat(Instant::now(), patience) {
                    Beat::Ping => Todo::Send(Request::PingReq(PingReq)),
                    Beat::Dead => return Err(Loss::PingUnanswered),
                    Beat::Nothing => continue,
                },
            };
            self.feel(&todo, patience);
            let taken = matches!(todo, Todo::Take(_));
            // answers to what was read, and whatever is sent, must get out while the peer reads
            match timeout(self.flush_limit, self.carry_out(todo)).await {
                Ok(done) => done?,
                Err(_) => return Err(Loss::stalled()),
            }
            if taken && !self.state.await_pingresp {
                self.pulse.answered(Instant::now());
            }
        }
    }

    fn feel(&mut self, todo: &Todo, patience: &mut Patience) {
        let now = Instant::now();
        match todo {
            Todo::Take(Some(Ok(_))) => self.pulse.received(now, patience),
            Todo::Take(_) => {}
            Todo::Send(request) => {
                self.pulse.sent(now);
                if matches!(request, Request::PingReq(_)) {
                    self.pulse.pinged(now);
                }
            }
        }
    }

    /// Lets go of the stream. What was unacknowledged or unsent is in `pending` afterwards, in the order in
    /// which it was handed over.
    pub(crate) fn clean(&mut self) {
        self.wire = None;
        self.pending.extend(self.state.clean());
        self.pending.extend(self.requests.drain());
    }

    /// Above the limit, and while a packet id is taken twice, only acknowledgements help.
    fn may_send(&self) -> bool {
        !self.pending.is_empty() || (self.state.inflight() < self.in_flight && self.state.collision.is_none())
    }

    async fn carry_out(&mut self, todo: Todo) -> Result<(), Loss> {
        match todo {
            Todo::Take(packet) => self.take(packet).await?,
            Todo::Send(request) => self.send(request).await?,
        }
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        wire.flush().await.map_err(|error| broken(error, Phase::Connected))
    }

    /// One packet, and those that came with it.
    async fn take(&mut self, first: Option<Result<Packet, mqttbytes::Error>>) -> Result<(), Loss> {
        let mut came = first;
        for more in (0..AT_ONCE).rev() {
            let packet = match came {
                None => return Err(Loss::closed(Phase::Connected)),
                Some(packet) => packet.map_err(|error| broken(error, Phase::Connected))?,
            };
            let answer = self
                .state
                .handle_incoming_packet(packet)
                .map_err(|error| Loss::from_state(error, Phase::Connected))?;
            let Some(wire) = self.wire.as_mut() else { break };
            if let Some(answer) = answer {
                wire.feed(answer).await.map_err(|error| broken(error, Phase::Connected))?;
            }
            if more == 0 {
                break;
            }
            let Some(next) = wire.next().now_or_never() else { break };
            came = next;
        }
        Ok(())
    }

    /// One request, and those that wait behind it.
    async fn send(&mut self, first: Request) -> Result<(), Loss> {
        let mut request = first;
        for more in (0..AT_ONCE).rev() {
            let packet = self
                .state
                .handle_outgoing_packet(request)
                .map_err(|error| Loss::from_state(error, Phase::Connected))?;
            if let (Some(packet), Some(wire)) = (packet, self.wire.as_mut()) {
                wire.feed(packet).await.map_err(|error| broken(error, Phase::Connected))?;
            }
            if more == 0 || !self.may_send() {
                break;
            }
            let next = self.pending.pop_front().or_else(|| self.requests.try_recv().ok());
            let Some(next) = next else { break };
            request = next;
        }
        Ok(())
    }
}

async fn next_request(
    pending: &mut VecDeque<Request>,
    requests: &Receiver<Request>,
) -> Result<Request, Loss> {
    if let Some(request) = pending.pop_front() {
        return Ok(request);
    }
    // an error means that the client is gone, and the connection with it
    requests.recv_async().await.map_err(|_| Loss::closed(Phase::Connected))
}

fn broken(error: mqttbytes::Error, phase: Phase) -> Loss {
    Loss::from_state(StateError::Deserialization(error), phase)
}
