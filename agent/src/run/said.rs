//! What an operator reads of the exchange's outcome: each change once, not each message.

use keylime_mqtt_schemas::messages::{Later, LaterReason, Outcome, Refused, RefusedReason};

/// What was logged last, so that a repeated answer is not a repeated line.
#[derive(Debug, Default)]
pub(super) struct Said {
    verdict: Option<Outcome>,
    waiting: Option<LaterReason>,
    refused: Option<RefusedReason>,
    attesting: bool,
}

impl Said {
    /// To a device that runs on the bridge tells no verdict, so this is what its log says of success: once, and again
    /// after it was told to wait for something that only an operator mends.
    pub(super) fn attesting(&mut self) {
        let mended = |reason: &mut LaterReason| {
            matches!(reason, LaterReason::NotEnrolled | LaterReason::NoPolicy | LaterReason::Rebooted)
        };
        self.waiting.take_if(mended);
        if !std::mem::replace(&mut self.attesting, true) {
            tracing::info!("evidence goes to Keylime; the verdict is in this device's result topic");
        }
    }

    pub(super) fn verdict(&mut self, verdict: Outcome) {
        self.waiting = None;
        self.refused = None;
        if self.verdict.replace(verdict) == Some(verdict) {
            return;
        }
        match verdict {
            Outcome::Pass => tracing::info!("Keylime says PASS"),
            Outcome::Fail => tracing::warn!("Keylime says FAIL; the verifier's log says why"),
            Outcome::Unknown => tracing::info!("the evidence was accepted, Keylime has not judged it yet"),
        }
    }

    pub(super) fn waiting(&mut self, later: Later) {
        if self.waiting.replace(later.reason) != Some(later.reason) {
            self.attesting = false;
            tracing::info!(seconds = later.seconds, "told to wait: {}", later.reason);
        }
    }

    pub(super) fn refused(&mut self, refused: Refused) {
        if self.refused.replace(refused.reason) != Some(refused.reason) {
            self.attesting = false;
            tracing::warn!(seconds = refused.seconds, "refused: {}", refused.reason);
        }
    }
}
