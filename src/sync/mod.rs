//! The conductor: [`supervisor`] owns the life of the daemon, [`phase`] says what may follow what, and the others are
//! its acts: [`preflight`], [`copying`], [`following`], with [`deltas`] and [`watch`] beside them.

pub mod context;
pub mod copying;
pub mod deltas;
pub mod feed;
pub mod following;
mod indexing;
pub mod phase;
pub mod preflight;
mod reconcile;
pub mod record;
mod reload;
pub mod spooling;
pub mod standing;
pub mod startup;
pub mod supervisor;
pub mod tuning;
pub mod watch;
