//! At one broker: login, own topics, the bridge behind them, the largest packet, and whether others' topics are open.
//!
//! A 3.1.1 broker acknowledges what it forbids and grants what it then withholds. So nothing counts here but what comes
//! out at the other side: the bridge's answer to a [`Hello`], and messages that come though they should not.

use std::time::Duration;

use keylime_mqtt_broker_config::{Arrived, CheckedBroker, Report, Step, Visit, VisitError};
use keylime_mqtt_schemas::AgentId;
use keylime_mqtt_schemas::codec::encode;
use keylime_mqtt_schemas::fragment::MAX_PAYLOAD;
use keylime_mqtt_schemas::messages::{
    Bounded, BridgeStatus, Heard, Hello, HelloTag, LaterReason, Outcome, Question, Told, Up,
};
use keylime_mqtt_schemas::topics::{Topics, Via};
use keylime_mqtt_schemas::wire::unpack_down;
use tokio::time::Instant;

use super::Wishes;

/// What a bridge that is there needs for an answer, and some.
const ANSWER: Duration = Duration::from_secs(3);
/// What a broker needs to hand out what it has retained, and some.
const RETAINED: Duration = Duration::from_millis(500);
/// Links make both longer: by so many of the round trips that were seen.
const ROUND_TRIPS: u32 = 4;
/// A bridge may just be connecting; after that it is not there.
const HELLOS: usize = 2;
/// What a `Hello` has around its padding: map heads, keys, tag, and a length of up to five bytes.
const HELLO_FRAME: usize = 20;

/// One broker, and what is to be examined there.
pub(super) struct Examined<'a> {
    pub(super) broker: &'a CheckedBroker,
    pub(super) nth: usize,
    pub(super) id: &'a AgentId,
    pub(super) common_name: Option<&'a str>,
    pub(super) topics: &'a Topics,
    pub(super) payload_bytes: usize,
    pub(super) is_running: bool,
    pub(super) wishes: Wishes,
}

/// What came of a `Hello`.
enum Answer {
    Heard {
        heard: Heard,
        via: Option<Via>,
        after: Duration,
    },
    /// The broker said that the challenge topic is not this client's to read.
    NotGranted,
    Silence,
}

