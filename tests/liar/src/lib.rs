//! What a hostile broker can do to messages, as pure code: no I/O, no clock, and one seed for all chance.
//!
//! [`LIES`] is the one list of lies and [`Flow`] the one list of flows. A [`Liar`] stands where a broker stands: every
//! payload passes through [`Liar::pass`], and what comes out is what arrives, where, and how late. It knows what a
//! broker knows: all that it has seen so far, of every device, also from before a restart; and it has a key of its own
//! ([`Forger`]). It has no device's key and no memory of the bridge's.
//!
//! The same liar lies to the simulated exchange (`schemas/tests/exchange`) and between two real brokers
//! (`keylime_mqtt_tests::between`), and both fill a [`Table`]: how often each lie was told in each flow, and what came
//! of it.

mod down;
mod flow;
mod known;
mod liar;
mod lie;
mod table;
mod up;

pub use flow::Flow;
pub use known::{Forger, Stamp};
pub use liar::{Delivery, Direction, Liar, Plan};
pub use lie::{LIES, Lie, lie_named};
pub use table::Table;
