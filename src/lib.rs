//! snapsync keeps one MongoDB deployment (the **target**) equal to another (the **source**) while the source is live.

pub mod cli;
pub mod config;
pub mod http;
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and damage files with plain std::fs")
)]

pub mod durable;
pub mod namespace;
pub mod oplog;
pub mod position;
pub mod selection;
pub mod status;
pub mod stop;
pub mod systemd;
pub mod telemetry;
pub mod spool;
pub mod state;
