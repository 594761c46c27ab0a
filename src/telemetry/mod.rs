//! What the daemon tells the journal. [`logging`] carries lines to the journal or to stderr without ever making the
//! daemon wait; [`events`] are the notable happenings, each with its fixed fields; [`delta_log`] decides which deltas
//! are worth a line.

pub mod counters;
pub mod delta_log;
pub mod events;
mod journal;
pub mod kinds;
pub mod logging;
mod record;
mod render;

pub use delta_log::DeltaLog;
pub use logging::{LogHandle, LoggingError};
pub(crate) use render::{one_line, without_credentials};
