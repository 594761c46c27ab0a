//! snapsync keeps one MongoDB deployment (the **target**) equal to another (the **source**) while the source is live.

pub mod cli;
pub mod config;
pub mod namespace;
pub mod oplog;
pub mod position;
pub mod selection;
