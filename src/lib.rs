//! snapsync keeps one MongoDB deployment (the **target**) equal to another (the **source**) while the source is live.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and damage files with plain std::fs")
)]

pub mod catalogue;
pub mod cli;
pub mod config;
pub mod copy;
pub mod durable;
pub mod exit;
mod hex;
pub mod http;
pub mod mongo;
pub mod namespace;
pub mod oplog;
pub mod position;
pub mod replay;
pub mod retry;
pub mod selection;
pub mod snapshot;
pub mod source;
pub mod spool;
pub mod state;
pub mod status;
pub mod stop;
pub mod sync;
pub mod systemd;
pub mod target;
pub mod telemetry;
pub mod verify;