impl Examined<'_> {
    pub(super) async fn examine(&self, report: &mut Report) {
        let address = self.broker.address_of(self.nth);
        let mut visit = match self.login().await {
            Ok(visit) => visit,
            Err(error) => {
                report.add(self.no_login(&error).of(&address));
                for step in ["topics", "bridge", "packet", "others"] {
                    report.add(Step::not_checked(step, "it waits for login").of(&address));
                }
                return;
            }
        };
        report.add(self.logged_in().of(&address));
        let answer = self.ask(&mut visit, 0).await;
        let is_heard = matches!(answer, Ok(Answer::Heard { .. }));
        for step in self.topics(&answer, &mut visit).await {
            report.add(step.of(&address));
        }
        let packet = if is_heard {
            self.packet(&mut visit).await
        } else {
            Step::not_checked("packet", "it waits for topics")
        };
        report.add(packet.of(&address));
        // a broker that ended the connection at one topic has not been asked for the others
        if visit.is_over()
            && !self.is_running
            && let Ok(again) = self.login().await
        {
            visit = again;
        }
        report.add(self.others(&mut visit).await.of(&address));
        visit.leave().await;
    }

    fn client_id(&self) -> String {
        let own = self.broker.client_id().unwrap_or(self.id.as_str());
        self.broker.visitor_id(own, self.is_running)
    }

    async fn login(&self) -> Result<Visit, VisitError> {
        self.broker.visit(self.nth, &self.client_id()).await
    }

    fn logged_in(&self) -> Step {
        let client_id = self.client_id();
        if self.is_running {
            let says = format!(
                "as {client_id}, for an agent runs here under the id without -doctor; a broker that takes the client id from \
                 the certificate, as mosquitto in broker-config, has ended its connection for a moment all the same"
            );
            return Step::ok("login", says);
        }
        Step::ok("login", format!("as {client_id}"))
    }

    fn no_login(&self, error: &VisitError) -> Step {
        if self.is_running {
            let remedy = "an agent runs here, so another client id was used than its own; a broker that binds client ids to \
                          certificates (AWS IoT Core) refuses that: stop the agent and ask again";
            return Step::failed("login", error.to_string(), remedy);
        }
        Step::error("login", error)
    }

    /// A step whose connection was lost.
    fn lost(&self, step: &'static str, error: &VisitError) -> Step {
        if self.is_running && error.is_closed() {
            let why = "the agent that runs here has taken the connection back, for the broker lets a certificate in only \
                       once: stop the agent and ask again";
            return Step::not_checked(step, why);
        }
        Step::error(step, error)
    }

    /// Says `Hello` with this much padding, and waits for the answer.
    async fn ask(&self, visit: &mut Visit, padding: usize) -> Result<Answer, VisitError> {
        let challenge = self.topics.challenge(self.id);
        if visit.subscribe(std::slice::from_ref(&challenge)).await? != [true] {
            return Ok(Answer::NotGranted);
        }
        let hellos = if padding == 0 { HELLOS } else { 1 };
        for _ in 0..hellos {
            let tag = HelloTag::from(rand::random::<[u8; 8]>());
            let padding = Some(padding).filter(|size| *size > 0).map(|size| vec![0; size]);
            let padding = padding.and_then(|bytes| Bounded::try_from(bytes).ok());
            let Ok(hello) = encode(&Up::Hello(Hello { tag, padding })) else { break };
            let began = Instant::now();
            visit.publish(&self.topics.evidence(self.id, None), hello).await?;
            let until = Instant::now() + ANSWER + visit.round_trip() * ROUND_TRIPS;
            while let Some(arrived) = next(visit, until).await? {
                if let Some((heard, via)) = answer(&arrived, &challenge).filter(|(heard, _)| heard.tag == tag)
                {
                    return Ok(Answer::Heard { heard, via, after: began.elapsed() });
                }
            }
        }
        Ok(Answer::Silence)
    }

    /// Steps `topics` and `bridge`.
    async fn topics(&self, answer: &Result<Answer, VisitError>, visit: &mut Visit) -> Vec<Step> {
        let waits = || Step::not_checked("bridge", "it waits for topics");
        match answer {
            Ok(Answer::Heard { heard, via, after }) => {
                let who = via.as_ref().map_or("a bridge".to_owned(), |via| format!("the bridge {via}"));
                let says = format!("can be written and read: {who} answered within {} ms", after.as_millis());
                vec![Step::ok("topics", says), bridge(heard.told)]
            }
            Ok(Answer::NotGranted) => {
                let says =
                    format!("the broker refuses the subscription to {}", self.topics.challenge(self.id));
                vec![Step::failed("topics", says, self.acl_remedy()), waits()]
            }
            Err(error) if error.is_closed() && !self.is_running => {
                let says = "the broker ended the connection at this device's own topics, as some do (AWS IoT Core) with what \
                            their policy forbids";
                vec![Step::failed("topics", says, self.acl_remedy()), waits()]
            }
            Err(error) => vec![self.lost("topics", error), waits()],
            Ok(Answer::Silence) => self.silence(visit).await,
        }
    }

    /// No answer: is there a bridge at all?
    async fn silence(&self, visit: &mut Visit) -> Vec<Step> {
        // some brokers end the connection where a status is not this client's to read
        let statuses = self.bridges(visit).await.unwrap_or_default();
        let online: Vec<&str> =
            statuses.iter().filter(|(_, online)| *online).map(|(name, _)| name.as_str()).collect();
        if !online.is_empty() {
            let says = format!(
                "no answer, though a bridge is connected to this broker ({}): the broker acknowledges what this device says \
                 and does not pass it on, or keeps the answer back",
                online.join(", ")
            );
            let remedy = format!("{}. Or is the bridge older than this agent?", self.acl_remedy());
            return vec![
                Step::failed("topics", says, remedy),
                Step::ok("bridge", "connected to this broker"),
            ];
        }
        let unknown = Step::not_checked(
            "topics",
            "the broker acknowledges, which proves nothing; it waits for a bridge's answer",
        );
        if !statuses.is_empty() {
            let names: Vec<&str> = statuses.iter().map(|(name, _)| name.as_str()).collect();
            let says =
                format!("no bridge runs: {} said goodbye to this broker, or was lost", names.join(", "));
            return vec![unknown, Step::failed("bridge", says, "start keylime-mqtt-bridge")];
        }
        let prefix = self.topics.bridges_filter();
        let says = format!("none answers, and none can be seen at {prefix}");
        let remedy = format!(
            "does keylime-mqtt-bridge run, at this broker and with the same topic prefix (keylime-mqtt-bridge doctor)? If so: {}. \
             Where the ACL lets devices read {prefix}, this doctor tells the two apart",
            self.acl_remedy()
        );
        vec![unknown, Step::failed("bridge", says, remedy)]
    }

    fn acl_remedy(&self) -> String {
        let name = self.common_name.unwrap_or("none");
        format!(
            "let this client (common name {name}, client id {}) write {} and read {} in the broker's ACL; the id in the topics \
             must be the name that the ACL goes by",
            self.client_id(),
            self.topics.evidence(self.id, None),
            self.topics.challenge(self.id)
        )
    }

    /// Bridges that have left a status, and whether they are connected.
    async fn bridges(&self, visit: &mut Visit) -> Result<Vec<(String, bool)>, VisitError> {
        visit.subscribe(&[self.topics.bridges_filter()]).await?;
        let until = Instant::now() + RETAINED + visit.round_trip() * ROUND_TRIPS;
        let mut statuses = Vec::new();
        while let Some(arrived) = next(visit, until).await? {
            if let Ok(status) = serde_json::from_slice::<BridgeStatus>(&arrived.payload) {
                statuses.push((arrived.topic.escape_debug().to_string(), status.online));
            }
        }
        Ok(statuses)
    }

    /// The largest packet that the settings allow, once, and where it does not pass the largest that this agent sends.
    async fn packet(&self, visit: &mut Visit) -> Step {
        let topic = self.topics.evidence(self.id, None);
        let largest = self.broker.payload_limit(&topic).min(MAX_PAYLOAD);
        let own = self.payload_bytes.min(largest);
        let first = if self.wishes.spare_link { own } else { largest };
        let how = match self.passes(visit, first).await {
            Ok(None) => return Step::ok("packet", format!("a message of {first} bytes passes")),
            Ok(Some(how)) => how,
            Err(error) => return self.lost("packet", &error),
        };
        let second = if first == own { Ok(Some(how)) } else { self.passes(visit, own).await };
        match second {
            Ok(None) => Step::finding(
                "packet",
                format!(
                    "a message of {first} bytes, which broker.max_packet_bytes allows, does not pass: {how}. One of {own} does, and this agent sends none larger (payload_bytes)"
                ),
                "set broker.max_packet_bytes to the broker's limit, or raise the limit (mosquitto: message_size_limit, max_packet_size); the bridge has its own broker.max_packet_bytes",
            ),
            Ok(Some(how)) => Step::failed(
                "packet",
                format!("a message of {own} bytes, the largest that this agent sends, does not pass: {how}"),
                "set payload_bytes and broker.max_packet_bytes below the broker's limit, here and at the bridge, or raise the limit",
            ),
            Err(error) => self.lost("packet", &error),
        }
    }

    /// Nothing when a message of this size is answered, else what became of it. Never sent a second time.
    async fn passes(&self, visit: &mut Visit, size: usize) -> Result<Option<&'static str>, VisitError> {
        match self.ask(visit, size.saturating_sub(HELLO_FRAME)).await {
            Ok(Answer::Heard { .. }) => Ok(None),
            Ok(Answer::NotGranted | Answer::Silence) => Ok(Some("it was acknowledged and dropped")),
            Err(error) if error.is_closed() && !self.is_running => {
                *visit = self.login().await?;
                Ok(Some("the broker ended the connection"))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether what others say, or are told, is open to this device.
    async fn others(&self, visit: &mut Visit) -> Step {
        match self.foreign(visit).await {
            Ok(Some(topic)) => Step::finding(
                "others",
                format!("this device can read what is another's: {} came", topic.escape_debug()),
                "the broker's ACL is too wide: let a device read its own challenge and the bridges' status alone (broker-config has ACLs)",
            ),
            Ok(None) => Step::ok("others", "nothing of another device came, asked for all of them"),
            Err(error) if error.is_closed() && !self.is_running => {
                Step::ok("others", "the broker ends the connection of who asks for another's topics")
            }
            Err(error) => self.lost("others", &error),
        }
    }

    async fn foreign(&self, visit: &mut Visit) -> Result<Option<String>, VisitError> {
        visit.subscribe(&self.topics.all_devices_filters()).await?;
        let until = Instant::now() + RETAINED + visit.round_trip() * ROUND_TRIPS;
        while let Some(arrived) = next(visit, until).await? {
            if self.topics.parse(&arrived.topic).is_ok_and(|topic| topic.agent_id() != self.id) {
                return Ok(Some(arrived.topic));
            }
        }
        Ok(None)
    }
}

/// How the device stands with a bridge that answered.
fn bridge(told: Option<Told>) -> Step {
    let operator = "the reason says who has to act; nothing needs a restart";
    match told {
        None => Step::ok("bridge", "hears this device and has told it nothing since it started"),
        Some(Told::Attested(Outcome::Pass)) => Step::ok("bridge", "the last attestation passed"),
        Some(Told::Attested(Outcome::Unknown)) => {
            Step::ok("bridge", "the last attestation is not judged yet")
        }
        Some(Told::Attested(Outcome::Fail)) => Step::failed(
            "bridge",
            "Keylime failed the last attestation",
            "read the verifier's log for the cause, mend the device or its policy, then keylime_tenant -c update",
        ),
        Some(Told::Later(reason @ (LaterReason::Again | LaterReason::Busy | LaterReason::Unusable))) => {
            Step::ok("bridge", format!("this device waits: {reason}"))
        }
        Some(Told::Later(reason)) => {
            Step::finding("bridge", format!("this device waits: {reason}"), operator)
        }
        Some(Told::Refused(reason)) => {
            Step::failed("bridge", format!("this device is refused: {reason}"), operator)
        }
    }
}

fn answer(arrived: &Arrived, challenge: &str) -> Option<(Heard, Option<Via>)> {
    if arrived.topic != challenge {
        return None;
    }
    let down = unpack_down(&arrived.payload).ok()?;
    match down.question {
        Question::Heard(heard) => Some((heard, down.via)),
        _ => None,
    }
}

async fn next(visit: &mut Visit, until: Instant) -> Result<Option<Arrived>, VisitError> {
    visit.message(until.saturating_duration_since(Instant::now())).await
}
