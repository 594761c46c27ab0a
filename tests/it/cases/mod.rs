//! The scenarios, in tables: what is done to documents, to collections, and in transactions.

pub mod chaos;
pub mod definitions;
pub mod documents;
mod indexes;
pub mod unique;
