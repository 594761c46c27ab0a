//! Carrying the source's changes out on the target, window by window: [`window`] gathers oplog entries, [`plan`]
//! folds them to their net effect (pure), [`apply`] writes documents, [`define`] carries out definitions.

pub mod apply;
mod chunk;
mod conflicts;
pub mod define;
#[cfg(test)]
mod model;
pub mod plan;
pub mod scope;
pub mod window;
