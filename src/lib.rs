//! snapsync keeps one MongoDB deployment (the **target**) equal to another (the **source**) while the source is live.

pub mod cli;
pub mod config;
pub mod http;
pub mod namespace;
pub mod oplog;
pub mod position;
pub mod selection;
pub mod status;
pub mod stop;
pub mod systemd;
pub mod telemetry;
