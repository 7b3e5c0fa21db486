//! What the doctors of agent and bridge share: the report, and the steps up to a broker that took the client in.
//!
//! A doctor walks the way that the data goes and says of each step whether it works and, where not, what to do. Steps
//! behind one that failed are said to be not checked. It sends little, once, and repairs nothing.

mod certificate;
mod report;
mod visit;
mod way;

pub use report::{Report, State, Step};
pub use visit::{Arrived, Visit, VisitError};
