//! The subscriptions of a link, made anew on every connection.

use std::collections::VecDeque;

use rumqttc::{Request, SubAck, Subscribe, SubscribeFilter, SubscribeReasonCode};
use tracing::warn;

use crate::link::Qos;

/// AWS IoT Core takes no more filters in one SUBSCRIBE.
const FILTERS_PER_SUBSCRIBE: usize = 8;

/// What one connection asked the broker for, and what the broker said.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    unsent: VecDeque<Vec<String>>,
    unanswered: Vec<(u16, Vec<String>)>,
}

impl Subscriptions {
    /// The SUBSCRIBE packets to send, in order.
    pub(crate) fn requests(&mut self, wanted: &[(String, Qos)]) -> Vec<Request> {
        wanted
            .chunks(FILTERS_PER_SUBSCRIBE)
            .map(|chunk| {
                self.unsent.push_back(chunk.iter().map(|(filter, _)| filter.clone()).collect());
                Request::Subscribe(Subscribe::new_many(
                    chunk.iter().map(|(filter, qos)| SubscribeFilter::new(filter.clone(), (*qos).into())),
                ))
            })
            .collect()
    }

    /// The next SUBSCRIBE went out under this packet id.
    pub(crate) fn sent(&mut self, packet_id: u16) {
        self.unanswered.extend(self.unsent.pop_front().map(|filters| (packet_id, filters)));
    }

    /// Whether the broker answered every SUBSCRIBE.
    pub(crate) fn are_answered(&self) -> bool {
        self.unsent.is_empty() && self.unanswered.is_empty()
    }

    /// Tells the operator what the broker refused. The link goes on: other filters may be all it needs, and
    /// asking again would get the same answer.
    pub(crate) fn answered(&mut self, answer: &SubAck) {
        let Some(position) = self.unanswered.iter().position(|(id, _)| *id == answer.pkid) else { return };
        let (_, filters) = self.unanswered.swap_remove(position);
        for (filter, code) in filters.iter().zip(&answer.return_codes) {
            if *code == SubscribeReasonCode::Failure {
                warn!(filter, "the broker refused a subscription: allow it in the broker's ACL");
            }
        }
    }
}
