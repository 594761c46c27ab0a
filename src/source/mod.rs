//! Everything that is read from the source: where to start ([`start`]), what there is ([`catalog`]), documents
//! ([`scan`], in parts: [`split`]) and the oplog ([`tail`], as a task: [`reader`]). Nothing here ever writes, except
//! that [`writes`] blocks the writes of others when an operator asks for it.

pub mod catalog;
pub mod reader;
pub mod scan;
pub mod split;
pub mod start;
pub mod tail;
pub mod writes;
