//! snapsync keeps one MongoDB deployment (the **target**) equal to another (the **source**) while the source is live.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and damage files with plain std::fs")
)]

pub mod durable;
pub mod namespace;
pub mod position;
pub mod spool;
pub mod state;
