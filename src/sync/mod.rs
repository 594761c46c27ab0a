//! The conductor: [`supervisor`] owns the life of the daemon, [`phase`] says what may follow what, and the others are
//! its acts: [`preflight`], [`copying`], [`following`], with [`deltas`] and [`watch`] beside them.

pub mod carried;
mod commands;
pub mod context;
pub mod copying;
pub mod cutover;
pub mod deltas;
pub mod divergence;
pub mod feed;
pub mod following;
mod identity;
mod indexing;
mod mending;
pub mod mirroring;
pub mod ownership;
mod pausing;
pub mod phase;
pub mod preflight;
mod reconcile;
pub mod record;
pub mod recovery;
mod reload;
mod reselecting;
pub mod reset;
pub mod resync;
pub mod reverse;
pub mod spooling;
pub mod standing;
pub mod startup;
mod stuck;
pub mod supervisor;
pub mod track;
pub mod tuning;
pub mod verifying;
pub mod watch;
