//! What the program of every Kubernetes component has in common: how it logs, and the flags of leader election.

mod leader;
mod logging;

pub use leader::LeaderElection;
pub use logging::start_logging;
