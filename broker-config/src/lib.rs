//! How a client connects to a broker, and the driver that keeps it connected.
//!
//! Agent and bridge share this crate. Its place in the flow is between the exchange, which decides what is
//! said, and the broker, which carries it:
//!
//! ```text
//! [broker] table -> BrokerSettings::check -> CheckedBroker -> connect -> Link (out), Incoming (in)
//! ```
//!
//! # What holds
//!
//! - **Nothing lowers security.** TLS with the operator's own CA and a client certificate, TLS 1.3 unless the
//!   settings say otherwise. A certificate that does not verify ends the attempt; there is no second way in.
//! - **What [`Link::publish`] took at QoS 1 is sent until the broker acknowledged it**, over as many
//!   connections as that takes, until [`Link::shutdown`] or the end of the process. A copy may arrive twice.
//! - **Memory is bounded both ways**, in messages and in bytes; what does not fit is refused to the caller.
//! - **A connection that makes no progress is given up** and replaced, with full-jitter exponential backoff.
//!
//! What does *not* hold: an acknowledgement says that the broker has a message, not that anyone read it. A
//! 3.1.1 broker even acknowledges what its ACL forbids. Delivery is repaired by the exchange alone.
//!
//! # Why a clean session
//!
//! Every connection starts without broker-side state. The exchange repeats what went unanswered, so messages
//! kept by the broker would only be duplicates of a question that meanwhile has another answer; a stored
//! session is also what makes an unsendable message come back for ever, and brokers limit or charge for it.
//! So subscriptions are made anew after each CONNACK, and what was unacknowledged goes back into the outbox.

mod backoff;
mod brokers;
mod connection;
mod credentials;
mod doctor;
mod driver;
mod eventloop;
mod ledger;
mod limits;
mod link;
mod loss;
mod outgoing;
mod pace;
mod packet_limit;
mod path;
mod private_memory;
mod probe;
mod pulse;
mod queue;
mod renewal;
mod secret_file;
mod settings;
mod subscriptions;
mod tls;
mod window;

pub use doctor::{Arrived, Report, State, Step, Visit, VisitError};
pub use link::{Incoming, Link, LinkEvent, PublishError, Qos, Traffic, Will, connect};
pub use private_memory::keep_memory_private;
pub use secret_file::is_exposed;
pub use settings::{
    BrokerSettings, CheckedBroker, FallbackBroker, Headers, ProxyChoice, ProxySettings, ProxySettingsError,
    SettingsError, Transport,
};
pub use tls::TlsFileError;
