//! Everything that is read from the source: where to start ([`start`]), what there is ([`catalog`]), documents
//! ([`scan`], in parts: [`split`]) and the oplog ([`tail`], as a task: [`reader`]). Nothing here ever writes.

pub mod catalog;
pub mod reader;
pub mod scan;
pub mod split;
pub mod start;
pub mod tail;
