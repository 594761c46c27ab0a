//! The API: the same routes on `control.listen` (TCP) and on the unix socket. This room reads the [`crate::status`] and
//! hands wishes to the sync room as [`control::Command`]s; it never speaks to a database and decides nothing itself.
//! Who may ask is decided in `guard`: on the socket by the file's permissions, over TCP by a bearer token.

pub mod client;
pub mod control;
mod guard;
mod metrics;
mod page;
mod routes;
pub mod server;
