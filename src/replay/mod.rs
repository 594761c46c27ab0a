//! Carrying the source's changes out on the target, window by window: [`window`] gathers oplog entries, [`plan`]
//! and [`changes`] fold them to their net effect (pure), [`apply`] writes documents, [`define`] carries out
//! definitions. [`noted`] keeps what has changed, for those who compare it.

pub mod apply;
pub mod changes;
mod chunk;
mod conflicts;
#[cfg(test)]
mod damage;
pub mod define;
#[cfg(test)]
mod model;
pub mod noted;
pub mod plan;
pub mod scope;
mod tally;
pub mod window;
