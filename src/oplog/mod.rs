//! What an oplog says, as values: entries, transactions, diffs and commands.
//!
//! This room owns the reading of raw oplog bytes. It does no IO, has no clock and knows no target: the same bytes
//! always give the same answer. If it is wrong, the target silently becomes something the source never was, so
//! everything that is not known here (an operation, a diff section, a command) is an error and never a guess.
//!
//! User data stays raw bytes from end to end. `bson::Document` drops one of two equal field names and refuses strings
//! that are not UTF-8; servers store both.

pub mod apply_ops;
pub mod command;
pub mod diff;
pub mod document;
pub mod element;
pub mod entry;
pub mod id_key;
mod modifier;
pub mod overflow;
pub mod txn;
pub mod update;

#[cfg(test)]
pub(crate) mod fixtures;
mod number;
